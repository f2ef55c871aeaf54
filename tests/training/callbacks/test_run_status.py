import json
import os

import lightning as L
import pytest
from small import BATCHES, fit, small_model

from ddpm.runs import Run, Status
from ddpm.training.callbacks import RunStatus


class Seen(L.Callback):
    """What status.json says before each step."""

    def __init__(self, directory):
        self.directory = directory
        self.statuses = []

    def on_train_batch_start(self, trainer, *args):
        self.statuses.append(Status.read(self.directory))


class Raise(L.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 3:
            raise self.error


def status_of(run):
    return RunStatus(BATCHES, interval=0, run=run)


def test_the_status_follows_the_training(tmp_path):
    seen = Seen(tmp_path)
    with Run.open(tmp_path) as run:
        fit(small_model(), 2 * BATCHES + 1, status_of(run), seen)
    assert [status.step for status in seen.statuses] == list(range(2 * BATCHES + 1))
    assert [status.epoch for status in seen.statuses] == [step // BATCHES for step in range(2 * BATCHES + 1)]
    assert {status.state for status in seen.statuses} == {"running"}
    assert {status.pid for status in seen.statuses} == {os.getpid()}
    seconds = [status.seconds for status in seen.statuses]
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[-1]


def test_it_is_written_now_and_then(tmp_path):
    seen = Seen(tmp_path)
    with Run.open(tmp_path) as run:
        fit(small_model(), 5, RunStatus(BATCHES, interval=1000, run=run), seen)
    assert [status.step for status in seen.statuses] == [0] * 5


@pytest.mark.parametrize(
    ("error", "raised", "state"),
    [
        (ValueError("no more images"), ValueError, "failed"),
        (KeyboardInterrupt(), SystemExit, "interrupted"),
        (SystemExit(75), SystemExit, "interrupted"),
    ],
)
def test_an_end_before_the_end_is_told(tmp_path, error, raised, state):
    with Run.open(tmp_path) as run, pytest.raises(raised):
        fit(small_model(), 9, status_of(run), Raise(error))
    status = Status.read(tmp_path)
    assert status is not None
    assert (status.state, status.step) == (state, 3)
    assert status.error is not None
    assert type(error).__name__ in status.error
    assert str(error) in status.error


def test_a_run_that_goes_on_forgets_the_error_and_counts_its_seconds_on(tmp_path):
    Status(state="failed", error="ValueError: no more images", seconds=1000, pid=1).write(tmp_path)
    seen = Seen(tmp_path)
    with Run.open(tmp_path) as run:
        fit(small_model(), 2, status_of(run), seen)
    first = seen.statuses[0]
    assert (first.state, first.error, first.pid) == ("running", None, os.getpid())
    assert 1000 <= first.seconds < 1060


def test_metrics_are_written_after_each_validation_and_at_the_end(tmp_path):
    class Metrics(L.Callback):
        def __init__(self):
            self.steps = []

        def on_train_batch_start(self, *args):
            path = tmp_path / "metrics.json"
            self.steps.append(json.loads(path.read_text())["step"] if path.exists() else None)

    seen = Metrics()
    with Run.open(tmp_path) as run:
        fit(small_model(), 5, status_of(run), seen, limit_val_batches=1, val_check_interval=2)
    assert seen.steps == [None, None, 2, 2, 4]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["step"] == 5
    assert metrics.keys() >= {"train/loss", "val/loss", "val/bpd"}
