"""Checkpoints on disk: found by what the user typed after `ckpt=`, read without running code from them."""

import contextlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.config import user_path
from ddpm.errors import UserError
from ddpm.runs.nearby import runs_nearby, suggest

FORMAT = 1
"""of the checkpoints that this version writes and reads"""
NAMES = ("best", "last")  # in the order of preference
FOLDER = 0x10  # in a zip record's external attributes


def find_checkpoint(spec: str) -> Path:
    """The file that `ckpt=spec` means: a checkpoint, a run (its best, else its last), RUN/best or RUN/last.

    Raises UserError, naming up to five runs nearby, where there is none.
    """
    if not spec.strip():
        raise UserError("ckpt is empty: give a checkpoint file or a run's directory")
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
    if run.is_dir() and names:
        problem = f"the run {run} has no checkpoint {' or '.join(f'checkpoints/{name}.ckpt' for name in names)}"
    else:
        problem = f"there is no checkpoint or run at {path}"
    raise UserError(problem + suggest(runs_nearby(path, "checkpoints/*.ckpt")))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ddpm as plain data, tensors on the CPU.

    Raises:
        UserError: the file is damaged, foreign, of an older layout, or holds more than tensors and plain data, which
            could run code when it is unpickled.
    """
    import torch

    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects beside tensors and plain data. It was not written by ddpm, and "
            "is not loaded because it could run code"
        ) from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "format" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of ddpm, or an old version wrote it: it carries no format")
    if checkpoint["format"] != FORMAT:
        raise UserError(f"{path} has format {checkpoint['format']}, and this version of ddpm reads format {FORMAT}")
    return checkpoint


def config_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The resolved config that a checkpoint carries.

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
    """Raise UserError unless the file is a complete zip archive that torch can open and whose checksums are right.

    The checksums cover the records. For the archive's directory two more checks are needed: torch must read it
    (zipfile tolerates sizes and counts that torch refuses), and no record may be marked as a folder (torch would
    then leave the record's memory uninitialised).
    """
    import torch

    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if not is_zip:
            raise UserError(f"{path} is not a checkpoint: not a file that torch.save writes")
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            folders = [record.filename for record in archive.infolist() if record.external_attr & FOLDER]
        if broken or folders:
            raise UserError(
                f"{path} is damaged: the checksum or the type of its record {broken or folders[0]} is wrong"
            )
        with contextlib.suppress(pickle.UnpicklingError):  # objects that torch does not load are foreign, not damage
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged directory makes zipfile and torch raise many types
        raise UserError(f"{path} is damaged, it may be incomplete: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
