"""Build the model of a config, and the model of a checkpoint."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ddpm.config import build, check_plain, check_targets, config_folders, leaves, trusted_targets
from ddpm.config.checking import check_node
from ddpm.devices.failures import total_memory
from ddpm.diffusion import GaussianDiffusion, Objective
from ddpm.errors import UserError
from ddpm.runs.checkpoints import config_of, load_checkpoint
from ddpm.seeding import Stream, seed_at
from ddpm.training.module import DDPM
from ddpm.training.weights import fits, load_weights, misfit, shortened


def build_model(config: Mapping[str, Any]) -> DDPM:
    """Return the untrained model of a resolved `conf/train.yaml`. The seed determines its weights.

    Raises:
        UserError: settings contradict each other, or the network needs more memory than the machine has.
    """
    _check_memory(config)
    torch.manual_seed(seed_at(Stream.INITIAL_WEIGHTS, config["seed"]))
    return _build(config, build)


MAX_MODULES = 20_000
"""largest number of modules of a network to train"""


def _check_memory(config: Mapping[str, Any]) -> None:
    """Raise a UserError if the network of a config and its average do not fit into the memory of the machine.

    The network is built on the meta device. Other mistakes in it are found when the real one is built.
    """
    too_large = f"model: a network of more than {MAX_MODULES:,} modules is too large."
    try:
        with _at_most(too_large, modules=MAX_MODULES), torch.device("meta"):
            network = build(config["model"], nn.Module)
    except _TooLarge:
        raise
    except UserError:
        return
    weights = list(network.parameters())
    needed, memory = 2 * sum(weight.nbytes for weight in weights), total_memory(torch.device("cpu"))
    if needed > memory:
        raise UserError(
            f"model: a network of {sum(weight.numel() for weight in weights):,} weights and their average need "
            f"{needed / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB. Make the network smaller."
        )


class _TooLarge(UserError):
    """A network has more modules or parameters than allowed."""


@contextmanager
def _at_most(message: str, **left: int) -> Iterator[None]:
    """Raise `_TooLarge(message)` if more `modules` or `parameters` are registered in the block than these numbers."""

    def count(kind: str) -> Callable[..., None]:
        def hook(*registered: Any) -> None:
            left[kind] -= 1
            if left[kind] < 0:
                raise _TooLarge(message)

        return hook

    register = {
        "modules": register_module_module_registration_hook,
        "parameters": register_module_parameter_registration_hook,
    }
    hooks = [register[kind](count(kind)) for kind in left]
    try:
        yield
    except UserError:
        if min(left.values()) < 0:
            raise _TooLarge(message) from None  # `build` wraps the error of the hook
        raise
    finally:
        for hook in hooks:
            hook.remove()


Build = Callable[..., Any]
"""build(node, kind=object)"""


def load_model(path: Path, map_location: torch.device | str = "cpu", trusted: Collection[str] | None = None) -> DDPM:
    """Return the model of a checkpoint, in evaluation mode.

    A checkpoint cannot run code of its own: only targets that a YAML of the config path names are built. If the target
    of the objective or of the optimizer is not among them, the model still samples; it raises an error when it is
    trained or validated.

    Args:
        trusted: the targets that may be built. None means those in the YAMLs of the command's config folders; outside
            commands, those of the project.

    Raises:
        UserError: the file is missing, damaged, no checkpoint of ddpm, or names a target that is not trusted.
    """
    checkpoint = load_checkpoint(path)
    config = config_of(checkpoint, path)
    allowed = trusted_targets(config_folders()) if trusted is None else trusted

    def build_trusted(node: Any, kind: type = object) -> Any:
        check_targets(node, allowed)
        return build(node, kind)

    def build_or_postpone(node: Any, kind: type = object) -> Any:
        try:
            return build_trusted(node, kind)
        except UserError as error:
            return _raises(str(error))

    try:
        check_plain({name: node for name, node in config.items() if name in PARTS}, "the checkpoint's config")
        for name, kind in (("module", DDPM), ("model", nn.Module), ("diffusion", GaussianDiffusion)):
            check_targets(config[name], allowed)
            check_node(name, config[name], kind)
        _check_size(config, checkpoint["state_dict"], build_trusted)
        model = _build(config, build_trusted, build_or_postpone)
    except UserError as error:
        raise UserError(f"{path}: {shortened(error)}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} describes no model that can be built: {type(error).__name__}: {shortened(error)}"
        ) from error
    load_weights(model, path, checkpoint)
    return model.to(map_location).eval()


PARTS = ("module", "model", "diffusion", "objective", "optimizer", "ema", "seed", "data")
"""the parts of a checkpoint's config from which its model is built"""
MAX_NUMBER = 10**6
"""largest number in the config of a diffusion, such as its timesteps"""
MAX_IMAGE = 2**26
"""largest number of values in an image"""


def _check_size(config: Mapping[str, Any], weights: Mapping[str, Tensor], build_part: Build) -> None:
    """Check that the network has the shapes of the checkpoint's weights, before memory is taken for them.

    The network is built on the meta device. Building ends as soon as it has more parameters than the
    checkpoint has tensors, or far more modules.

    Raises:
        UserError: the checkpoint holds weights of another network.
    """
    too_large = "its weights are of another network: the config describes a larger one."
    with _at_most(too_large, parameters=len(weights), modules=100 + 10 * len(weights)):
        try:
            with torch.device("meta"):
                network = build_part(config["model"], nn.Module)
        except UserError as error:
            if "meta" not in str(error):
                raise
            network = build_part(config["model"], nn.Module)  # a network that reads numbers while it is built
    for name, weight in network.state_dict().items():
        saved = weights.get(f"network.{name}")
        if saved is None or not fits(saved, weight):
            raise UserError(f"its weights are of another network: {misfit(name, saved, weight)}.")


def _build(config: Mapping[str, Any], build_part: Build, build_training: Build | None = None) -> DDPM:
    """Build network and diffusion by `build_part`, and what training alone needs by `build_training`."""
    build_training = build_training or build_part
    objective, optimizer = config["objective"], config["optimizer"]
    module = build(config["module"], _partial_=True)
    if not (isinstance(module.func, type) and issubclass(module.func, DDPM)):
        raise UserError(f"module._target_={config['module']['_target_']} must be DDPM or a subclass of it.")
    for key, value in leaves(config["diffusion"], into_lists=True):
        if isinstance(value, (int, float)) and abs(value) > MAX_NUMBER:
            raise UserError(f"diffusion.{key}={value} is too large: at most {MAX_NUMBER:,}.")
    network, diffusion = build_part(config["model"], nn.Module), build_part(config["diffusion"], GaussianDiffusion)
    try:
        model: DDPM = module(
            network=network,
            diffusion=diffusion,
            image_shape=_image_shape(config["data"]["image_channels"], config["data"]["image_size"]),
            objective=build_training(objective["loss"], Objective),
            draw_timesteps=build_training(objective["timesteps"]),
            optimizer=build_training(optimizer["algorithm"]),
            warmup_steps=optimizer["warmup_steps"],
            decay_steps=optimizer["decay_steps"],
            ema_decay=config["ema"]["decay"],
            seed=config["seed"],
            config=config,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except TypeError as error:
        raise UserError(f"module: {error} (DDPM_DEBUG=1 shows where)") from error
    return model


def _raises(reason: str) -> Callable[..., NoReturn]:
    """Return a function that raises a UserError."""

    def function(*args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(reason)

    return function


def _image_shape(channels: int, size: int | list[int]) -> tuple[int, int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if not (min(channels, height, width) > 0 and channels * height * width <= MAX_IMAGE):
        raise UserError(f"images of {channels}×{height}×{width} must have between 1 and {MAX_IMAGE:,} numbers.")
    return channels, height, width
