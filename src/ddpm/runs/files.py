"""Files that are replaced in one step: a reader, or a kill at any moment, finds the old one or the new one, whole."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; empty where it is absent, damaged, or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def make_folder(path: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        UserError: that is not possible there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}.") from error


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` in the place of `path`."""
    with replacing(path, data):
        pass


@contextmanager
def replacing(path: Path, data: bytes | memoryview) -> Iterator[None]:
    """Within the block `data` lies beside `path`, on the disk; after it, in its place.

    Raises:
        OSError: it could not be written; `path` is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield
        os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename is not until then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
