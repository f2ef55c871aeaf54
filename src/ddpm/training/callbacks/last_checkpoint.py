"""The checkpoint from which a run continues, and the signals that stop a run."""

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from ddpm.data.batches import batches_done
from ddpm.errors import UserError
from ddpm.runs import slurm
from ddpm.runs.run import LAST, Run
from ddpm.runs.status import INTERRUPTED

# In ascending priority. If several signals arrive, the one with the highest priority counts, because only the handlers
# of SIGUSR1 and SIGUSR2 can put the job back into Slurm's queue.
SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every `every_steps` optimizer steps or `every_minutes`, at the end, and after a signal.

    After SIGHUP (the terminal closes), SIGTERM, SIGINT (Ctrl-C), SIGUSR1 or SIGUSR2, the run finishes its step and
    writes the checkpoint, and the first process exits with code 75. Under nohup, SIGHUP is ignored. A second Ctrl-C
    stops the run immediately. After SIGUSR1 or SIGUSR2, the run calls the previous handler of the signal before the
    exit; submitit's handler requeues the job. If Slurm sends SIGTERM before a preemption, the run treats SIGTERM as
    SIGUSR2.

    If a validation is due after a step, the checkpoint is written after the validation, so that a resumed run does not
    skip the validation. Therefore this callback must come after the callbacks that act on validation (Lightning puts
    each `Checkpoint` after the other callbacks).

    Args:
        directory: directory of the run.
        run: None in all processes except the first.
    """

    def __init__(self, directory: str | Path, every_steps: int, every_minutes: float, run: Run | None = None):
        if not (every_steps >= 1 and every_minutes > 0):
            raise ValueError(
                f"checkpoint.every_steps={every_steps} must be at least 1 and "
                f"checkpoint.every_minutes={every_minutes} above 0."
            )
        self.path = Path(directory) / "checkpoints" / LAST
        self.run = run
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.signal: signal.Signals | None = None
        self.was_interrupted = False
        self.stop_is_pending = False
        self.handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            numbers = [number for number in SIGNALS if not (number == signal.SIGHUP and under_nohup)]
            self.handlers = {number: signal.signal(number, self.ask_to_stop) for number in numbers}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.was_interrupted:
                raise KeyboardInterrupt
            self.was_interrupted = True
        self.signal = max(self.signal or SIGNALS[0], signal.Signals(number), key=SIGNALS.index)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not self.is_in_step(trainer):
            # If a callback has stopped the training, Lightning validates once more.
            due = trainer.should_stop or batches_done(trainer) % (trainer.val_check_batch or 1) == 0
            if not (trainer.enable_validation and due):
                self.save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and not self.is_in_step(trainer):
            self.save_if_due(trainer)

    def is_in_step(self, trainer: L.Trainer) -> bool:
        """Return whether an optimizer step of several batches is incomplete. A checkpoint would lose its gradients.

        If a callback stops the training within such a step, the stop is postponed to the end of the step.
        """
        if batches_done(trainer) % trainer.accumulate_grad_batches:
            self.stop_is_pending |= trainer.should_stop
            trainer.should_stop = False
            return True
        trainer.should_stop |= self.stop_is_pending
        return False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self.save(trainer)

    def save_if_due(self, trainer: L.Trainer) -> None:
        # Signals and clocks differ between processes, but all processes must save at the same step.
        must_stop = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        steps = trainer.global_step - self.saved_step
        minutes = (time.monotonic() - self.saved_time) / 60
        late = trainer.strategy.reduce_boolean_decision(steps > 0 and minutes >= self.every_minutes, all=False)
        is_last = trainer.should_stop or trainer.global_step == trainer.max_steps
        if is_last or must_stop or late or steps >= self.every_steps:
            self.save(trainer)
        if must_stop and not is_last:
            self.stop(trainer)

    def save(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # a run that resumes from this checkpoint needs the curves up to this step
        trainer.save_checkpoint(self.path)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()

    def stop(self, trainer: L.Trainer) -> None:
        # All processes use the signal of highest priority, because a signal may reach only some of them.
        priority = torch.tensor(SIGNALS.index(self.signal or SIGNALS[0]), device=trainer.strategy.root_device)
        number = SIGNALS[int(trainer.strategy.reduce(priority, reduce_op="max"))]
        if self.run is not None:
            how = f"interrupted by {number.name}"
            self.run.end("interrupted", trainer.global_step, how)
            print(
                f"\n{how} after step {trainer.global_step}: the same command continues the run.",
                file=sys.stderr,
            )
        trainer.strategy.barrier("interrupted")
        if number == signal.SIGTERM and trainer.is_global_zero and slurm.means_to_go_on():
            number = signal.SIGUSR2
        handler = self.handlers.get(number)
        # Only these two: the previous handlers of SIGTERM, SIGINT and SIGHUP belong to Lightning and Python.
        if number in (signal.SIGUSR1, signal.SIGUSR2) and callable(handler):
            try:
                handler(number, None)
            except Exception as error:
                raise UserError(f"interrupted by {number.name} after the checkpoint was saved: {error}") from error
        # Only the first process exits with 75: Lightning kills all processes if another one exits with an error code.
        sys.exit(INTERRUPTED if trainer.is_global_zero else 0)
