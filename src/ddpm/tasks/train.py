"""`ddpm train`: train a model, or go on with a run that was stopped."""

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ddpm.callbacks import LastCheckpoint, RunStatus, SamplePictures, SweptHyperparameters
from ddpm.configs import build
from ddpm.data import ImageData
from ddpm.devices import device_name, resolve_precision
from ddpm.devices.failures import is_lost_process, is_out_of_memory, total_memory
from ddpm.errors import UserError
from ddpm.module import DDPM
from ddpm.runs import (
    SWEPT_KEYS,
    Outlook,
    Run,
    check_same_config,
    find_checkpoint,
    leaves,
    load_checkpoint,
    log_to,
    outlook_of_run,
    run_directory,
    task_overrides,
    write_config,
    write_provenance,
)
from ddpm.runs.checkpoint_io import RunCheckpointIO
from ddpm.tasks import display
from ddpm.tasks import report as compared_runs


class Prepared(NamedTuple):
    """All that a run needs, built and checked, with nothing written yet."""

    directory: Path
    config: dict[str, Any]
    model: DDPM
    data: ImageData
    callbacks: list[L.Callback]


def run(cfg: DictConfig) -> float | None:
    """Train until `trainer.max_steps` or `trainer.max_epochs`; a run that was stopped goes on where it was.

    Returns the bound on the validation images in bits/dim, which a search minimises.

    Raises:
        UserError: settings that do not go together, data that is not there, a directory that holds a run of another
            config or that another process trains in.
    """
    prepared = prepare(cfg)
    directory, config, model, data, callbacks = prepared
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        # The first process has the directory, and has started this one.
        checkpoint = Run.read(directory).newest_intact_checkpoint()
        fit(build_trainer(cfg, callbacks, data, run=None, resumed_step=0), model, data, checkpoint)
        return None
    if not cfg.restart:
        check_same_config(directory, config, cfg.not_identity)
    elif directory.exists():
        build_trainer(cfg, callbacks, data, run=None, resumed_step=0)  # what it refuses leaves the old run in place
        set_aside(directory)
    with Run.open(directory) as run:
        train(cfg, prepared, run)
        return run.read_metrics().get("val/bpd")


def outlook(cfg: DictConfig) -> Outlook:
    """What `run` would do, with all checks made that need no directory.

    Raises:
        UserError: the run would be refused.
    """
    directory, config, _, data, _ = prepare(cfg)
    if not cfg.restart:
        check_same_config(directory, config, cfg.not_identity)
    return outlook_of_run(directory, steps_to_make(cfg.trainer, data), cfg.restart)


def after_sweep(cfg: DictConfig, directories: Sequence[Path]) -> None:
    """Show the table of all jobs."""
    compared_runs.show(directories)


def prepare(cfg: DictConfig) -> Prepared:
    """Build what can be wrong, before anything is written."""
    directory = directory_of(cfg)
    cfg.paths.run = str(directory)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]

    check_trainer(cfg.trainer)
    check_places(config, directory)
    model = DDPM.from_config(config)
    begins = cfg.restart or not Run.read(directory).list_checkpoints()
    if cfg.init_from is not None and begins:
        model.load_weights(find_checkpoint(cfg.init_from))
    check_optimizer(model)
    data: ImageData = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    steps_to_make(cfg.trainer, data)

    callbacks = [build(callback) for callback in (cfg.callbacks or {}).values() if callback is not None]
    for callback in callbacks:
        if isinstance(callback, SamplePictures):
            model.check_sampler(callback.sampler)
    return Prepared(directory, config, model, data, callbacks)


def train(cfg: DictConfig, prepared: Prepared, run: Run) -> None:
    """Train in the directory that is open as `run`, unless nothing is left to do."""
    directory, config, model, data, callbacks = prepared
    if hyperparameters := swept_hyperparameters(config):
        callbacks.append(SweptHyperparameters(hyperparameters))
    checkpoint = run.newest_intact_checkpoint(warn=display.console.print)
    step = load_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    trainer = build_trainer(cfg, callbacks, data, run, step)
    if run.status.state == "finished" and step >= trainer.max_steps:
        report(run, "finished before")
        return

    with log_to(directory / "log.txt"):
        text = write_config(directory, config)
        write_provenance(directory, device_name(trainer.strategy.root_device))
        if checkpoint is None:
            for logger in tensorboards(trainer):
                logger.experiment.add_text("config", f"```yaml\n{text}```")
        parameters = sum(p.numel() for p in model.network.parameters())
        verb = f"Continuing from step {step}" if checkpoint else "Training"
        display.console.print(f"{verb}: {directory} ({parameters:,} parameters, {trainer.precision})")
        try:
            fit(trainer, model, data, checkpoint)
        except UserError as error:
            run.end("failed", trainer.global_step, str(error))
            raise
        run.end("finished", trainer.global_step)
    report(run, "finished")


def swept_hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """What this run has under the keys that its sweep varies: a value, or the name chosen from a group."""
    keys = [key for key in os.environ.get(SWEPT_KEYS, "").split(",") if key]
    values = OmegaConf.create({"config": dict(config)})
    choices = HydraConfig.get().runtime.choices
    return {key: choices[key] if key in choices else OmegaConf.select(values, f"config.{key}") for key in keys}


def fit(trainer: L.Trainer, model: DDPM, data: ImageData, checkpoint: Path | None) -> None:
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the moving average is meant to be
        "Checkpoint directory .* exists and is not empty",  # a run that goes on
        ".*LeafSpec",  # Lightning's own
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


def build_trainer(
    cfg: DictConfig, callbacks: list[L.Callback], data: ImageData, run: Run | None, resumed_step: int
) -> L.Trainer:
    """The Trainer; `run` is None in the processes that do not write, all but the first."""
    display.quieten_lightning()
    ours: list[L.Callback] = [] if run is None else [RunStatus(run, data.num_batches)]
    logger = False
    if cfg.logger:
        is_tensorboard = cfg.logger._target_.endswith("TensorBoardLogger")
        # What a run that was killed logged after its last checkpoint, or before its first, is logged again.
        logger = build(cfg.logger, **({"purge_step": resumed_step} if is_tensorboard else {}))
    try:
        ours.append(LastCheckpoint(cfg.paths.run, run, **cfg.checkpoint))
        trainer: L.Trainer = build(cfg.trainer, _partial_=True)(
            max_steps=steps_to_make(cfg.trainer, data),
            max_epochs=-1,
            precision=resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator),
            callbacks=callbacks + ours,
            logger=logger,
            plugins=[RunCheckpointIO(run)] if run is not None else None,
            default_root_dir=cfg.paths.run,
            use_distributed_sampler=False,  # the data's own sampler knows the ranks
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {error}") from error
    if data.batch_size % trainer.world_size:
        raise UserError(f"data.batch_size={data.batch_size} must be divisible by the {trainer.world_size} processes.")
    return trainer


def check_trainer(trainer: DictConfig) -> None:
    """Raise a UserError for counts that Lightning takes, and stumbles over when training has begun."""
    counts = {"max_steps": -1, "max_epochs": -1, "accumulate_grad_batches": 1, "val_check_interval": 1}
    for name, least in counts.items():
        value = trainer[name]
        if value is not None and not (isinstance(value, int) and value >= least):
            raise UserError(f"trainer.{name}={value} must be a whole number, at least {least}.")
    try:
        resolve_precision(trainer.precision, trainer.accelerator)
    except ValueError as error:
        raise UserError(f"trainer: {error}") from error


def check_places(config: Mapping[str, Any], directory: Path) -> None:
    """Raise a UserError if a callback or a logger would write outside the run's directory."""
    for part in ("callbacks", "logger"):
        for key, value in leaves(config[part] or {}).items():
            path = Path(value) if isinstance(value, str) else Path()
            if ".." in path.parts or (path.is_absolute() and not path.is_relative_to(directory.absolute())):
                raise UserError(f"{part}.{key}={value} lies outside the run's directory, {directory}.")


def check_optimizer(model: DDPM) -> None:
    """Raise a UserError if the optimizer refuses its settings, which otherwise shows when training begins."""
    try:
        model.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer: {error}") from error


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


def tensorboards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def directory_of(cfg: DictConfig) -> Path:
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return run_directory("train", cfg.paths.outputs, task_overrides(), experiment, cfg.not_identity)


def set_aside(directory: Path) -> None:
    """Move a run's directory to a name that no run has, unless a process trains in it."""
    with Run.open(directory):
        directory.rename(directory.with_name(f"{directory.name}.before-{datetime.now():%Y%m%d-%H%M%S}"))


def report(run: Run, how: str) -> None:
    """Print a finished run's numbers and, unless it is one of a sweep, its files and what to do with it."""
    metrics = run.read_metrics()
    shown = {name: metrics[name] for name in metrics if name in ("step", "train/loss") or name.startswith("val/")}
    display.metrics_table(f"{run.directory}: {how}", shown)
    if os.environ.get(SWEPT_KEYS):
        return  # what comes next is the sweep's other jobs
    pictures = sorted((run.directory / "samples").glob("samples-*.png"))[-1:]
    name = shlex.quote(str(run.directory))
    display.results(
        run.directory,
        [f"samples/{path.name}" for path in pictures] + [f"checkpoints/{path.name}" for path in run.list_checkpoints()],
        [
            f"ddpm sample ckpt={name}",
            f"ddpm evaluate ckpt={name}",
            f"ddpm denoise ckpt={name}",
            f"tensorboard --logdir {name}",
        ],
    )
