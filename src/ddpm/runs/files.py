"""Replace files in one step: readers, and a kill at any moment, find the old file or the new one, complete."""

import csv
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.errors import UserError

# What a machine refuses, whatever the program does. Other errors, such as ENOENT, may be a mistake in the code.
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENOTSUP,
}  # fmt: skip
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def os_errors_in_one_line() -> Iterator[None]:
    """Raise a UserError that names the file and the reason where the operating system refuses a file operation.

    A full disk, a read-only file system, the directory of another user, too many open files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else "a file cannot be written: "
        raise UserError(f"{where}{error.strerror} (DDPM_DEBUG=1 shows where)") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if the file is absent, damaged or holds no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV. None becomes an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


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
            _sync(file.fileno())
        yield
        os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk. Without this, a rename may be lost when the power fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written and not read
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Write a file to the disk. Some network file systems cannot be asked to, most of them only for folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
