"""The private parts of Lightning that training needs, each with the reason."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.fabric.utilities.logger import _add_prefix
from lightning.pytorch.loggers import WandbLogger


def logged_step(trainer: L.Trainer) -> int:
    """The x-axis of Lightning's own training curves: the optimizer steps before the current one.

    `trainer.global_step` counts the current step too once the optimizer has stepped, so curves logged by us and by
    Lightning would lie one step apart.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def with_prefix(logger: WandbLogger, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with the logger's `prefix` before their names; there is no public way to get the prefix."""
    return dict(_add_prefix(metrics, logger._prefix, logger.LOGGER_JOIN_CHAR))
