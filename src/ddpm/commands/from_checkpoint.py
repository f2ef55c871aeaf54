"""Shared code of the commands that start from a checkpoint: load the model, find its data, name the results."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import Tensor

from ddpm.commands import display
from ddpm.config import build, check_targets, config_folders, override, trusted_targets
from ddpm.config.checking import check_node
from ddpm.data import CIFAR10, MNIST, ImageData, to_uint8
from ddpm.devices import map_over_processes
from ddpm.diffusion import Autoguidance, Guidance, Sampler
from ddpm.diffusion.process import Network
from ddpm.errors import UserError
from ddpm.runs import find_checkpoint, overrides_with_effect, results_directory, run_directory, run_of
from ddpm.runs.checkpoints import load_checkpoint
from ddpm.training.building import load_model
from ddpm.training.hardware import cluster_environment, lightning_arguments, number_of_processes, prepare_process
from ddpm.training.module import DDPM
from ddpm.training.power_averages import Average, reconstruct


class Loaded(NamedTuple):
    checkpoint: Path
    model: DDPM
    """on its device, in evaluation mode"""
    fabric: L.Fabric
    """provides the device, the precision and the processes"""
    directory: Path
    """the folder for the results; not yet created"""

    def network(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Return the averaged network's output. Only the network uses the precision of `fabric`."""
        return self.checked(self.model.ema)(x_t, t, **condition)

    def checked(self, network: Network) -> Network:
        """Return a network that computes in the precision of `fabric`, and raises a UserError for NaN and infinity."""

        def checked(x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            with self.fabric.autocast():
                output = network(x_t, t, **condition)
            if not output.isfinite().all():
                raise UserError(f"the network of {self.checkpoint} returns NaN or infinity: the training diverged.")
            return output

        return checked


def load(cfg: DictConfig) -> Loaded:
    """Load the model that `ckpt=` names, on the device that `trainer=` names.

    Raises:
        UserError: the checkpoint does not exist or cannot be read or trusted, or the device is not available.
    """
    checkpoint = find_checkpoint(cfg.ckpt)
    fabric = build_fabric(cfg.trainer)
    fabric.launch()
    display.console.quiet = not fabric.is_global_zero
    model = load_model(checkpoint, fabric.device)
    if (average := set_average(cfg, model, checkpoint)) is not None:
        display.console.print(
            f"Moving average of the weights with length {cfg.ema.length} at step {average.step} "
            f"(relative squared error of its profile: {average.error:.2g})."
        )
    return Loaded(checkpoint, model, fabric, directory_for(cfg, checkpoint))


def sample(
    cfg: DictConfig,
    loaded: Loaded,
    sampler: Sampler,
    on_step: Callable[[int], None] = lambda images: None,
    labels: Sequence[int] | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """Sample `num_samples` images and return all of them in every process, uint8 [N, C, H, W] on the CPU.

    Args:
        on_step: called after each step of a batch in this process with the number of images in the batch.
        labels, guidance: see `DDPM.sample_images`.
    """

    def images_of(indices: Tensor) -> Tensor:
        drawn = loaded.model.sample_images(indices.tolist(), sampler, cfg.seed, on_step, labels, guidance)
        return to_uint8(drawn).cpu()  # the floats of all batches would need four times the memory

    with loaded.fabric.autocast():
        return torch.cat(map_over_processes(images_of, torch.arange(cfg.num_samples).split(cfg.batch_size)))


def read(cfg: DictConfig) -> tuple[Path, DDPM]:
    """Return the checkpoint that `ckpt=` names and its model on the CPU, to check a job before it runs.

    Raises:
        UserError: the checkpoint does not exist or cannot be read or trusted, or the device is not available.
    """
    checkpoint = find_checkpoint(cfg.ckpt)
    number_of_processes(cfg.trainer)  # raises if the devices are not available
    model = load_model(checkpoint)
    set_average(cfg, model, checkpoint)
    return checkpoint, model


def set_average(cfg: DictConfig, model: DDPM, checkpoint: Path) -> Average | None:
    """Replace the model's averaged weights by the average of length `ema.length`. With null, keep the checkpoint's.

    Raises:
        UserError: the run stored no averages, or `variance=optimal` was measured with another average.
    """
    if "ema" not in cfg or cfg.ema.length is None:  # `ddpm denoise` has no such setting
        return None
    if cfg.get("variance") == "optimal":
        raise UserError("variance=optimal is measured for the checkpoint's own average: leave ema.length out.")
    step = load_checkpoint(checkpoint)["global_step"]
    average = reconstruct(run_of(checkpoint) / "ema", cfg.ema.length, step)
    try:
        model.ema.module.load_state_dict(average.weights)
    except RuntimeError as error:
        raise UserError(f"the averages in {run_of(checkpoint) / 'ema'} are of another network.") from error
    return average


def name_of_weights(cfg: DictConfig) -> str:
    """Return a name for the weights that a command uses."""
    return "EMA" if cfg.ema.length is None else f"EMA of length {cfg.ema.length}"


def autoguidance(ckpt: str, scale: float, interval: Sequence[int] | None = None) -> Autoguidance:
    """Return guidance by the weaker model of a checkpoint. Its targets are checked like those of `ckpt=`.

    Raises:
        UserError: the checkpoint does not exist or cannot be read or trusted.
    """
    return Autoguidance(load_model(find_checkpoint(ckpt)), scale, interval)


def labels_of(data: ImageData, split: str, model: DDPM) -> Tensor | None:
    """Return the labels of "train", "validation" or "test", int64 [N]; None if the model is unconditional.

    Raises:
        UserError: the data has more classes than the model.
    """
    if model.num_classes is None:
        return None
    model.check_classes(data)
    return data.split(split).labels


def build_fabric(trainer: DictConfig) -> L.Fabric:
    """Return a Fabric, which provides the device and the precision for commands that do not train."""
    prepare_process()
    try:
        return L.Fabric(**lightning_arguments(trainer), plugins=cluster_environment())
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {error}") from error


def data_of(cfg: DictConfig, model: DDPM) -> ImageData:
    """Return the data set that the command names, else the data set that the model was trained on.

    The checkpoint may come from somebody else. So its data set is built only if a YAML in the user's `data` group names
    the class, and its files are read only from the user's own data folder.

    Raises:
        UserError: no YAML of the user names the class of the data set, its folder lies outside the user's data folder,
            or its images do not have the model's shape.
    """
    node: Any = cfg.data
    if node is None:
        node = _saved_data(model.hparams["config"], cfg.paths.data)
    data: ImageData = build(node, ImageData)
    if tuple(data.image_shape) != tuple(model.image_shape):
        raise UserError(f"the data has images {list(data.image_shape)}, but the model takes {list(model.image_shape)}.")
    return data


def _saved_data(config: Any, folder: str) -> dict[str, Any]:
    """Return the data config of a checkpoint, with the user's own data folder."""
    node, paths = config["data"], config.get("paths")
    check_targets(node, trusted_targets(folder / "data" for folder in config_folders()))
    check_node("data", node, ImageData)
    node = dict(node)
    workers = node.get("num_workers", 0)
    node["num_workers"] = min(workers, os.cpu_count() or 1)
    if node.get("cache") is not None:
        node["cache"] = f"{folder}/image_folder"  # as in conf/data/image_folder.yaml
    root = node.get("root")
    if root is None:
        return node
    if issubclass(get_class(node["_target_"]), (MNIST, CIFAR10)) or (
        isinstance(paths, dict) and root == paths.get("data")
    ):
        return node | {"root": folder}
    if not Path(str(root)).resolve().is_relative_to(Path(folder).resolve()):
        choice = override("data.root", root)
        raise UserError(
            f"the checkpoint names the data in {root}, which lies outside paths.data={folder}. If you trust it, name "
            f"the data yourself: data=image_folder {choice} data.image_size=… data.image_channels=…"
        )
    return node


def describe(data: ImageData) -> str:
    """Return the name of the data set and, if it has one, its folder."""
    return " ".join([type(data).__name__, *([str(data.root)] if hasattr(data, "root") else [])])


def directory_for(cfg: DictConfig, checkpoint: Path | None) -> Path:
    """Return the directory of the results of the command that runs now, with or without a checkpoint."""
    command = HydraConfig.get().job.config_name
    assert command is not None
    overrides = overrides_with_effect(command, not_identity=[*cfg.not_identity, "ckpt"])
    if checkpoint is None:
        return run_directory(command, cfg.paths.outputs, overrides, not_identity=cfg.not_identity)
    return results_directory(command, checkpoint, cfg.paths.outputs, overrides, cfg.not_identity)
