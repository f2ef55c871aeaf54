"""Replace files in one step: readers, and a kill at any moment, find the old file or the new one, complete."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if the file is absent, damaged or holds no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV. None becomes an empty cell. Texts that a spreadsheet would run as a formula get a `'`."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerows([_csv_cell(value) for value in row] for row in (header, *rows))


def _csv_cell(value: Any) -> Any:
    is_formula = isinstance(value, (str, Path)) and str(value).startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}.") from error


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by a file with this content."""
    with replacing(path, data):
        pass


@contextmanager
def replacing(path: Path, data: bytes | memoryview) -> Iterator[None]:
    """Write `data` to a temporary file beside `path` and sync it; after the block, rename it to `path`.

    Raises:
        OSError: the file could not be written; `path` is unchanged.
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
    """Write a folder's entries to the disk. Without this, a rename may be lost when the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
