"""The model that a config describes, and the model of a checkpoint."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ddpm.config import build, check_plain, check_targets, conf_dir, leaves, trusted_targets
from ddpm.config.checking import check_node
from ddpm.devices.failures import total_memory
from ddpm.diffusion import GaussianDiffusion, Objective
from ddpm.errors import UserError
from ddpm.runs.checkpoints import config_of, load_checkpoint
from ddpm.seeding import Stream, seed_at
from ddpm.training.module import DDPM


def build_model(config: Mapping[str, Any]) -> DDPM:
    """The untrained model of a resolved `conf/train.yaml`; its weights follow from the seed.

    Raises:
        UserError: settings that do not go together.
    """
    _check_memory(config)
    torch.manual_seed(seed_at(Stream.INITIAL_WEIGHTS, config["seed"]))
    return _build(config, build)


MAX_MODULES = 20_000
"""of a network to train"""


def _check_memory(config: Mapping[str, Any]) -> None:
    """Raise a UserError if the network of a config and its average do not fit into the memory of the machine.

    The network is built on the meta device. What else is wrong with it is left to the real one.
    """
    left = MAX_MODULES

    def count(*registered: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("too many modules")

    hook = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            network = build(config["model"], nn.Module)
    except UserError:
        if left >= 0:
            return
        raise UserError(f"model: a network of more than {MAX_MODULES:,} modules is too large.") from None
    finally:
        hook.remove()
    weights = list(network.parameters())
    needed, memory = 2 * sum(weight.nbytes for weight in weights), total_memory(torch.device("cpu"))
    if needed > memory:
        raise UserError(
            f"model: a network of {sum(weight.numel() for weight in weights):,} weights and their average need "
            f"{needed / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB. Make the network smaller."
        )


Build = Callable[..., Any]
"""build(node, kind=object)"""


def load_model(path: Path, map_location: torch.device | str = "cpu", trusted: Collection[str] | None = None) -> DDPM:
    """The model of a checkpoint, in evaluation mode.

    A checkpoint runs no code of its own: module, network and diffusion are built only from targets that a YAML of the
    config path names. The objective and the optimizer are built by the same rule. Where they cannot be, the model
    samples, and raises the reason when it is trained or validated.

    Args:
        trusted: the targets that may be built; those of the project's own YAMLs if None.

    Raises:
        UserError: the file is missing, damaged, no checkpoint of ddpm, or names a target that is not trusted.
    """
    checkpoint = load_checkpoint(path)
    config = config_of(checkpoint, path)
    allowed = trusted_targets([conf_dir()]) if trusted is None else trusted

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
        raise UserError(f"{path}: {_shortened(error)}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} describes no model that can be built: {type(error).__name__}: {_shortened(error)}"
        ) from error
    load_weights(model, path, checkpoint)
    return model.to(map_location).eval()


PARTS = ("module", "model", "diffusion", "objective", "optimizer", "ema", "seed", "data")
"""of a checkpoint's config, that are read to build its model"""
MAX_STEPS = 10**6
"""of a diffusion"""
MAX_IMAGE = 2**26
"""numbers in an image"""


def _check_size(config: Mapping[str, Any], weights: Mapping[str, Tensor], build_part: Build) -> None:
    """Check that the network has the shapes of the checkpoint's weights, before memory is taken for them.

    The network is built on the meta device. Building ends as soon as it has more weights than the checkpoint.

    Raises:
        UserError: the checkpoint holds weights of another network.
    """
    left = Counter(parameters=len(weights), modules=100 + 10 * len(weights))

    def count(kind: str) -> Callable[..., None]:
        def hook(*registered: Any) -> None:
            left[kind] -= 1
            if left[kind] < 0:
                raise UserError("its weights are of another network: the config describes a larger one.")

        return hook

    hooks = register_module_parameter_registration_hook(count("parameters"))
    more_hooks = register_module_module_registration_hook(count("modules"))
    try:
        try:
            with torch.device("meta"):
                network = build_part(config["model"], nn.Module)
        except UserError as error:
            if "meta" not in str(error):
                raise
            network = build_part(config["model"], nn.Module)  # a network that reads numbers while it is built
    finally:
        hooks.remove()
        more_hooks.remove()
    for name, weight in network.state_dict().items():
        saved = weights.get(f"network.{name}")
        if saved is None or not _fits(saved, weight):
            raise UserError(f"its weights are of another network: {_misfit(name, saved, weight)}.")


def _fits(saved: Tensor, weight: Tensor) -> bool:
    return saved.shape == weight.shape and saved.is_floating_point() == weight.is_floating_point()


def _misfit(name: str, saved: Tensor | None, weight: Tensor) -> str:
    """Return in words how the saved tensor of this name differs from the model's."""
    if saved is None:
        found = "is not there"
    elif saved.shape != weight.shape:
        found = f"is of shape {list(saved.shape)[:8]}"
    else:
        found = f"has the type {saved.dtype}"
    return f"{name} must be of shape {list(weight.shape)}, and {found}"


def load_weights(model: DDPM, path: Path, checkpoint: Mapping[str, Any] | None = None) -> None:
    """Give `model` the weights, and their average, of a checkpoint with the same network.

    Args:
        checkpoint: what the file holds, if it has been read.

    Raises:
        UserError: the file is missing, damaged, no checkpoint of ddpm, or holds another network or weights that are
            not finite.
    """
    state = (checkpoint or load_checkpoint(path))["state_dict"]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"the weights in {path} are of another network: {_shortened(error)}") from error
    try:
        model.check_finite(state)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def start_from(model: DDPM, path: Path, partial: bool) -> list[str]:
    """Give a new model the weights, and their average, of a checkpoint, for a run with `init_from`.

    Args:
        partial: take the tensors whose name and shape fit, and leave the others as they are.

    Returns:
        What was not taken, in lines; empty if all was.

    Raises:
        UserError: weights do not fit and `partial` is false, or none fits; or the file cannot be read.
    """
    checkpoint = load_checkpoint(path)
    saved, own = checkpoint["state_dict"], model.state_dict()
    misfits = {
        name: _misfit(name, saved.get(name), weight)
        for name, weight in own.items()
        if name not in saved or not _fits(saved[name], weight)
    }
    unknown = saved.keys() - own.keys()
    left_out = [name for name in (*misfits, *sorted(unknown)) if not name.startswith("ema.")]  # the network's again
    if not left_out:
        load_weights(model, path, checkpoint)
        return []
    first = misfits.get(left_out[0], f"the model has no {left_out[0]}")
    if not partial:
        raise UserError(
            f"init_from={path}: {len(left_out)} weights are of another network; {first}.\n"
            "init_from_partial=true takes the weights that fit."
        )
    taken = {name: value for name, value in saved.items() if name in own and name not in misfits}
    if not any(name.startswith("network.") for name in taken):
        raise UserError(f"init_from={path}: no weight fits this network; {first}.")
    load_weights(model, path, checkpoint | {"state_dict": own | taken})
    share = sum(value.numel() for value in taken.values()) / sum(value.numel() for value in own.values())
    return [
        f"init_from_partial: {100 * share:.3g} % of the weights are taken from {path}",
        *_listed("keep their initial values", [name for name in left_out if name in own]),
        *_listed("are not used", [name for name in left_out if name not in own]),
    ]


def _listed(what: str, names: list[str], at_most: int = 5) -> list[str]:
    """Return a line that lists some of the names; none without names."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return [f"  {', '.join(names[:at_most])}{more} {what}"] if names else []


def _build(config: Mapping[str, Any], build_part: Build, build_training: Build | None = None) -> DDPM:
    """Build module, network and diffusion by `build_part`, and what training alone needs by `build_training`."""
    build_training = build_training or build_part
    objective, optimizer = config["objective"], config["optimizer"]
    module = build(config["module"], _partial_=True)
    if not (isinstance(module.func, type) and issubclass(module.func, DDPM)):
        raise UserError(f"module._target_={config['module']['_target_']} must be DDPM or a subclass of it.")
    for key, value in leaves(config["diffusion"], into_lists=True):
        if isinstance(value, (int, float)) and abs(value) > MAX_STEPS:
            raise UserError(f"diffusion.{key}={value} is too large: at most {MAX_STEPS:,}.")
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


def _shortened(error: Exception) -> str:
    """Return an error's message in a line of at most 500 characters. It may repeat what a checkpoint holds."""
    return " ".join(str(error).split())[:500]


def _raises(reason: str) -> Callable[..., NoReturn]:
    """A function that raises a UserError."""

    def function(*args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(reason)

    return function


def _image_shape(channels: int, size: int | list[int]) -> tuple[int, int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if not (min(channels, height, width) > 0 and channels * height * width <= MAX_IMAGE):
        raise UserError(f"images of {channels}×{height}×{width} must have between 1 and {MAX_IMAGE:,} numbers.")
    return channels, height, width
