"""Images a second, on the progress bar and in the logs."""

import time
from typing import Any

import lightning as L
from lightning.fabric.utilities.throughput import Throughput

from ddpm.module import DDPM


class ImagesPerSecond(L.Callback):
    """Logs the training's speed over the last `window` batches, validation and pictures left out.

    Images are counted over all devices.
    """

    def __init__(self, window: int = 20):
        self.window = window
        self.start()

    def start(self) -> None:
        self.throughput = Throughput(window_size=self.window)
        self.seconds = 0.0
        self.images = 0
        self.batches = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start()

    def on_train_batch_start(self, *args: Any) -> None:
        self.batch_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DDPM)
        images, _ = batch
        self.seconds += time.perf_counter() - self.batch_started
        self.images += len(images) * trainer.world_size
        self.batches += 1
        self.throughput.update(time=self.seconds, batches=self.batches, samples=self.images)
        speed = self.throughput.compute().get("device/samples_per_sec")  # absent until the window is full
        if speed is not None:
            pl_module.log("images/s", speed, prog_bar=True, logger=False)
            if pl_module.logs_this_step:
                pl_module.log_now({"images/s": speed})
