from types import SimpleNamespace

import lightning as L
import pytest
from small import Rows, Shades, fit, small_model

from ddpm.training.callbacks import ImagesPerSecond


class Clock(L.Callback):
    """A batch takes 2 seconds, what is between two of them another one, and a validation 100."""

    now = 0.0

    def on_train_batch_start(self, *args):
        self.now += 1

    def on_before_optimizer_step(self, *args):
        self.now += 2

    def on_validation_end(self, *args):
        self.now += 100


@pytest.mark.parametrize("batch_size", [5, 8])
def test_images_per_second_of_training_alone(monkeypatch, batch_size):
    clock, log = Clock(), Rows()
    monkeypatch.setattr("ddpm.training.callbacks.throughput.time", SimpleNamespace(perf_counter=lambda: clock.now))
    fit(
        small_model(), 12, clock, ImagesPerSecond(window=4),
        data=Shades(batch_size), logger=log, log_every_n_steps=3, limit_val_batches=1, val_check_interval=4,
    )  # fmt: skip
    assert log.of("images/s") == pytest.approx(
        {2: batch_size / 2, 5: batch_size / 2, 8: batch_size / 2, 11: batch_size / 2}
    )
