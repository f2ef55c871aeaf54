"""Lightning's Trainer for a run: its settings are checked, it is built, and it trains."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ddpm.config import build
from ddpm.data import ImageData
from ddpm.devices import device_name
from ddpm.devices.failures import is_lost_process, is_out_of_memory, total_memory
from ddpm.errors import UserError
from ddpm.runs import Run, slurm
from ddpm.runs.status import State
from ddpm.training.callbacks import LastCheckpoint, RunStatus
from ddpm.training.checkpoint_io import RunCheckpointIO
from ddpm.training.hardware import lightning_arguments, quieten_lightning
from ddpm.training.module import DDPM
from ddpm.training.trainer_options import in_batches


def build_trainer(cfg: DictConfig, callbacks: Sequence[L.Callback], data: ImageData) -> L.Trainer:
    """Build the Trainer of a run. It writes nothing until `connect` gives it the run's directory.

    Raises:
        UserError: a setting that Lightning refuses.
    """
    quieten_lightning()
    plugins: list[Any] = []
    try:
        ours = [RunStatus(data.num_batches), LastCheckpoint(cfg.paths.run, **cfg.checkpoint)]
        if slurm.is_task():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # LastCheckpoint handles the signals
            # Lightning does not check this here; each process would then train alone.
            plugins[-1].validate_settings(cfg.trainer.devices, cfg.trainer.num_nodes)
        trainer: L.Trainer = build(cfg.trainer, _partial_=True)(
            **in_batches(cfg.trainer, data),
            **lightning_arguments(cfg.trainer),
            callbacks=[*callbacks, *ours],
            logger=False,
            plugins=plugins,
            default_root_dir=cfg.paths.run,
            use_distributed_sampler=False,  # the data's own sampler knows the ranks
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}") from error
    return trainer


def connect(trainer: L.Trainer, run: Run | None, loggers: Sequence[Logger]) -> None:
    """Let the Trainer write: to the loggers, and into the run's directory unless `run` is None.

    Only the first process has a `run`.
    """
    trainer.loggers = list(loggers)
    if run is None:
        return
    trainer.strategy.checkpoint_io = RunCheckpointIO(run)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, (RunStatus, LastCheckpoint)):
            callback.run = run


def speed_up(model: DDPM, channels_last: bool, compiled: bool) -> None:
    """Set the memory format of both networks, and compile them in place: the names of their weights stay."""
    for network in (model.network, model.ema.module):
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compiled:
            network.compile()


EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the moving average is always in evaluation mode
    "Checkpoint directory .* exists and is not empty",  # a run that continues
    "Experiment logs directory .* exists and is not empty",  # the same, by CSVLogger
    ".*LeafSpec",  # a FutureWarning that Lightning's own code causes, like the next
    "torch.distributed.nn.functional.all_gather is deprecated",
    r"Detected call of `lr_scheduler.step\(\)` before",  # 16-mixed leaves out the first steps until it has a scale
    "Grad strides do not match bucket view strides",  # 1×1 convolutions in DDP: slightly slower
)
"""patterns of messages; Lightning and torch give these warnings no category of their own"""


def expect_warnings() -> None:
    """Hide the warnings that say nothing to the user of a run."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def fit(trainer: L.Trainer, model: DDPM, data: ImageData, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the start if it is None.

    Raises:
        UserError: Lightning refuses a setting, the memory is too small, or another process of the run has ended.
    """
    try:
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            problem = out_of_memory(trainer, model, data)
        elif trainer.world_size > 1 and is_lost_process(error):
            problem = "another process of this run has ended; its message is above. The same command continues."
        elif "returned nan values in its" in str(error):
            problem = f"{error} trainer.detect_anomaly=true found this. The forward call is above."
        else:
            raise
    else:
        return
    raise UserError(problem)  # outside the `except`: a traceback would keep the tensors of the failed step


def out_of_memory(trainer: L.Trainer, model: DDPM, data: ImageData) -> str:
    """Return a message that says what was too large and what can be made smaller."""
    device = trainer.strategy.root_device
    parameters = sum(p.numel() for p in model.network.parameters())
    images = data.batch_size // trainer.world_size
    shape = "×".join(map(str, model.image_shape))
    return (
        f"out of memory on {device_name(device)} ({total_memory(device) / 2**30:.1f} GiB), with a network of "
        f"{parameters:,} weights and, in each process, batches of {images} images of {shape} in {trainer.precision}. "
        "Lower data.batch_size (trainer.accumulate_grad_batches adds up several batches to a step) or model.channels, "
        "or use more devices."
    )


def why_stopped(trainer: L.Trainer) -> tuple[State, str] | None:
    """Return how a callback ended the training before its last step, and why. None if it made all its steps.

    The reason of a search's pruning is its callback's attribute `reason`: the run is "pruned". A time limit can be
    raised: the run is "finished", and continues with a later limit. Any other callback, as EarlyStopping, stops the
    run for good: it is "stopped".
    """
    if trainer.global_step >= trainer.max_steps:
        return None
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if reason := getattr(callback, "reason", None):
            return "pruned", str(reason)
    left = [seconds for c in callbacks if isinstance(c, Timer) and (seconds := c.time_remaining()) is not None]
    if left and min(left) <= 0:
        return "finished", f"the time in trainer.max_time is used up at step {trainer.global_step}"
    messages = [str(message) for c in callbacks if (message := getattr(c, "stopping_reason_message", None))]
    return "stopped", " ".join(messages) or f"a callback ended the run at step {trainer.global_step}"
