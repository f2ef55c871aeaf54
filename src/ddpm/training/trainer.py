"""Lightning's Trainer for a run: checked, built, and run, with its failures in plain words."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ddpm.config import build
from ddpm.data import ImageData
from ddpm.devices import device_name
from ddpm.devices.failures import is_lost_process, is_out_of_memory, total_memory
from ddpm.errors import UserError
from ddpm.runs import Run, slurm
from ddpm.training.callbacks import LastCheckpoint, RunStatus
from ddpm.training.checkpoint_io import RunCheckpointIO
from ddpm.training.hardware import lightning_arguments, number_of_processes, quieten_lightning
from ddpm.training.module import DDPM


def check_trainer(cfg: DictConfig) -> None:
    """Look for what Lightning stumbles over when training has begun, before anything is built.

    Raises:
        UserError: an impossible count, a device that is not there, a batch that the processes cannot share.
    """
    counts = {"max_steps": -1, "max_epochs": -1, "accumulate_grad_batches": 1, "val_check_interval": 1, "num_nodes": 1}
    for name, least in counts.items():
        value = cfg.trainer[name]
        if value is not None and not (isinstance(value, int) and value >= least):
            raise UserError(f"trainer.{name}={value} must be a whole number, at least {least}.")
    processes = number_of_processes(cfg.trainer)
    if cfg.data.batch_size % processes:
        raise UserError(f"data.batch_size={cfg.data.batch_size} must be divisible by the {processes} processes.")
    if cfg.optimizer.algorithm.get("fused") and cfg.trainer.precision == "16-mixed":
        raise UserError(
            "optimizer.algorithm.fused=true unscales the gradients of trainer.precision=16-mixed itself, after they "
            "were clipped: leave it out, or take bf16-mixed."
        )


def steps_to_make(trainer: DictConfig, data: ImageData) -> int:
    """Optimizer steps until `max_steps` or, of the data's epochs, `max_epochs`, whichever comes first.

    Raises:
        UserError: neither is set, or there is nothing to do.
    """
    limits = []
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    if trainer.max_epochs not in (-1, None):
        limits.append(trainer.max_epochs * data.num_batches // trainer.accumulate_grad_batches)
    if not limits:
        raise UserError("set trainer.max_steps or trainer.max_epochs: without a limit training would not end.")
    if min(limits) < 1:
        raise UserError("trainer.max_steps and trainer.max_epochs must be at least 1, or -1 for no limit.")
    return int(min(limits))


def build_trainer(
    cfg: DictConfig, callbacks: list[L.Callback], data: ImageData, run: Run | None, resumed_step: int
) -> L.Trainer:
    """The Trainer; `run` is None in the processes that do not write, all but the first."""
    quieten_lightning()
    ours: list[L.Callback] = [] if run is None else [RunStatus(run, data.num_batches)]
    logger = False
    if cfg.logger:
        is_tensorboard = cfg.logger._target_.endswith("TensorBoardLogger")
        # What a run that was killed logged after its last checkpoint, or before its first, is logged again.
        logger = build(cfg.logger, **({"purge_step": resumed_step} if is_tensorboard else {}))
    plugins: list[Any] = [] if run is None else [RunCheckpointIO(run)]
    try:
        ours.append(LastCheckpoint(cfg.paths.run, run, **cfg.checkpoint))
        if slurm.is_task():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # LastCheckpoint heeds the signals
            # Lightning leaves this out here, and each process would train alone.
            plugins[-1].validate_settings(cfg.trainer.devices, cfg.trainer.num_nodes)
        trainer: L.Trainer = build(cfg.trainer, _partial_=True)(
            max_steps=steps_to_make(cfg.trainer, data),
            max_epochs=-1,
            **lightning_arguments(cfg.trainer),
            callbacks=callbacks + ours,
            logger=logger,
            plugins=plugins,
            default_root_dir=cfg.paths.run,
            use_distributed_sampler=False,  # the data's own sampler knows the ranks
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}") from error
    return trainer


def speed_up(model: DDPM, channels_last: bool, compiled: bool) -> None:
    """Let both networks compute in another memory format, or compiled (in place: their weights keep their names)."""
    for network in (model.network, model.ema.module):
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compiled:
            network.compile()


def fit(trainer: L.Trainer, model: DDPM, data: ImageData, checkpoint: Path | None) -> None:
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the moving average is meant to be
        "Checkpoint directory .* exists and is not empty",  # a run that goes on
        ".*LeafSpec",  # Lightning's own, and so is the next
        "torch.distributed.nn.functional.all_gather is deprecated",
        "Grad strides do not match bucket view strides",  # 1×1 convolutions in DDP: slower by a hair
    ):
        warnings.filterwarnings("ignore", message)
    try:
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            problem = out_of_memory(trainer, model, data)
        elif trainer.world_size > 1 and is_lost_process(error):
            problem = "another process of this run has ended, see above for its reason. The same command goes on."
        else:
            raise
    else:
        return
    raise UserError(problem)  # out here, as a traceback would keep the tensors of the failed step


def out_of_memory(trainer: L.Trainer, model: DDPM, data: ImageData) -> str:
    """What was too large, and what can be made smaller."""
    device = trainer.strategy.root_device
    parameters = sum(p.numel() for p in model.network.parameters())
    images = data.batch_size // trainer.world_size
    shape = "×".join(map(str, model.image_shape))
    return (
        f"out of memory on {device_name(device)} ({total_memory(device) / 2**30:.1f} GiB), with a network of "
        f"{parameters:,} weights and, in each process, batches of {images} images of {shape} in {trainer.precision}. "
        "Lower data.batch_size (trainer.accumulate_grad_batches makes a step of several), or model.channels, "
        "or take more devices."
    )
