"""The callback that ends trials which are behind the others of their search."""

import warnings
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig

from ddpm.errors import UserError
from ddpm.launch.search.study import DATABASE_ERRORS, Study


class StopHopelessTrial(L.Callback):
    """Reports the metric of a trial to its study after each validation, and stops the training if the pruner says so.

    A search adds this callback to its jobs by an override. The database, the metric and the pruner are those of
    `hydra.sweeper`.

    Args:
        study: the name of the study.
        number: the number of the trial.
    """

    def __init__(self, study: str, number: int):
        self.study, self.number = study, number
        self.pruning_reason: str | None = None
        """why the training was stopped"""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        hopeless = trainer.is_global_zero and self.is_hopeless(trainer)
        # All processes stop together.
        if trainer.strategy.reduce_boolean_decision(hopeless, all=False) and trainer.global_step != trainer.max_steps:
            trainer.should_stop = True
            self.pruning_reason = f"stopped at step {trainer.global_step}: behind the search's other trials"

    def is_hopeless(self, trainer: L.Trainer) -> bool:
        """Report the metric; return whether the pruner gives the trial up. An error of the database is a warning."""
        folder = Path(trainer.default_root_dir).parent  # of all runs of the search
        study = Study(self.study, folder, HydraConfig.get().sweeper)
        metric = study.settings.metric
        if metric not in trainer.callback_metrics:
            return False
        try:
            return study.report(self.number, trainer.global_step, float(trainer.callback_metrics[metric]))
        except (UserError, *DATABASE_ERRORS) as error:
            warnings.warn(f"trial {self.number} continues, but could not be reported: {error}", stacklevel=2)
            return False
