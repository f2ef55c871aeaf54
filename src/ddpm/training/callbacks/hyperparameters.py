"""A run's row on TensorBoard's HPARAMS page."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

FINAL_METRICS = ("val/bpd", "val/loss")


class SweptHyperparameters(L.Callback):
    """Writes what a run has under the keys that its sweep varies; the page takes the numbers from the run's curves.

    (Lightning's `log_hyperparams` would put a first, false point on each curve.)
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in values.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for summary in hparams(self.values, dict.fromkeys(FINAL_METRICS, 0)):
                    logger.experiment._get_file_writer().add_summary(summary)
