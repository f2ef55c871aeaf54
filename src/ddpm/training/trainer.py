"""Build Lightning's Trainer for a run, train, and report known failures as UserErrors."""

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
from ddpm.training.hardware import (
    check_tasks,
    cluster_environment,
    lightning_arguments,
    number_of_processes,
    prepare_process,
)
from ddpm.training.module import DDPM
from ddpm.training.trainer_options import in_batches


def build_trainer(cfg: DictConfig, callbacks: Sequence[L.Callback], data: ImageData) -> L.Trainer:
    """Return the Trainer of a run. The Trainer writes nothing until `connect` gives it the run's directory.

    Raises:
        UserError: Lightning does not accept a setting.
    """
    prepare_process()
    # With `trainer.deterministic`, torch would also fill new memory with NaN, which is slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    check_tasks(cfg.trainer)
    try:
        ours = [RunStatus(data.num_batches), LastCheckpoint(cfg.paths.run, **cfg.checkpoint)]
        plugins = cluster_environment()
        for plugin in plugins:  # without this check, wrong settings would let each process train alone
            devices = number_of_processes(cfg.trainer) // cfg.trainer.num_nodes
            plugin.validate_settings(devices, cfg.trainer.num_nodes)
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
    """Give the Trainer its loggers, and give its callbacks and checkpoint writer the run.

    Args:
        run: None in all processes except the first, which alone writes to the run's directory.
    """
    trainer.loggers = list(loggers)
    if run is None:
        return
    trainer.strategy.checkpoint_io = RunCheckpointIO(run)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, (RunStatus, LastCheckpoint)):
            callback.run = run


def speed_up(model: DDPM, channels_last: bool, compiled: bool) -> None:
    """Set the memory format of the network and its average, and compile both in place.

    Compiling in place keeps the names of the parameters, so checkpoints do not depend on it.
    """
    for network in (model.network, model.ema.module):
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compiled:
            network.compile()


EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the moving average is always in evaluation mode
    "Checkpoint directory .* exists and is not empty",  # when a run resumes
    "Experiment logs directory .* exists and is not empty",  # the same, from CSVLogger
    ".*LeafSpec",  # a FutureWarning that Lightning's own code causes
    "torch.distributed.nn.functional.all_gather is deprecated",  # also from Lightning's own code
    r"Detected call of `lr_scheduler.step\(\)` before",  # 16-mixed skips steps until the gradient scale is low enough
    "Grad strides do not match bucket view strides",  # 1×1 convolutions in DDP; the effect on speed is small
)
"""regular expressions of messages, because the categories of these warnings are too general to filter by"""


def ignore_expected_warnings() -> None:
    """Ignore the warnings in `EXPECTED_WARNINGS`, which need no action from the user."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def fit(trainer: L.Trainer, model: DDPM, data: ImageData, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from step 0 if `checkpoint` is None.

    Raises:
        UserError: Lightning does not accept a setting, memory runs out, another process of the run or a data worker has
            ended, or DDP or anomaly detection reports an error.
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
                "the data workers have ended or could not start. Check the free memory and the size of /dev/shm, or "
                "set data.num_workers=0 to load data without worker processes."
            )
        elif "returned nan values in its" in str(error):
            problem = f"{error} trainer.detect_anomaly=true found this NaN. The traceback of the forward call is above."
        else:
            raise
    else:
        return
    raise UserError(problem)  # not inside `except`: the traceback would keep the tensors of the failed step in memory


def unused_weights(model: DDPM) -> str:
    """Return an error message that names the weights without a gradient. DDP needs a gradient for every weight."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    return (
        f"the loss does not use these weights: {', '.join(names[:5]) or 'none in the first process'}"
        f"{' …' if len(names) > 5 else ''}. With several processes, remove these weights or set requires_grad=False."
    )


def out_of_memory(trainer: L.Trainer, model: DDPM, data: ImageData) -> str:
    """Return an error message with the sizes of device, network and batch, and the settings that save memory."""
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

    The state is "pruned" if the pruning callback of a search ended the run; the reason is the callback's attribute
    `pruning_reason`. The state is "finished" if trainer.max_time ended the run, because a larger limit continues the
    run. The state is "stopped" if any other callback, such as EarlyStopping, ended the run; the run does not continue.
    """
    if trainer.global_step >= trainer.max_steps:
        return None
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if reason := getattr(callback, "pruning_reason", None):
            return "pruned", str(reason)
    left = [seconds for c in callbacks if isinstance(c, Timer) and (seconds := c.time_remaining()) is not None]
    if left and min(left) <= 0:
        return "finished", f"the time in trainer.max_time is used up at step {trainer.global_step}"
    messages = [str(message) for c in callbacks if (message := getattr(c, "stopping_reason_message", None))]
    return "stopped", " ".join(messages) or f"a callback ended the run at step {trainer.global_step}"
