"""Checkpoints on disk: found by what the user typed after `ckpt=`, read without running code from them."""

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddpm.config import override, user_path
from ddpm.errors import UserError
from ddpm.runs.archives import check_records
from ddpm.runs.exported import WEIGHTS, read_exported
from ddpm.runs.files import check_links
from ddpm.runs.hub import PREFIX, download
from ddpm.runs.nearby import runs_nearby, suggest

FORMAT = 1
"""of the checkpoints that this version writes and reads"""
NAMES = ("best", "last")  # in the order of preference
PACKAGED = Path(__file__).resolve().parents[1] / "pretrained"
"""the exported models in the package, one folder each"""


def packaged() -> dict[str, Path]:
    """Return the weights of the models in the package by their names."""
    return {weights.parent.name: weights for weights in sorted(PACKAGED.glob(f"*/{WEIGHTS}"))}


def ckpt_override(checkpoint: Path) -> str:
    """Return the override `ckpt=…` that finds a checkpoint: the name of a model in the package, else the file."""
    is_packaged = packaged().get(checkpoint.parent.name) == checkpoint
    return override("ckpt", checkpoint.parent.name if is_packaged else checkpoint)


def find_checkpoint(spec: str) -> Path:
    """Return the file that `ckpt=spec` means.

    A checkpoint; a run (its best, else its last), RUN/best or RUN/last; an exported folder; hf://OWNER/NAME; or, if
    there is none of these, the name of a model in the package.

    Raises:
        UserError: there is none. The message names up to five runs nearby.
    """
    if not spec.strip():
        raise UserError("ckpt is empty: give a checkpoint file or a run's directory")
    if spec.startswith(PREFIX):
        return download(spec)
    path = user_path(spec)
    if path.is_file():
        return path
    names: tuple[str, ...]
    if path.is_dir():
        run, names = path, NAMES
        candidates = [folder / f"{name}.ckpt" for name in NAMES for folder in (run / "checkpoints", run)]
    else:
        run, names = path.parent, (path.name,) if path.name in NAMES else ()
        candidates = [run / "checkpoints" / f"{name}.ckpt" for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if (path / WEIGHTS).is_file():
        check_links(path)
        return path / WEIGHTS
    models = packaged()
    if spec in models:
        return models[spec]
    if run.is_dir() and names:
        problem = f"the run {run} has no checkpoint {' or '.join(f'checkpoints/{name}.ckpt' for name in names)}"
    else:
        problem = f"there is no checkpoint or run at {path}"
        if models and path.name == spec:
            problem += f" and no model {spec} in the package, which has {', '.join(models)}"
    raise UserError(problem + suggest(runs_nearby(path, "checkpoints/*.ckpt")))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of ddpm, or an exported model, as plain data, tensors on the CPU.

    Raises:
        UserError: the file is damaged, foreign, of an older layout, or holds more than tensors and plain data, which
            could run code when it is unpickled.
    """
    import torch

    checkpoint: Any
    try:
        with _explain(path):
            if path.suffix == ".safetensors":
                checkpoint = read_exported(path)
            else:
                check_records(path)
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects beside tensors and plain data. It was not written by ddpm, and "
            "is not loaded because it could run code"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "format" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of ddpm, or an old version wrote it: it carries no format")
    if type(checkpoint["format"]) is not int or checkpoint["format"] != FORMAT:
        raise UserError(f"{path} has format {checkpoint['format']}, and this version of ddpm reads format {FORMAT}")
    if not _is_state(checkpoint["state_dict"], path.stat().st_size) or not _is_step(checkpoint.get("global_step", 0)):
        raise UserError(f"{path} is damaged: its state_dict holds no weights, or its global_step is no step")
    return checkpoint


def _is_state(state: Any, size: int) -> bool:
    """Return whether `state` maps names to tensors that fit into a file of `size` bytes. Two names may share one."""
    from torch import Tensor

    return (
        isinstance(state, dict)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
        and sum(value.numel() * value.element_size() for value in state.values()) <= 2 * size
    )


def _is_step(step: Any) -> bool:
    return type(step) is int and 0 <= step < 2**63


def config_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the resolved config that a checkpoint carries.

    Raises:
        UserError: it carries none, as when the model was made in Python without one.
    """
    parameters = checkpoint.get("hyper_parameters")
    config = parameters.get("config") if isinstance(parameters, dict) else None
    if not isinstance(config, dict):
        raise UserError(
            f"{path} does not hold the config of its model. For a model that was made in Python, use "
            "DDPM.load_from_checkpoint(path, network=…, diffusion=…, image_shape=…)"
        )
    return config


def check_archive(path: Path) -> None:
    """Raise UserError unless the file is a complete archive of torch.save and its checksums are right.

    It is read in seconds, and takes less memory than the file has bytes.
    """
    import torch

    # Objects that torch does not load are foreign, not damage.
    with contextlib.suppress(pickle.UnpicklingError), _explain(path):
        check_records(path)
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # refuses some that zipfile reads


@contextlib.contextmanager
def _explain(path: Path) -> Iterator[None]:
    """Turn the exceptions of readers of damaged files into a UserError. UnpicklingError passes."""
    try:
        yield
    except (UserError, pickle.UnpicklingError):
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # zipfile, pickle and torch raise many types
        raise UserError(f"{path} is damaged, it may be incomplete: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
