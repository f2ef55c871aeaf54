"""A training that a real study stops."""

import pytest
import torch
from optuna.trial import TrialState
from small import fit, small_model

from ddpm.launch.search.study import RunningTrial
from ddpm.training.callbacks import LastCheckpoint, StopHopelessTrial
from ddpm.training.callbacks.pruning import why_stopped

EVERY = {"limit_val_batches": 1, "val_check_interval": 2}


def train(trial, directory, max_steps=6):
    return fit(small_model(), max_steps, StopHopelessTrial(trial), LastCheckpoint(directory, None, 100, 60), **EVERY)


@pytest.mark.parametrize(("others", "steps"), [(-1.0, [2]), (1e9, [2, 4, 6])])
def test_a_trial_behind_the_others_stops_after_its_validation_and_is_saved(search, tmp_path, others, steps):
    study, space = search("hydra.sweeper.pruner.n_startup_trials=1")
    number = study.ask(space).number
    for step in (2, 4, 6):
        study.report(number, step, others)
    study.tell(number, TrialState.COMPLETE, others)

    trainer = train(RunningTrial(study, study.ask(space).number), tmp_path)
    assert trainer.global_step == steps[-1]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps[-1]
    assert list(study.trials()[1].intermediate_values) == steps
    assert why_stopped(trainer) == (None if steps[-1] == 6 else "stopped at step 2: behind the search's other trials")


def test_the_last_validation_stops_nothing(search, tmp_path):
    study, space = search("hydra.sweeper.pruner.n_startup_trials=1")
    number = study.ask(space).number
    study.report(number, 2, -1.0)
    study.tell(number, TrialState.COMPLETE, -1.0)
    assert why_stopped(train(RunningTrial(study, study.ask(space).number), tmp_path, max_steps=2)) is None


def test_a_process_that_does_not_write_reports_nothing(tmp_path):
    assert train(None, tmp_path).global_step == 6
