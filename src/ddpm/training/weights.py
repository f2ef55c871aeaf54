"""Weights of a checkpoint for a model: all of them, or those that fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.errors import UserError
from ddpm.runs.checkpoints import load_checkpoint
from ddpm.training.module import DDPM


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
        raise UserError(f"the weights in {path} are of another network: {shortened(error)}") from error
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
        name: misfit(name, saved.get(name), weight)
        for name, weight in own.items()
        if name not in saved or not fits(saved[name], weight)
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


def fits(saved: Tensor, weight: Tensor) -> bool:
    """Return whether a saved tensor has the shape and the kind of numbers of a weight."""
    return saved.shape == weight.shape and saved.is_floating_point() == weight.is_floating_point()


def misfit(name: str, saved: Tensor | None, weight: Tensor) -> str:
    """Return in words how the saved tensor of this name differs from the model's."""
    if saved is None:
        found = "is not there"
    elif saved.shape != weight.shape:
        found = f"is of shape {list(saved.shape)[:8]}"
    else:
        found = f"has the type {saved.dtype}"
    return f"{name} must be of shape {list(weight.shape)}, and {found}"


def shortened(error: Exception) -> str:
    """Return an error's message in a line of at most 500 characters. It may repeat what a checkpoint holds."""
    return " ".join(str(error).split())[:500]
