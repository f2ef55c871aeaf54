"""Tensors that take long to make and depend only on what is known: kept in a folder under a key of that."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ddpm.runs.files import make_folder, replace_file

CHECKSUM = "sha256"


def cached(
    folder: Path | None, name: str, depends_on: tuple[str, ...], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `make` returns, from `folder` if it is there; a file that is damaged is made anew.

    Args:
        folder: None keeps nothing.
        name: begins the file's name; the key follows.
        depends_on: everything that changes the result.

    Raises:
        UserError: the folder cannot be made.
    """
    if folder is None:
        return make()
    key = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:16]
    path = folder / f"{name}-{key}.safetensors"
    tensors = _read(path)
    if tensors is None:
        tensors = make()
        make_folder(folder)
        replace_file(path, safetensors.torch.save({**tensors, CHECKSUM: _checksum(tensors)}))
    return tensors


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and bytes."""
    return hashlib.sha256(str(list(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return None
    checksum = tensors.pop(CHECKSUM, None)
    return tensors if checksum is not None and torch.equal(checksum, _checksum(tensors)) else None


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    """uint8 [32]: safetensors itself notices a file that is too short, not one with other bytes."""
    names = sorted(tensors)
    whole = hashlib.sha256("\n".join([*names, *(digest(tensors[name]) for name in names)]).encode())
    return torch.frombuffer(bytearray(whole.digest()), dtype=torch.uint8)
