"""What the commands share that start from a checkpoint: the model on its device, its data, a place for the results."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import Tensor

from ddpm.configs import build
from ddpm.data import ImageData
from ddpm.devices import resolve_precision
from ddpm.errors import UserError
from ddpm.module import DDPM
from ddpm.runs import check_targets, find_checkpoint, run_name, task_overrides, trusted_targets


class Loaded(NamedTuple):
    checkpoint: Path
    model: DDPM
    """on its device, in evaluation mode"""
    fabric: L.Fabric
    """device and precision"""
    directory: Path
    """for the results; not yet made"""

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The moving average's output; it alone in the device's precision, the chain's arithmetic in float32."""
        with self.fabric.autocast():
            return self.model.ema(x_t, t)


def load(cfg: DictConfig) -> Loaded:
    """The model that `ckpt=` names.

    Raises:
        UserError: no such checkpoint, one that cannot be read or trusted, or a device that is not there.
    """
    checkpoint = find_checkpoint(cfg.ckpt)
    fabric = build_fabric(cfg.trainer)
    model = DDPM.load_from_checkpoint(checkpoint, fabric.device, trusted_targets(config_folders()))
    return Loaded(checkpoint, model, fabric, results_directory(cfg, checkpoint))


def build_fabric(trainer: DictConfig) -> L.Fabric:
    """Device and precision for work that is not training."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # the command says what it uses itself
    precision = resolve_precision(trainer.precision, trainer.accelerator)
    try:
        return L.Fabric(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            precision=precision,  # type: ignore[arg-type]
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {error}") from error


def data_of(cfg: DictConfig, model: DDPM) -> ImageData:
    """The data set that the command names, else the one that the model was trained on.

    The checkpoint's own choice is built only if a YAML of the user's `data` group has its class, and it is looked
    for where the user keeps data now.

    Raises:
        UserError: an unknown data set, or images of another shape than the model's.
    """
    node: Any = cfg.data
    if node is None:
        saved = model.hparams["config"]
        node = dict(saved["data"])
        check_targets(node, trusted_targets(folder / "data" for folder in config_folders()))
        if node.get("root") == saved["paths"]["data"]:
            node["root"] = cfg.paths.data
    data: ImageData = build(node)
    if tuple(data.image_shape) != tuple(model.image_shape):
        raise UserError(f"the data's images are {list(data.image_shape)} and the model's {list(model.image_shape)}.")
    return data


def config_folders() -> list[Path]:
    """The folders that this command's config was composed from: the project's, and those of --config-dir."""
    return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]


def results_directory(cfg: DictConfig, checkpoint: Path) -> Path:
    """`outputs/<command>/<the run's name>/<checkpoint>_<overrides>`."""
    hydra = HydraConfig.get()
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    trained = (Path(cfg.paths.outputs) / "train").resolve()
    within = run.resolve().relative_to(trained) if run.resolve().is_relative_to(trained) else Path(run.resolve().name)
    name = run_name(task_overrides(), [*cfg.not_identity, "ckpt"])
    last = checkpoint.stem if name == "base" else f"{checkpoint.stem}_{name}"
    assert hydra.job.config_name is not None
    return Path(cfg.paths.outputs) / hydra.job.config_name / within / last
