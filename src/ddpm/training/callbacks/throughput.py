"""Images per second, on the progress bar and in the logs."""

import time
from collections import deque
from typing import Any

import lightning as L

from ddpm.training.module import DDPM


class ImagesPerSecond(L.Callback):
    """Logs the speed over the last `window` batches of training. Validation and pictures are not measured.

    Images are counted over all devices. (Lightning's ThroughputMonitor logs nothing until its window is full, which
    leaves a gap in the curve after each resume.)
    """

    def __init__(self, window: int = 20):
        self.batches: deque[tuple[int, float]] = deque(maxlen=window)
        """(images, seconds)"""

    def on_train_batch_start(self, *args: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DDPM)
        images, _ = batch
        self.batches.append((len(images) * trainer.world_size, time.perf_counter() - self.started))
        speed = sum(images for images, _ in self.batches) / sum(seconds for _, seconds in self.batches)
        pl_module.log("images/s", speed, prog_bar=True, logger=False)
        if pl_module.logs_this_step:
            pl_module.log_now({"images/s": speed})
