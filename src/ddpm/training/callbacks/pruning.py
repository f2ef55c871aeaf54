"""Stops a search's hopeless trials."""

import os
from typing import TYPE_CHECKING

import lightning as L
from omegaconf import DictConfig

from ddpm.runs import TRIAL

if TYPE_CHECKING:
    from ddpm.launch.search.study import RunningTrial


class StopHopelessTrial(L.Callback):
    """After each validation reports the metric to the search's study, and stops if that says so.

    Args:
        trial: None in the processes that do not write, all but the first.
    """

    def __init__(self, trial: "RunningTrial | None"):
        self.trial = trial
        self.reason: str | None = None
        """why the training was stopped"""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        hopeless = self.trial is not None and self.trial.is_hopeless(step, trainer.callback_metrics)
        # All processes stop together.
        if trainer.strategy.reduce_boolean_decision(hopeless, all=False) and step != trainer.max_steps:
            trainer.should_stop = True
            self.reason = f"stopped at step {step}: behind the search's other trials"


def of_a_trial(config: DictConfig, writes: bool) -> list[L.Callback]:
    """The callback, where this job is a trial of a search."""
    if not os.environ.get(TRIAL):
        return []
    from ddpm.launch.search.study import RunningTrial  # Optuna is an extra

    return [StopHopelessTrial(RunningTrial.of_this_job(config) if writes else None)]


def why_stopped(trainer: L.Trainer) -> str | None:
    """Why a search has stopped the training; None where it has not."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, StopHopelessTrial)]  # type: ignore[attr-defined]
    return callbacks[0].reason if callbacks else None
