"""Check the options of Lightning's Trainer and its callbacks, and convert epochs to batches and steps.

The stream of training batches has no end, because Lightning does not resume exactly within an epoch. So options that
count epochs are converted to batches and steps before the Trainer is built. The ranges of single options are in
`ddpm.commands.settings`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from omegaconf import DictConfig

from ddpm.data import ImageData
from ddpm.errors import UserError
from ddpm.training.hardware import KEYS, lightning_arguments, number_of_processes, runs_elsewhere

SUPPORTED = {
    *KEYS,
    *("max_steps", "max_epochs", "max_time", "limit_train_batches", "limit_val_batches", "overfit_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("deterministic", "benchmark", "inference_mode", "detect_anomaly", "profiler", "enable_progress_bar"),
}
INSTEAD = {
    "barebones": "use callbacks=null and logger=none",
    "callbacks": "use the group callbacks",
    "default_root_dir": "use paths.outputs",
    "enable_checkpointing": "use checkpoint.every_steps and checkpoint.every_minutes",
    "enable_model_summary": "every run prints a summary",
    "fast_dev_run": "use debug=fast",
    "logger": "use the group logger",
    "min_epochs": "a checkpoint does not store that a stop is pending; use the patience of EarlyStopping",
    "min_steps": "a checkpoint does not store that a stop is pending; use the patience of EarlyStopping",
    "reload_dataloaders_every_n_epochs": "the data is shuffled anew in each epoch",
    "sync_batchnorm": "use torch.nn.SyncBatchNorm in the network",
    "use_distributed_sampler": "the data set divides the batches among the processes",
}
"""what to do instead of using an unsupported option, or why the option is not needed"""


def check_trainer(cfg: DictConfig) -> None:
    """Check the settings that Lightning would ignore or would reject only after the training has started.

    Raises:
        UserError: an option is not supported, options contradict each other, a device does not exist, or the batch size
            is not divisible by the number of processes.
    """
    trainer = cfg.trainer
    for name in trainer:
        if name in inspect.signature(L.Trainer).parameters and name not in SUPPORTED:
            raise UserError(f"trainer.{name} is not supported{f': {INSTEAD[name]}' if name in INSTEAD else ''}.")
    if isinstance(trainer.get("profiler"), str):
        raise UserError(f"trainer.profiler={trainer.profiler}: give a node with a _target_, as debug=profile has.")
    if trainer.get("benchmark") and trainer.deterministic:
        raise UserError("trainer.benchmark=true selects kernels by speed, so trainer.deterministic must be false.")
    if trainer.get("overfit_batches") and trainer.get("limit_train_batches"):
        raise UserError("set trainer.overfit_batches or trainer.limit_train_batches, not both.")
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, (str, DictConfig)):
        raise UserError(
            f"trainer.val_check_interval={interval} is a time, so a resumed run would validate at other steps. "
            "Set a number of batches, or a fraction of an epoch such as 0.5 or 1.0."
        )
    if epochs is not None and (isinstance(interval, int) or (epochs > 1 and interval not in (None, 1.0))):
        raise UserError(
            f"trainer.check_val_every_n_epoch={epochs} does not go with trainer.val_check_interval={interval}: "
            "set val_check_interval=1.0 to count in epochs, or check_val_every_n_epoch=null to count in batches."
        )
    processes = number_of_processes(trainer)
    if cfg.data.batch_size % processes:
        raise UserError(f"data.batch_size={cfg.data.batch_size} must be divisible by the {processes} processes.")
    if cfg.optimizer.algorithm.get("fused") and trainer.precision == "16-mixed":
        raise UserError(
            "optimizer.algorithm.fused=true cannot be used with trainer.precision=16-mixed: the fused optimizer would "
            "unscale the gradients after the clipping. Set optimizer.algorithm.fused=false, or precision=bf16-mixed."
        )
    is_risky = cfg.compile and cfg.channels_last
    if is_risky and not runs_elsewhere() and lightning_arguments(trainer)["accelerator"] == "cpu":
        raise UserError(
            "compile=true with channels_last=true can crash on a CPU: code that torch 2.14 compiled so wrote past the "
            "end of its memory. Leave out channels_last=true, with which compiled code is no faster on a CPU."
        )


def limit_epochs(trainer: DictConfig, data: ImageData) -> None:
    """Set the number of batches in an epoch of the data to `limit_train_batches` or `overfit_batches`.

    Raises:
        UserError: a fraction is less than one batch.
    """
    overfit = trainer.get("overfit_batches")
    limit = overfit or trainer.get("limit_train_batches") or 1.0
    name = "overfit_batches" if overfit else "limit_train_batches"
    data.limit_epochs(_number(name, limit, data.num_batches), repeat=bool(overfit))
    validation = overfit or trainer.limit_val_batches
    if validation:
        _number("overfit_batches" if overfit else "limit_val_batches", validation, len(data.val_dataloader()))


def _number(name: str, limit: float, batches: int) -> int:
    """Return a number of batches. `limit` is a number (int), or a fraction (float) of `batches`."""
    number = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if number < 1:
        raise UserError(f"trainer.{name}={limit} is less than one of the {batches} batches.")
    return number


def steps_to_make(trainer: DictConfig, data: ImageData) -> int:
    """Return the number of optimizer steps: the smaller of `max_steps` and the steps in `max_epochs` epochs.

    Raises:
        UserError: neither option is set, or the number is below 1.
    """
    limits = []
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    if trainer.max_epochs not in (-1, None):
        limits.append(trainer.max_epochs * data.num_batches // trainer.accumulate_grad_batches)
    if not limits:
        raise UserError("set trainer.max_steps or trainer.max_epochs: without one the training has no end.")
    if min(limits) < 1:
        raise UserError("trainer.max_steps and trainer.max_epochs must be at least 1, or -1 for no limit.")
    return int(min(limits))


def check_decay(cfg: DictConfig, steps: int) -> None:
    """Raise a UserError if the learning rate would be 0 before the last step."""
    decay = cfg.optimizer.decay_steps
    if decay is not None and steps > decay:
        raise UserError(
            f"optimizer.decay_steps={decay} is below the {steps} steps of this training: the learning rate would be 0 "
            f"from step {decay} on. Set optimizer.decay_steps={steps} (another run) or trainer.max_steps={decay}."
        )


def in_batches(trainer: DictConfig, data: ImageData) -> dict[str, Any]:
    """Return arguments of the Trainer with epochs converted to batches. Call `limit_epochs` first."""
    interval = trainer.val_check_interval
    if not isinstance(interval, int):
        share = 1.0 if interval is None else interval
        interval = max(1, int(share * data.num_batches)) * (trainer.check_val_every_n_epoch or 1)
    return {
        "max_steps": steps_to_make(trainer, data),
        "max_epochs": -1,
        "limit_train_batches": 1.0,
        "limit_val_batches": trainer.get("overfit_batches") or trainer.limit_val_batches,
        "overfit_batches": 0.0,
        "val_check_interval": interval,
        "check_val_every_n_epoch": None,
    }


# Callbacks ----------------------------------------------------------------------------------------------------------

EPOCH_HOOKS = ("on_train_epoch_start", "on_train_epoch_end")
WORK_WITHOUT_EPOCHS = {
    *(EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer),
    *(ProgressBar, RichProgressBar, TQDMProgressBar),
}
"""callbacks that work without their epoch hooks, unless one of the settings in `EPOCH_SETTINGS` is used"""
EPOCH_SETTINGS: dict[str, Any] = {
    "check_on_train_epoch_end": True,
    "save_on_train_epoch_end": True,
    "logging_interval": "epoch",
    "interval": "epoch",
}
TUNERS = {LearningRateFinder: "set optimizer.lr", BatchSizeFinder: "set data.batch_size"}
"""callbacks that change settings during the run, and which setting to use instead"""


def check_callbacks(nodes: Mapping[str, Any], callbacks: Mapping[str, Callback]) -> None:
    """Check that each callback works without epochs and does not change settings of the run.

    Args:
        nodes: config of each callback, by name.
        callbacks: the callbacks, by name.

    Raises:
        UserError: a callback tunes a setting during the run, or acts at the start or the end of training epochs.
    """
    for name, callback in callbacks.items():
        where = f"callbacks.{name} ({type(callback).__name__})"
        for kind, instead in TUNERS.items():
            if isinstance(callback, kind):
                raise UserError(f"{where} would change the run during the training: {instead}, for example in a sweep.")
        acts = [f"{key}={value}" for key, value in EPOCH_SETTINGS.items() if nodes[name].get(key) == value]
        for hook in acts or EPOCH_HOOKS:
            if acts or _is_overridden(callback, hook):
                raise UserError(
                    f"{where} acts at epochs of Lightning ({hook}), but a run has only one endless epoch. "
                    "Use on_train_batch_end or on_validation_end."
                )


def _is_overridden(callback: Callback, hook: str) -> bool:
    """Return whether a callback overrides the hook, outside this project and `WORK_WITHOUT_EPOCHS`."""
    if hook in vars(callback):  # LambdaCallback sets its hooks on the instance
        return True
    (owner, *_) = (kind for kind in type(callback).__mro__ if hook in vars(kind))
    return not (owner is Callback or owner in WORK_WITHOUT_EPOCHS or owner.__module__.startswith("ddpm."))
