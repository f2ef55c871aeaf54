"""Read the small files of a run, which may be damaged, and replace files in one step.

Readers, and a kill at any moment, find the old file or the new one, complete.
"""

import csv
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ddpm.config import check_plain
from ddpm.errors import UserError

MAX_JSON, MAX_YAML = 16 * 2**20, 2**18
"""bytes; a run's own files have a few thousand"""

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
    """Return the object in a JSON file, empty if the file is absent, too large, damaged or holds no object.

    Damaged is also a number that is not finite or has more than 64 bits: JSON has no NaN.
    """
    try:
        data = json.loads(read_text(path, MAX_JSON), parse_int=_integer, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the dict of plain data in a YAML file, empty if the file is absent, too large or damaged.

    Aliases are refused: a few lines with them describe more than fits into memory.
    """
    try:
        data = yaml.load(read_text(path, MAX_YAML), _WithoutAliases)
        check_plain(data, str(path))
    except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError, UserError):
        return {}
    return data if isinstance(data, dict) else {}


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("alias")
        return super().compose_node(parent, index)


def read_text(path: Path, at_most: int) -> str:
    """Return the text of a file. A pipe or a device is no file: reading it may never end.

    Raises:
        ValueError: the path is no file, or the file has more bytes than `at_most`.
    """
    if not path.is_file() or path.stat().st_size > at_most:
        raise ValueError(f"{path} is no file or too large")
    return path.read_text(encoding="utf-8")


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise ValueError("a number has more than 64 bits")
    return int(text)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def check_links(directory: Path) -> None:
    """Raise a UserError for a symbolic link by which a run would write outside its directory.

    The run writes into the directory itself and the folders in it. What lies deeper belongs to a logger, such as W&B,
    which makes links itself.
    """
    inside = directory.resolve()
    for path in (*directory.glob("*"), *directory.glob("*/*")):
        # realpath, since resolve raises RuntimeError for a link that leads to itself
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise UserError(f"{path} is a link that leads out of the run's directory: replace it by what it links to.")


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


def check_new_folder(path: Path) -> None:
    """Raise a UserError unless `path` is absent or an empty folder, and not the working directory."""
    is_empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if (os.path.lexists(path) and not is_empty) or path.absolute() == Path.cwd():
        raise UserError(f"{path} is there already: name a new folder, or an empty one.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; after the block, rename it to `path`.

    Raises:
        UserError: `path` is there already, or it cannot be made.
    """
    check_new_folder(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    make_folder(beside)
    try:
        yield beside
        try:
            beside.rename(path)
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror}.") from error
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
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
