"""Trainings that a real study stops early."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from optuna.trial import TrialState
from small import fit, small_model

from ddpm.launch.search.pruning import StopHopelessTrial
from ddpm.training.callbacks import LastCheckpoint

EVERY: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 2}


@pytest.fixture
def current(search, monkeypatch):
    """A study with a median pruner, its space, and a job of the search as Hydra's current job."""
    study, space = search("hydra.sweeper.pruner.n_startup_trials=1")
    hydra = type("Hydra", (), {"sweeper": study.settings})
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    return study, space


def train(callback: StopHopelessTrial, study, max_steps=6):
    directory = Path(study.folder) / "a-run"
    last = LastCheckpoint(directory, 100, 60)
    return fit(small_model(), max_steps, callback, last, default_root_dir=directory, **EVERY)


@pytest.mark.parametrize(("others", "steps"), [(-1.0, [2]), (1e9, [2, 4, 6])])
def test_a_trial_behind_the_others_stops_after_its_validation_and_is_saved(current, others, steps):
    study, space = current
    number = study.ask(space).number
    for step in (2, 4, 6):
        study.report(number, step, others)
    study.tell(number, TrialState.COMPLETE, others)

    callback = StopHopelessTrial(study.name, study.ask(space).number)
    trainer = train(callback, study)
    assert trainer.global_step == steps[-1]
    checkpoint = study.folder / "a-run" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == steps[-1]
    assert list(study.trials()[1].intermediate_values) == steps
    stopped = "stopped at step 2: behind the search's other trials"
    assert callback.pruning_reason == (None if steps[-1] == 6 else stopped)


def test_the_last_validation_stops_nothing(current):
    study, space = current
    number = study.ask(space).number
    study.report(number, 2, -1.0)
    study.tell(number, TrialState.COMPLETE, -1.0)
    callback = StopHopelessTrial(study.name, study.ask(space).number)
    train(callback, study, max_steps=2)
    assert callback.pruning_reason is None


def test_a_training_continues_without_its_database(current):
    study, space = current
    number = study.ask(space).number
    (study.folder / "search.db").write_bytes(b"no database")
    with pytest.warns(UserWarning, match="trial 0 continues, but could not be reported"):
        assert train(StopHopelessTrial(study.name, number), study, max_steps=2).global_step == 2
