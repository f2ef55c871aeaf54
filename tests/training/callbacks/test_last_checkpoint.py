import os
import signal
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from small import fit, small_model

from ddpm.errors import UserError
from ddpm.training.callbacks import LastCheckpoint


class Saved(L.Callback):
    """Remembers after which steps the file had another content."""

    def __init__(self, path):
        self.path = path
        self.steps = []

    def look(self, trainer):
        if self.path.is_file():
            step = torch.load(self.path, weights_only=True)["global_step"]
            if step not in self.steps:
                self.steps.append(step)

    def on_train_batch_start(self, trainer, *args):
        self.look(trainer)


def saved_steps(tmp_path, max_steps, every_steps, every_minutes=60, *callbacks, **trainer):
    path = tmp_path / "checkpoints" / "last.ckpt"
    seen = Saved(path)
    last = fit(
        small_model(),
        max_steps,
        seen,
        *callbacks,
        LastCheckpoint(tmp_path, every_steps, every_minutes),
        **trainer,
    )
    seen.look(last)
    return seen.steps


BETWEEN = {"accumulate_grad_batches": 2, "limit_val_batches": 1, "val_check_interval": 2}
"""a validation after each optimizer step of two batches"""


@pytest.mark.parametrize(
    ("max_steps", "every", "steps", "options"),
    [
        (7, 3, [3, 6, 7], {}),
        (6, 3, [3, 6], {}),
        (3, 1, [1, 2, 3], {}),
        (4, 100, [4], {}),
        (7, 3, [3, 6, 7], BETWEEN),
        (3, 1, [1, 2, 3], BETWEEN),
    ],
)
def test_it_is_written_every_so_many_steps_and_at_the_end(tmp_path, max_steps, every, steps, options):
    assert saved_steps(tmp_path, max_steps, every, **options) == steps


def test_it_is_written_every_so_many_minutes(tmp_path, monkeypatch):
    class Seconds(L.Callback):
        """A batch takes 25 seconds."""

        now = 0

        def on_train_batch_start(self, *args):
            self.now += 25

    clock = Seconds()
    monkeypatch.setattr("ddpm.training.callbacks.last_checkpoint.time", SimpleNamespace(monotonic=lambda: clock.now))
    assert saved_steps(tmp_path, 8, 1000, 1, clock) == [3, 6, 8]
    # Saving for the steps' sake begins another minute.
    clock.now = 0
    assert saved_steps(tmp_path / "other", 8, 4, 1, clock) == [3, 6, 8]


class Stopped(Exception):
    pass


class Validations(L.Callback):
    """Remembers after which steps there was a validation; that after step `stop` the process does not survive."""

    def __init__(self, stop=None):
        self.stop = stop
        self.steps = []

    def on_validation_start(self, trainer, pl_module):
        if trainer.global_step == self.stop:
            raise Stopped

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def test_a_validation_that_was_interrupted_is_made_again(tmp_path):
    """So a step with a validation must be saved after it."""
    validation = {"limit_val_batches": 1, "val_check_interval": 2}
    before, after = Validations(stop=4), Validations()
    with pytest.raises(Stopped):
        fit(small_model(), 6, before, LastCheckpoint(tmp_path, 1, 60), **validation)
    fit(small_model(), 6, after, resume=tmp_path / "checkpoints" / "last.ckpt", **validation)
    assert before.steps + after.steps == [2, 4, 6]


class Signals(L.Callback):
    """Sends signals to this process during the third step."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 2:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def requeue_and_leave():
    sys.exit(-1)


def fail_to_requeue():
    raise RuntimeError("too many time limits")


@pytest.mark.parametrize(
    ("part", "end"), [(requeue_and_leave, -1), (lambda: None, 75), (fail_to_requeue, "saved: too many time limits")]
)
@pytest.mark.parametrize("numbers", [[signal.SIGUSR2], [signal.SIGUSR2, signal.SIGTERM]])
def test_a_handler_from_before_does_its_part_after_the_save(tmp_path, request, part, end, numbers):
    """As submitit's does, which puts the job back into Slurm's queue."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    calls = []

    def handler(number, frame):
        calls.append((number, torch.load(path, weights_only=True)["global_step"]))
        part()

    before = signal.signal(signal.SIGUSR2, handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGUSR2, before))
    with pytest.raises((SystemExit, UserError)) as caught:
        fit(small_model(), 5, Signals(*numbers), LastCheckpoint(tmp_path, 100, 60))
    assert calls == [(signal.SIGUSR2, 3)]
    assert signal.getsignal(signal.SIGUSR2) is handler
    if isinstance(end, str):
        assert end in str(caught.value)
    else:
        assert caught.value.code == end
