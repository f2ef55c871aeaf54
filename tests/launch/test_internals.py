"""The undocumented parts of Hydra and Optuna that we use. A failure here says what a new version has changed."""

import copy

import optuna
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

from ddpm.config import conf_dir
from ddpm.launch.hydra_internals import as_current_job, share_config_store
from ddpm.launch.search.optuna_internals import resume_trial
from ddpm.runs import task_overrides


def test_hydra_config_can_be_set_for_a_while():
    """`HydraConfig.instance()` has `set_config` and `cfg`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("report", ["runs=here"], return_hydra_config=True)
    before = HydraConfig.instance().cfg
    with as_current_job(config) as job:
        assert task_overrides() == ["runs=here"]
        assert "hydra" not in job
        assert job.runs == "here"
    assert HydraConfig.instance().cfg is before
    assert "hydra" in config


def test_hydras_config_store_can_be_shared():
    """Hydra copies what holds the store, with `copy.deepcopy`; the store itself gives copies of its nodes."""
    share_config_store()
    store = ConfigStore.instance()
    assert copy.deepcopy([store])[0] is store
    store.load("hydra/config.yaml").node.mode = "MULTIRUN"
    assert store.load("hydra/config.yaml").node.mode is None


def test_optuna_resumes_a_trial_of_another_process():
    """`FrozenTrial._trial_id` is what the constructor of `Trial` takes."""
    study = optuna.create_study()
    study.ask()
    number = study.ask().number
    resume_trial(study, number).report(1.5, step=3)
    assert [trial.intermediate_values for trial in study.get_trials()] == [{}, {3: 1.5}]
