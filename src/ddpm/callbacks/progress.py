"""The progress bar of a run."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from ddpm.progress import batches_done


class RunProgressBar(TQDMProgressBar):
    """One bar from the run's first step to its last; Lightning's counts anew, and without a total, after a resume."""

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
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
        if self._should_update(batches_done(trainer), bar.total):
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(batches_done(trainer) - bar.n)
