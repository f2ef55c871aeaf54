"""Images per second, on the progress bar and in the logs."""

import time
from collections import deque
from typing import Any

import lightning as L
import torch

from ddpm.training.module import DDPM


class ImagesPerSecond(L.Callback):
    """Logs the speed over the last `window` batches of training. Validation and pictures are not measured.

    Images are counted over all devices. The CPU queues work for a GPU ahead of time. So on a GPU, time is measured over
    all batches from one logged step to the next: at these steps, the CPU waits for the GPU. (Lightning's
    ThroughputMonitor logs nothing until its window is full, which leaves a gap in the curve after each resume.)
    """

    def __init__(self, window: int = 20):
        self.batches: deque[tuple[float, float]] = deque(maxlen=window)
        """(images, seconds)"""
        self.unmeasured: list[int] = []
        """images of the batches since `started`"""

    def on_train_batch_start(self, *args: Any) -> None:
        if not self.unmeasured:
            self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DDPM)
        images, _ = batch
        self.unmeasured.append(len(images) * trainer.world_size)
        if not pl_module.may_read_device:
            return
        seconds = (time.perf_counter() - self.started) / len(self.unmeasured)
        self.batches.extend((images, seconds) for images in self.unmeasured)
        self.unmeasured = []
        speed = sum(images for images, _ in self.batches) / sum(seconds for _, seconds in self.batches)
        pl_module.log("images/s", torch.tensor(speed), prog_bar=True, logger=False)  # a float would be put on the GPU
        if pl_module.logs_this_step:
            pl_module.log_now({"images/s": speed})

    def on_validation_start(self, *args: Any) -> None:
        self.unmeasured = []
