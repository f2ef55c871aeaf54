"""The model that a config describes, and the model of a checkpoint."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ddpm.config import build, check_targets, conf_dir, trusted_targets
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
    torch.manual_seed(seed_at(Stream.INITIAL_WEIGHTS, config["seed"]))
    return _build(config, build)


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
        check_targets(config["module"], allowed)
        model = _build(config, build_trusted, build_or_postpone)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} describes no model that can be built: {error!r}") from error
    load_weights(model, path, checkpoint)
    return model.to(map_location).eval()


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
        raise UserError(f"the weights in {path} are of another network: {error}") from error
    try:
        model.check_finite(state)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


Build = Callable[..., Any]
"""build(node, kind=object)"""


def _build(config: Mapping[str, Any], build_part: Build, build_training: Build | None = None) -> DDPM:
    """Build module, network and diffusion by `build_part`, and what training alone needs by `build_training`."""
    build_training = build_training or build_part
    objective, optimizer = config["objective"], config["optimizer"]
    module = build(config["module"], _partial_=True)
    if not (isinstance(module.func, type) and issubclass(module.func, DDPM)):
        raise UserError(f"module._target_={config['module']['_target_']} must be DDPM or a subclass of it.")
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
    """A function that raises a UserError."""

    def function(*args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(reason)

    return function


def _image_shape(channels: int, size: int | list[int]) -> tuple[int, int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
