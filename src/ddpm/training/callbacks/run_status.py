"""Writes status.json and metrics.json during training."""

import contextlib
import math
import os
import socket
import time
from typing import Any

import lightning as L

from ddpm.data.batches import batches_done
from ddpm.errors import UserError
from ddpm.runs.run import Run
from ddpm.runs.status import State


class RunStatus(L.Callback):
    """Writes status.json at the first batch, every `interval` seconds, at the end, and after an error.

    Also writes the newest metrics to metrics.json after each validation and at the end.

    Args:
        epoch_batches: number of batches in an epoch of the data.
        interval: seconds.
        run: None in all processes except the first, which alone writes.
    """

    def __init__(self, epoch_batches: int, interval: float = 10.0, run: Run | None = None):
        self.epoch_batches = epoch_batches
        self.interval = interval
        self.run = run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.run is None:
            return
        status = self.run.status
        status.host, status.pid, status.error = socket.gethostname(), os.getpid(), None
        self.began = time.monotonic() - status.seconds
        self.written = -math.inf

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        # Write "running" only at the first batch, when the signal handlers are set: whoever reads it may send a signal.
        if self.run is not None and time.monotonic() - self.written >= self.interval:
            self.write(trainer, "running")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == trainer.max_steps:  # before the last checkpoint: a run resumed from it has no batches
            self.write_metrics(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.write_metrics(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write(trainer, "running")
        self.write_metrics(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.run is None or self.run.status.state == "interrupted":  # LastCheckpoint has written the status
            return
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        self.run.status.error = f"{type(exception).__name__}: {exception}"
        with contextlib.suppress(OSError, UserError):  # the exception may come from a full disk or a deleted directory
            self.write(trainer, "interrupted" if stopped else "failed")

    def write_metrics(self, trainer: L.Trainer) -> None:
        if self.run is not None:
            newest = {**getattr(trainer.lightning_module, "newest", {}), **trainer.callback_metrics}
            self.run.write_metrics(trainer.global_step, newest)

    def write(self, trainer: L.Trainer, state: State) -> None:
        if self.run is None:
            return
        self.run.check_ours()
        status = self.run.status
        status.state, status.step = state, trainer.global_step
        status.epoch = batches_done(trainer) // self.epoch_batches
        self.written = time.monotonic()
        status.seconds = self.written - getattr(self, "began", self.written)
        status.write(self.run.directory)
