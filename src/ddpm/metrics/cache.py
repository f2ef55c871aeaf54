"""Caches expensive tensors in a folder, under a key that is a hash of everything that changes them."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.runs.checkpoints import check_archive
from ddpm.runs.files import make_folder, replace_file


def cached(
    folder: Path | None, name: str, depends_on: tuple[str, ...], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors of `make()`, from `folder` if they are cached there. A damaged file is replaced.

    The files are written by `torch.save`. Their checksums are verified in the same way as those of checkpoints.

    Args:
        folder: the cache; None stores nothing.
        name: the first part of the file name; the key is the second part.
        depends_on: everything that changes the result.

    Raises:
        UserError: the folder cannot be made.
    """
    if folder is None:
        return make()
    key = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:16]
    path = folder / f"{name}-{key}.pt"
    tensors = _read(path)
    if tensors is None:
        tensors = make()
        archive = io.BytesIO()
        torch.save(tensors, archive)
        make_folder(folder)
        replace_file(path, archive.getvalue())
    return tensors


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of the shape and the bytes of a tensor."""
    return hashlib.sha256(str(list(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        check_archive(path)
    except UserError:
        return None
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
    return tensors
