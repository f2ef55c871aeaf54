"""A run's loggers: built from the config, continued after a stop, and given the config and the pictures.

The functions that depend on the kind of a logger are `functools.singledispatch` functions: `log_picture.register(Mine)`
adds a kind.
"""

import csv
import inspect
import re
from collections.abc import Mapping
from functools import singledispatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_object
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.tensorboard.summary import hparams

from ddpm.config import build
from ddpm.errors import UserError, install_hint
from ddpm.runs import Run, write_json
from ddpm.runs.files import read_json
from ddpm.training.lightning_internals import with_prefix

EXTRAS: dict[type[Logger], str] = {MLFlowLogger: "mlflow", WandbLogger: "wandb"}
"""loggers that need a package, which has the name of our extra"""
ID_ARGUMENTS = ("run_id", "id", "experiment_key")
"""constructor arguments by which Lightning's loggers continue a run of theirs (MLflow, Weights & Biases, Comet)"""
FINAL_METRICS = ("val/bpd", "val/loss")
"""curves whose last values TensorBoard's HPARAMS page shows"""


class StepWandbLogger(WandbLogger):
    """Weights & Biases, whose own step here is the optimizer step.

    Lightning's logger counts the calls from 0 in each process, so the parts of a resumed run would overlap.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log({**with_prefix(self, metrics), "trainer/global_step": step}, step=step)


WATCHED = re.compile(r"images/s|epoch|lr-.*|train/grad_norm")
"""metrics that TensorBoard shows below the curves of the losses"""


class LossesFirst(TensorBoardLogger):
    """Lightning's logger for TensorBoard, which shows groups of curves by their names: `train`, `val`, `watch`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        shown = {
            f"watch/{name.removeprefix('train/')}" if WATCHED.fullmatch(name) else name: value
            for name, value in metrics.items()
        }
        super().log_metrics(shown, step)


def logger_nodes(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the config of each logger by its name."""
    return {str(name): node for name, node in (config or {}).items() if node is not None}


def check_loggers(config: Mapping[str, Any] | None) -> None:
    """Check the loggers without building them, since some write when they are built.

    Raises:
        UserError: a class is no logger, lacks its package, or does not take an argument.
    """
    for name, node in logger_nodes(config).items():
        target = node["_target_"]
        kind = get_object(target)
        if not (isinstance(kind, type) and issubclass(kind, Logger)):
            raise UserError(f"logger.{name}._target_={target} is not a logger of Lightning.")
        for base, extra in EXTRAS.items():
            if issubclass(kind, base) and find_spec(extra) is None:
                raise UserError(f"logger={extra} needs a package that is not installed: {install_hint(extra)}")
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        try:
            inspect.signature(kind).bind(**arguments)
        except TypeError as error:
            raise UserError(f"logger.{name}: {error} ({target})") from error


def build_loggers(config: Mapping[str, Any] | None, run: Run, resumed_step: int) -> list[Logger]:
    """Build the loggers so that each continues what it has logged of this run.

    What was logged after the checkpoint is dropped where the logger allows it, because it is logged again.

    Args:
        resumed_step: the optimizer step of the checkpoint, 0 without one.
    """
    path = run.directory / "loggers.json"
    ids = read_json(path)
    loggers = []
    for name, node in logger_nodes(config).items():
        kind = get_object(node["_target_"])
        parameters = inspect.signature(kind).parameters
        extra = {key: ids[name] for key in ID_ARGUMENTS if key in parameters and not node.get(key) and name in ids}
        if issubclass(kind, TensorBoardLogger):
            extra["purge_step"] = resumed_step
        logger = build(node, Logger, **extra)
        continue_history(logger, resumed_step)
        if not parameters.keys().isdisjoint(ID_ARGUMENTS):
            _ = logger.experiment  # makes the id
            ids[name] = logger.version
            write_json(path, ids)
        loggers.append(logger)
    return loggers


@singledispatch
def continue_history(logger: Logger, resumed_step: int) -> None:
    """Prepare what a logger has on disk for a run that continues at `resumed_step`. Most need nothing."""


@continue_history.register
def _(logger: CSVLogger, resumed_step: int) -> None:
    """Keep the rows of earlier processes, which CSVLogger would delete."""
    path = Path(logger.log_dir) / "metrics.csv"
    kept = path.with_name(".metrics.csv.kept")  # a kill in here loses nothing
    if path.exists() and not kept.exists():
        path.rename(kept)
    writer = logger.experiment
    if kept.exists():
        with kept.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # A kill can leave half a row at the end; its step is then missing or was made after the checkpoint.
        writer.metrics = [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < resumed_step]
        path.unlink(missing_ok=True)
        writer.save()
        kept.unlink()


@singledispatch
def log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Log a picture, if the logger takes pictures."""
    if hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(name, [picture], step=step)
    elif log_image := getattr(getattr(logger, "experiment", None), "log_image", None):  # Comet
        log_image(picture, name=name, step=step)


@log_picture.register
def _(logger: TensorBoardLogger, name: str, picture: Image.Image, step: int) -> None:
    logger.experiment.add_image(name, np.atleast_3d(np.asarray(picture)), step, dataformats="HWC")


@log_picture.register
def _(logger: MLFlowLogger, name: str, picture: Image.Image, step: int) -> None:
    logger.experiment.log_image(logger.run_id, picture, key=name, step=step, synchronous=True)


@singledispatch
def log_config(logger: Logger, config: Mapping[str, Any], text: str, step: int) -> None:
    """Log the config of the run.

    Args:
        text: the config as YAML.
        step: the optimizer step at which this process starts.
    """
    logger.log_hyperparams(dict(config))


@log_config.register
def _(logger: TensorBoardLogger, config: Mapping[str, Any], text: str, step: int) -> None:
    logger.experiment.add_text("config", f"```yaml\n{text}```", step)


@log_config.register
def _(logger: MLFlowLogger, config: Mapping[str, Any], text: str, step: int) -> None:
    logger.experiment.log_text(logger.run_id, text, "config.yaml")  # parameters of MLflow can never change


@singledispatch
def log_swept(logger: Logger, values: Mapping[str, Any]) -> None:
    """Log the values of the keys that the run's sweep varies."""
    logger.log_hyperparams(dict(values))


@log_swept.register
def _(logger: TensorBoardLogger, values: Mapping[str, Any]) -> None:
    # Lightning's `log_hyperparams` would add a false first point to each curve.
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()}
    for summary in hparams(plain, dict.fromkeys(FINAL_METRICS, 0)):
        logger.experiment.file_writer.add_summary(summary)
