"""`ddpm train`: train a model, or go on with a run that was stopped."""

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from ddpm.commands import display
from ddpm.commands import report as compared_runs
from ddpm.commands.command import Plan
from ddpm.config import build, leaves
from ddpm.data import ImageData
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
    run_directory,
    slurm,
    task_overrides,
    write_config,
    write_provenance,
)
from ddpm.training.building import build_model, load_weights
from ddpm.training.callbacks import SamplePictures, SweptHyperparameters
from ddpm.training.hardware import is_first_process, runs_elsewhere
from ddpm.training.module import DDPM
from ddpm.training.trainer import build_trainer, check_trainer, fit, speed_up, steps_to_make


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
    if not is_first_process():  # that one has the directory
        others = Run.read(directory)
        checkpoint = None if cfg.restart else others.newest_intact_checkpoint()
        trainer = build_trainer(cfg, callbacks, data, run=None, resumed_step=0)
        if not is_finished(others, step_of(checkpoint), trainer):
            fit(trainer, model, data, checkpoint)
        return None
    if not cfg.restart:
        check_same_config(directory, config, cfg.not_identity)
    elif directory.exists():
        build_trainer(cfg, callbacks, data, run=None, resumed_step=0)  # what it refuses leaves the old run in place
        set_aside(directory)
    with Run.open(directory) as run:
        train(cfg, prepared, run)
        return run.read_metrics().get("val/bpd")


def plan(cfg: DictConfig) -> Plan:
    """What `run` would do, with all checks made that need no directory.

    Raises:
        UserError: the run would be refused.
    """
    directory, config, _, data, callbacks = prepare(cfg)
    if not runs_elsewhere():  # on nodes that need not be like this one
        build_trainer(cfg, callbacks, data, run=None, resumed_step=0)
    if not cfg.restart:
        check_same_config(directory, config, cfg.not_identity)
    return plan_training(directory, steps_to_make(cfg.trainer, data), cfg.restart)


def plan_training(directory: Path, max_steps: int, restart: bool = False) -> Plan:
    """What training in `directory` up to `max_steps` optimizer steps would do. Touches nothing there."""

    def will(what: str, is_done: bool = False) -> Plan:
        return Plan(directory, what, is_done, max_steps)

    if is_locked(directory):
        return will("refused: another process trains there")
    run = Run.read(directory)
    if restart and directory.exists():
        return will("move the run there aside, and begin again")
    if not run.list_checkpoints():
        return will("begin again (it failed before)" if run.status.state == "failed" else "begin")
    if run.is_finished(max_steps):
        return will(f"nothing: it is finished, {run.status.step} steps", is_done=True)
    return will(f"go on from its last checkpoint ({run.status.state} at step {run.status.step})")


def after_sweep(cfg: DictConfig, plans: Sequence[Plan]) -> None:
    """Show the table of all jobs."""
    compared_runs.show([plan.directory for plan in plans])


def prepare(cfg: DictConfig) -> Prepared:
    """Build what can be wrong, before anything is written."""
    directory = directory_of(cfg)
    cfg.paths.run = str(directory)
    cfg.restart = cfg.restart and not slurm.is_requeued()  # else a preempted job would begin again each time
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]

    check_trainer(cfg)
    check_places(config, directory)
    model = build_model(config)
    begins = cfg.restart or not Run.read(directory).list_checkpoints()
    if cfg.init_from is not None and begins:
        load_weights(model, find_checkpoint(cfg.init_from))
    check_optimizer(model)
    data: ImageData = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    steps_to_make(cfg.trainer, data)

    callbacks = [build(callback) for callback in (cfg.callbacks or {}).values() if callback is not None]
    for callback in callbacks:
        if isinstance(callback, SamplePictures):
            model.check_sampler(callback.sampler)
    speed_up(model, cfg.channels_last, cfg.compile)
    return Prepared(directory, config, model, data, callbacks)


def train(cfg: DictConfig, prepared: Prepared, run: Run) -> None:
    """Train in the directory that is open as `run`, unless nothing is left to do."""
    directory, config, model, data, callbacks = prepared
    if hyperparameters := swept_hyperparameters(config):
        callbacks.append(SweptHyperparameters(hyperparameters))
    checkpoint = run.newest_intact_checkpoint(warn=display.console.print)
    step = step_of(checkpoint)
    trainer = build_trainer(cfg, callbacks, data, run, step)
    if is_finished(run, step, trainer):
        report(run, "finished before")
        return

    with log_to(directory / "log.txt"):
        text = write_config(directory, config)
        write_provenance(directory, device_name(trainer.strategy.root_device), overrides=task_overrides())
        if checkpoint is None:
            for logger in tensorboards(trainer):
                logger.experiment.add_text("config", f"```yaml\n{text}```")
        parameters = sum(p.numel() for p in model.network.parameters())
        verb = f"Continuing from step {step}" if checkpoint else "Training"
        display.console.print(f"{verb}: {directory} ({parameters:,} parameters, {trainer.precision})")
        try:
            fit(trainer, model, data, checkpoint)
        except OSError:
            run.check_ours()  # else this is only what TensorBoard says of it
            raise
        except UserError as error:
            run.end("failed", trainer.global_step, str(error))
            raise
        reasons = [getattr(callback, "reason", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        stopped = next(filter(None, reasons), None)
        run.end("pruned" if stopped else "finished", trainer.global_step, stopped)
    report(run, stopped or "finished")


def step_of(checkpoint: Path | None) -> int:
    return load_checkpoint(checkpoint)["global_step"] if checkpoint else 0


def is_finished(run: Run, step: int, trainer: L.Trainer) -> bool:
    return run.status.state == "finished" and step >= trainer.max_steps


def swept_hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """What this run has under the keys that its sweep varies: a value, or the name chosen from a group."""
    keys = [key for key in os.environ.get(SWEPT_KEYS, "").split(",") if key]
    values = OmegaConf.create({"config": dict(config)})
    choices = HydraConfig.get().runtime.choices
    return {key: choices[key] if key in choices else OmegaConf.select(values, f"config.{key}") for key in keys}


def check_places(config: Mapping[str, Any], directory: Path) -> None:
    """Raise a UserError if a callback or a logger would write outside the run's directory."""
    for part in ("callbacks", "logger"):
        for key, value in leaves(config[part] or {}):
            path = Path(value) if isinstance(value, str) else Path()
            if ".." in path.parts or (path.is_absolute() and not path.is_relative_to(directory.absolute())):
                raise UserError(f"{part}.{key}={value} lies outside the run's directory, {directory}.")


def check_optimizer(model: DDPM) -> None:
    """Raise a UserError if the optimizer refuses its settings, which otherwise shows when training begins."""
    try:
        model.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer: {error}") from error


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
