"""The progress of a run: a bar in a terminal, lines in a log."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from ddpm.data.batches import batches_done


class RunProgressBar(TQDMProgressBar):
    """One bar from the run's first step to its last. After a resume, Lightning's bar would start at 0 without a total.

    Where the output is no terminal (a log file, the output of many jobs), a line is printed instead, after each
    validation and every `seconds`.

    Args:
        refresh_rate: batches between two updates of the bar; 0 disables it.
    """

    def __init__(self, refresh_rate: int = 1, seconds: float = 60.0):
        super().__init__(refresh_rate)
        self.seconds = seconds
        self.in_terminal = sys.stdout.isatty()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not self.in_terminal:
            self.disable()

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self.written = time.monotonic()
        self.begin(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.begin(trainer)

    def begin(self, trainer: L.Trainer) -> None:
        bar = self.train_progress_bar
        bar.reset(total=trainer.max_steps * trainer.accumulate_grad_batches)
        bar.initial = bar.n = bar.last_print_n = batches_done(trainer)
        bar.set_description("Training")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        bar = self.train_progress_bar
        batches = batches_done(trainer)
        if self.is_enabled and (batches % self.refresh_rate == 0 or batches == bar.total):
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(batches - bar.n)
        if time.monotonic() - self.written >= self.seconds:
            self.write_line(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self.write_line(trainer, pl_module)

    def write_line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.written = time.monotonic()
        if self.in_terminal or not trainer.is_global_zero:
            return
        numbers = " ".join(
            f"{name}={value:.4g}" for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"
        )
        name = Path(trainer.default_root_dir).name  # many jobs may write into one log
        print(f"{name}: step {trainer.global_step}/{trainer.max_steps} {numbers}", flush=True)
