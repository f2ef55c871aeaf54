"""`ddpm train`: train a model, or continue a run that was stopped."""

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig, OmegaConf

from ddpm.commands import display
from ddpm.commands import report as report_command
from ddpm.commands.command import Plan
from ddpm.config import build, leaves, override
from ddpm.data import Augmentation, ImageData
from ddpm.devices import device_name
from ddpm.errors import UserError
from ddpm.runs import (
    SWEPT_KEYS,
    Run,
    check_same_config,
    find_checkpoint,
    is_locked,
    load_checkpoint,
    log_to,
    overrides_with_effect,
    run_directory,
    slurm,
    task_overrides,
    write_config,
    write_provenance,
)
from ddpm.secrets import mask_values
from ddpm.training.building import build_model
from ddpm.training.callbacks import SamplePictures
from ddpm.training.hardware import is_first_process, runs_elsewhere
from ddpm.training.loggers import build_loggers, check_loggers, log_config, log_swept, logger_nodes
from ddpm.training.module import DDPM
from ddpm.training.overview import summary, swept_settings
from ddpm.training.trainer import (
    build_trainer,
    connect,
    fit,
    ignore_expected_warnings,
    speed_up,
    why_stopped,
)
from ddpm.training.trainer_options import check_callbacks, check_decay, check_trainer, limit_epochs, steps_to_make
from ddpm.training.weights import start_from


def run(cfg: DictConfig) -> float | None:
    """Train until `trainer.max_steps` or `trainer.max_epochs`. A run that was stopped resumes from its checkpoint.

    Returns:
        The variational bound on the validation images in bits/dim, which a search minimises. None in all processes
        except the first.

    Raises:
        UserError: the settings contradict each other, the data is missing, the directory holds a run with another
            config, or another process trains in the directory.
    """
    job = prepare(cfg)
    if not is_first_process():
        train_along(cfg, job)
        return None
    if cfg.restart and job.directory.exists():
        set_aside(job.directory)
    with Run.open(job.directory) as run:
        train(cfg, job, run)
        return run.read_metrics().get("val/bpd")


def plan(cfg: DictConfig) -> Plan:
    """Check the config and the data, and return what `run` would do. Writes nothing into the run's directory.

    Raises:
        UserError: a setting or the data is invalid. If another process trains in the directory, the plan says so.
    """
    job = prepare(cfg)
    return plan_training(job.directory, steps_to_make(cfg.trainer, job.data), cfg.restart)


def after_sweep(cfg: DictConfig, plans: Sequence[Plan]) -> None:
    """Show the table of all jobs."""
    report_command.show([plan.directory for plan in plans])


class Job(NamedTuple):
    """The objects of a run, built and checked before anything is written into its directory."""

    directory: Path
    config: dict[str, Any]
    """the resolved config with masked secrets, for the records of the run"""
    model: DDPM
    data: ImageData
    trainer: L.Trainer | None
    """None if the job is only checked here and will run on another machine with other devices"""
    left_out: list[str]
    """what `init_from` did not take, in lines"""


# Plan ---------------------------------------------------------------------------------------------------------------


def prepare(cfg: DictConfig) -> Job:
    """Build the objects of a run and check all settings. Writes nothing into the run's directory.

    Raises:
        UserError: the run would be refused.
    """
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    overrides = overrides_with_effect("train", not_identity=cfg.not_identity)
    directory = run_directory("train", cfg.paths.outputs, overrides, experiment, cfg.not_identity, cfg.name)
    cfg.paths.run = str(directory)
    cfg.restart = cfg.restart and not slurm.is_requeued()  # else a preempted job would restart each time
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]

    check_trainer(cfg)
    check_loggers(config["logger"])
    check_places(config, directory)
    model = build_model(config)
    config = mask_values(config)  # after the model is built from the real values
    is_new = cfg.restart or not Run.read(directory).list_checkpoints()
    left_out: list[str] = []
    if cfg.init_from_partial and cfg.init_from is None:
        raise UserError("init_from_partial=true has an effect only with init_from=CKPT.")
    if cfg.init_from is not None and is_new:
        left_out = start_from(model, find_checkpoint(cfg.init_from), cfg.init_from_partial)
    if is_new:  # a finished run may have lost its teacher
        model.objective.check(model)
    check_optimizer(model)
    data: ImageData = build(cfg.data, ImageData)
    data.augmentation = None if cfg.augmentation is None else build(cfg.augmentation, Augmentation)
    data.prepare_data()
    data.setup("fit")
    check_augmentation(data)
    check_number_of_classes(model, data)
    limit_epochs(cfg.trainer, data)
    check_decay(cfg, steps_to_make(cfg.trainer, data))

    nodes = {name: node for name, node in (cfg.callbacks or {}).items() if node is not None}
    callbacks = {name: build(node, L.Callback) for name, node in nodes.items()}
    check_callbacks(nodes, callbacks)
    for callback in callbacks.values():
        if isinstance(callback, SamplePictures):
            model.check_sampler(callback.sampler)
    trainer = None if runs_elsewhere() else build_trainer(cfg, list(callbacks.values()), data)
    if not cfg.restart:
        check_same_config(directory, config, cfg.not_identity)
    return Job(directory, config, model, data, trainer, left_out)


def plan_training(directory: Path, max_steps: int, restart: bool = False) -> Plan:
    """Return what training in `directory` up to `max_steps` optimizer steps would do. Changes no file."""

    def will(what: str, is_done: bool = False) -> Plan:
        return Plan(directory, what, is_done, max_steps)

    if is_locked(directory):
        return will("refused: another process trains in this directory")
    run = Run.read(directory)
    if restart and directory.exists():
        return will("move the existing run aside, and start from step 0")
    if not run.list_checkpoints():
        return will("start from step 0 (it failed before)" if run.status.state == "failed" else "start")
    if run.is_finished(max_steps) and is_finished(run, step_of(run.checkpoint_to_resume()), max_steps):
        reason = f": {run.status.error}" if run.status.error else ""
        return will(f"nothing: it is {run.status.state}, {run.status.step} steps{reason}", is_done=True)
    return will(f"continue from its last checkpoint ({run.status.state} at step {run.status.step})")


def check_places(config: Mapping[str, Any], directory: Path) -> None:
    """Raise a UserError if a callback or a logger would write outside the run's directory."""
    for part in ("callbacks", "logger"):
        for key, value in leaves(config[part] or {}):
            path = Path(value) if isinstance(value, str) else Path()
            if ".." in path.parts or (path.is_absolute() and not path.is_relative_to(directory.absolute())):
                raise UserError(f"{part}.{key}={value} lies outside the run's directory, {directory}.")


def check_number_of_classes(model: DDPM, data: ImageData) -> None:
    """Raise a UserError if a class-conditional model has another number of classes than the data."""
    if model.num_classes not in (None, data.num_classes):
        raise UserError(
            f"model.num_classes={model.num_classes}, but the data has {data.num_classes} classes: "
            f"set model.num_classes={data.num_classes}, or null for a model without labels."
        )


def check_augmentation(data: ImageData) -> None:
    """Raise a UserError if the augmentation fails for an image of the data's shape."""
    if (augmentation := data.augmentation) is not None:
        try:
            image = torch.zeros(1, *data.image_shape, dtype=torch.uint8)
            augmentation.apply(image, augmentation.draw(1, torch.Generator()))
        except Exception as error:  # an augmentation of the user's own may raise any error
            raise UserError(f"augmentation: {error}") from error


def check_optimizer(model: DDPM) -> None:
    """Raise a UserError if the optimizer refuses its settings. Lightning would find this only when training starts."""
    try:
        model.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer: {error}") from error


# Build and fit ------------------------------------------------------------------------------------------------------


def train(cfg: DictConfig, job: Job, run: Run) -> None:
    """Train in the directory of `run`, unless the run is finished. Only the first process calls this function."""
    directory, config, model, data, trainer, left_out = job
    assert trainer is not None
    checkpoint = run.checkpoint_to_resume(warn=display.console.print)
    step = step_of(checkpoint)
    if is_finished(run, step, trainer.max_steps):
        report(run, f"already {run.status.state}" + (f": {run.status.error}" if run.status.error else ""))
        return

    with log_to(directory / "log.txt"):
        run.status.state = "running"  # status.json shows it after the first batch
        ignore_expected_warnings()
        text = write_config(directory, config)
        write_provenance(directory, device_name(trainer.strategy.root_device), overrides=task_overrides())
        connect(trainer, run, build_loggers(cfg.logger, run, step))
        for logger in trainer.loggers:
            log_config(logger, config, text, step)
            if swept := swept_settings(config):
                log_swept(logger, swept)
        display.console.print(f"{f'Continuing from step {step}' if checkpoint else 'Training'}: {directory}")
        display.console.print(*left_out, *summary(cfg, model, trainer), sep="\n")
        speed_up(model, cfg.channels_last, cfg.compile)

        try:
            fit(trainer, model, data, checkpoint)
        except OSError:
            run.check_ours()  # if the directory was deleted, raise this more helpful error
            raise
        except UserError as error:
            run.end("failed", trainer.global_step, str(error))
            raise
        state, reason = why_stopped(trainer) or ("finished", None)
        run.end(state, trainer.global_step, reason)
    report(run, f"{state}: {reason}" if reason else state)


def train_along(cfg: DictConfig, job: Job) -> None:
    """Train together with the first process, without writing files: only the first process writes."""
    run, trainer = Run.read(job.directory), job.trainer
    assert trainer is not None
    checkpoint = None if cfg.restart else run.checkpoint_to_resume()
    if is_finished(run, step_of(checkpoint), trainer.max_steps):
        return
    ignore_expected_warnings()
    connect(trainer, None, [DummyLogger() for _ in logger_nodes(cfg.logger)])
    speed_up(job.model, cfg.channels_last, cfg.compile)
    fit(trainer, job.model, job.data, checkpoint)


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer step of a checkpoint, or 0 if there is no checkpoint."""
    return load_checkpoint(checkpoint)["global_step"] if checkpoint else 0


def is_finished(run: Run, step: int, max_steps: int) -> bool:
    """Return whether the run is complete. `step` is the step of its newest intact checkpoint."""
    return run.is_finished(max_steps) and step >= min(run.status.step, max_steps)


def set_aside(directory: Path) -> None:
    """Rename a run's directory, unless a process trains in it."""
    with Run.open(directory):
        directory.rename(directory.with_name(f"{directory.name}.before-{datetime.now():%Y%m%d-%H%M%S}"))


def report(run: Run, how: str) -> None:
    """Print the metrics of a run that has ended. Outside a sweep, also print its files and the commands to try next."""
    metrics = run.read_metrics()
    shown = {name: metrics[name] for name in metrics if name in ("step", "train/loss") or name.startswith("val/")}
    display.metrics_table(f"{run.directory}: {how}", shown)
    if os.environ.get(SWEPT_KEYS):
        return  # a sweep shows all its jobs in one table at the end
    pictures = sorted((run.directory / "samples").glob("samples-*.png"))[-1:]
    ckpt = override("ckpt", run.directory)
    display.results(
        run.directory,
        [f"samples/{path.name}" for path in pictures] + [f"checkpoints/{path.name}" for path in run.list_checkpoints()],
        [
            f"ddpm sample {ckpt}",
            f"ddpm evaluate {ckpt}",
            f"ddpm denoise {ckpt}",
            f"tensorboard --logdir {shlex.quote(str(run.directory))}",
        ],
    )
