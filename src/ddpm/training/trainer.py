"""Build Lightning's Trainer for a run, train with it, and turn its known failures into clear messages."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ddpm.config import build
from ddpm.data import ImageData
from ddpm.devices import device_name
from ddpm.devices.failures import is_lost_process, is_out_of_memory, total_memory
from ddpm.errors import UserError
from ddpm.runs import Run
from ddpm.runs.status import State
from ddpm.training.callbacks import LastCheckpoint, RunStatus
from ddpm.training.checkpoint_io import RunCheckpointIO
from ddpm.training.hardware import check_tasks, cluster_environment, lightning_arguments, quieten_lightning
from ddpm.training.module import DDPM
from ddpm.training.trainer_options import in_batches


def build_trainer(cfg: DictConfig, callbacks: Sequence[L.Callback], data: ImageData) -> L.Trainer:
    """Build the Trainer of a run. The Trainer writes nothing until `connect` gives it the run's directory.

    Raises:
        UserError: Lightning refuses a setting.
    """
    quieten_lightning()
    check_tasks(cfg.trainer)
    try:
        ours = [RunStatus(data.num_batches), LastCheckpoint(cfg.paths.run, **cfg.checkpoint)]
        plugins = cluster_environment()
        for plugin in plugins:  # without this check, wrong settings would let each process train alone
            plugin.validate_settings(cfg.trainer.devices, cfg.trainer.num_nodes)
        trainer: L.Trainer = build(cfg.trainer, _partial_=True)(
            **in_batches(cfg.trainer, data),
            **lightning_arguments(cfg.trainer),
            callbacks=[*callbacks, *ours],
            logger=False,
            plugins=plugins,
            default_root_dir=cfg.paths.run,
            use_distributed_sampler=False,  # `ImageData` divides the batches among the ranks
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}") from error
    return trainer


def connect(trainer: L.Trainer, run: Run | None, loggers: Sequence[Logger]) -> None:
    """Give the Trainer its loggers and, unless `run` is None, the run's directory to write checkpoints and status.

    `run` is None in all processes except the first.
    """
    trainer.loggers = list(loggers)
    if run is None:
        return
    trainer.strategy.checkpoint_io = RunCheckpointIO(run)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, (RunStatus, LastCheckpoint)):
            callback.run = run


def speed_up(model: DDPM, channels_last: bool, compiled: bool) -> None:
    """Set the memory format of the network and its average, and compile both in place, which keeps parameter names."""
    for network in (model.network, model.ema.module):
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compiled:
            network.compile()


EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the moving average is always in evaluation mode
    "Checkpoint directory .* exists and is not empty",  # when a run resumes
    "Experiment logs directory .* exists and is not empty",  # the same, from CSVLogger
    ".*LeafSpec",  # a FutureWarning; Lightning's own code causes it, and the next one too
    "torch.distributed.nn.functional.all_gather is deprecated",
    r"Detected call of `lr_scheduler.step\(\)` before",  # 16-mixed skips the first steps until it has found a scale
    "Grad strides do not match bucket view strides",  # from 1×1 convolutions in DDP; costs little speed
)
"""regular expressions for messages, because these warnings have no category of their own to filter by"""


def expect_warnings() -> None:
    """Ignore the warnings that are normal in a run and need no action from the user."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def fit(trainer: L.Trainer, model: DDPM, data: ImageData, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the start if it is None.

    Raises:
        UserError: Lightning refuses a setting, memory runs out, another process of the run or a data worker has ended,
            or DDP or anomaly detection reports an error.
    """
    try:
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            problem = out_of_memory(trainer, model, data)
        elif trainer.world_size > 1 and is_lost_process(error):
            problem = "another process of this run has ended; its message is above. The same command continues the run."
        elif "find_unused_parameters" in str(error):
            problem = unused_weights(model)
        elif data.num_workers and ("DataLoader worker" in str(error) or isinstance(error.__context__, OSError)):
            problem = (
                "the data workers have ended, or could not start: is the memory or /dev/shm too small? "
                "data.num_workers=0 needs no worker processes."
            )
        elif "returned nan values in its" in str(error):
            problem = f"{error} trainer.detect_anomaly=true found this. The traceback of the forward call is above."
        else:
            raise
    else:
        return
    raise UserError(problem)  # outside the `except`, whose traceback would keep the tensors of the failed step


def unused_weights(model: DDPM) -> str:
    """Return a message that names the weights without a gradient. DDP needs a gradient for every weight."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    return (
        f"weights that the loss does not use: {', '.join(names[:5]) or 'none in the first process'}"
        f"{' …' if len(names) > 5 else ''}. With several processes, remove these weights or set requires_grad=False."
    )


def out_of_memory(trainer: L.Trainer, model: DDPM, data: ImageData) -> str:
    """Return a message that says what was too large and what can be made smaller."""
    device = trainer.strategy.root_device
    parameters = sum(p.numel() for p in model.network.parameters())
    images = data.batch_size // trainer.world_size
    shape = "×".join(map(str, model.image_shape))
    return (
        f"out of memory on {device_name(device)} ({total_memory(device) / 2**30:.1f} GiB), with a network of "
        f"{parameters:,} weights and, in each process, batches of {images} images of {shape} in {trainer.precision}. "
        "Lower data.batch_size (trainer.accumulate_grad_batches combines several batches in a step) or model.channels, "
        "or use more devices."
    )


def why_stopped(trainer: L.Trainer) -> tuple[State, str] | None:
    """Return the final state and the reason if a callback ended the training early. None if all steps were made.

    The state is "pruned" if a search's pruning callback ended the run; the callback's attribute `reason` says why. The
    state is "finished" after a time limit, because a larger limit continues the run. The state is "stopped" after any
    other callback, such as EarlyStopping, because the run does not continue.
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
