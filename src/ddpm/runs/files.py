"""Files that are replaced in one step: a reader, or a kill at any moment, finds the old one or the new one, whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
