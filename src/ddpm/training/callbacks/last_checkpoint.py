"""The checkpoint from which a run goes on, and how a run is asked to stop."""

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
from lightning.pytorch.loggers import TensorBoardLogger

from ddpm.data.batches import batches_done
from ddpm.errors import UserError
from ddpm.runs import slurm
from ddpm.runs.run import LAST, Run
from ddpm.runs.status import INTERRUPTED

# Of several, the last of these counts: the one whose handler can do most for the run.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every `every_steps` optimizer steps or `every_minutes`, at the end, and when asked to stop.

    SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGUSR2 ask: the step is finished, the checkpoint written, and the process
    exits with 75. A second Ctrl-C stops at once. Who had a handler for SIGUSR1 or SIGUSR2 gets the signal before the
    exit: submitit, which puts the job back into Slurm's queue. SIGTERM as Slurm's warning counts as SIGUSR2.

    A step whose validation is due is saved after that, so that a run that goes on from it has not skipped it. For
    this it must stand behind the callbacks that act on validation (Lightning puts every `Checkpoint` behind the
    others).

    Args:
        directory: the run's.
        run: None in the processes that do not write, all but the first.
    """

    def __init__(self, directory: str | Path, run: Run | None, every_steps: int, every_minutes: float):
        if not (every_steps >= 1 and every_minutes > 0):
            raise ValueError(f"{every_steps=} must be 1 or more, and {every_minutes=} above 0.")
        self.path = Path(directory) / "checkpoints" / LAST
        self.run = run
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.signal: signal.Signals | None = None
        self.handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.ask_to_stop) for number in SIGNALS}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = max(self.signal or SIGNALS[0], signal.Signals(number), key=SIGNALS.index)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        batches = batches_done(trainer)
        in_step = batches % trainer.accumulate_grad_batches != 0
        validates = trainer.enable_validation and batches % (trainer.val_check_batch or 1) == 0
        if not in_step and not validates:
            self.save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self.save(trainer)

    def save_if_due(self, trainer: L.Trainer) -> None:
        # Signals and clocks are each process's own, and all must save together.
        stop = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        steps = trainer.global_step - self.saved_step
        minutes = (time.monotonic() - self.saved_time) / 60
        late = trainer.strategy.reduce_boolean_decision(steps > 0 and minutes >= self.every_minutes, all=False)
        if stop or late or steps >= self.every_steps or trainer.global_step == trainer.max_steps:
            self.save(trainer)
        if stop and trainer.global_step != trainer.max_steps:  # else it ends by itself
            self.stop(trainer)

    def save(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()  # a run that goes on from here has the curves up to here
        trainer.save_checkpoint(self.path)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()

    def stop(self, trainer: L.Trainer) -> None:
        # One process may have heard of it before the others.
        place = torch.tensor(SIGNALS.index(self.signal or SIGNALS[0]), device=trainer.strategy.root_device)
        number = SIGNALS[int(trainer.strategy.reduce(place, reduce_op="max"))]
        if self.run is not None:
            how = f"interrupted by {number.name}"
            self.run.end("interrupted", trainer.global_step, how)
            print(
                f"\n{how} after step {trainer.global_step}: the same command goes on from there.",
                file=sys.stderr,
            )
        trainer.strategy.barrier("interrupted")
        if number == signal.SIGTERM and trainer.is_global_zero and slurm.means_to_go_on():
            number = signal.SIGUSR2
        handler = self.handlers.get(number)
        if number in (signal.SIGUSR1, signal.SIGUSR2) and callable(handler):  # the others' are Lightning's and Python's
            try:
                handler(number, None)
            except Exception as error:
                raise UserError(f"interrupted by {number.name}, and saved: {error}") from error
        # Lightning kills everything where another process than the first ends with an error.
        sys.exit(INTERRUPTED if trainer.is_global_zero else 0)
