"""Decoded pictures in a file: written once, then mapped into memory, so that many pictures start in seconds.

The file is in the safetensors format: `images` uint8 [N, C, H, W], `labels` int64 [N], `checksums` int64 [parts]. Its
metadata names everything that the pictures depend on.
"""

import errno
import json
import os
import shutil
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

Shape = tuple[int, int, int]
PART = 2**24
"""bytes of labels and images with a checksum of their own"""
LAYOUT = "1"
"""of the file"""
BLOCK = 1000
"""images that are copied at once"""


class OpenFile:
    """A file that stays the same while it is open, even if another file gets its path."""

    def __init__(self, path: Path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def __reduce__(self) -> Any:  # for workers that are not forked
        return OpenFile, (self.path,)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def is_at(self, path: Path) -> bool:
        """Return whether the file still has this path."""
        return os.path.samestat(os.fstat(self.descriptor), path.stat())

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on.

        Raises:
            OSError: the file cannot be read, or ends before the buffer is full.
        """
        while len(buffer):
            count = os.preadv(self.descriptor, [buffer], offset)
            if count == 0:
                raise OSError(errno.EIO, "the file ends early", str(self.path))
            buffer, offset = buffer[count:], offset + count


@dataclass(frozen=True)
class ImageRows(Dataset[tuple[Tensor, Tensor]]):
    """Images in a file, and their labels in memory. A batch is read from the file.

    Memory is needed for the batch alone. The pages of a memory-mapped tensor would count as memory of the process.
    """

    file: OpenFile
    start: int
    """offset of the first image in bytes"""
    shape: Shape
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] and labels [B]. The DataLoader reads whole batches if this method exists."""
        size = size_of(self.shape)
        images = np.empty((len(indices), size), dtype=np.uint8)
        for row, index in zip(images, indices.tolist(), strict=True):
            self.file.read_into(row.data, self.start + index * size)
        return torch.from_numpy(images).view(-1, *self.shape), self.labels[indices]

    def part(self, first: int, count: int) -> "ImageRows":
        """Return `count` images from the one with index `first` on."""
        return replace(self, start=self.start + first * size_of(self.shape), labels=self.labels[first : first + count])


class Cache(NamedTuple):
    """A file of decoded pictures, open."""

    images: Tensor
    """mapped into memory"""
    rows: ImageRows
    """the same images, to be read in batches"""
    facts: dict[str, Any]
    """stored beside the images"""


class Decoded(NamedTuple):
    """Pictures that were appended to a temporary file as bytes."""

    order: Tensor
    """the index in the file of each picture, in the order in which the pictures are wanted, int64 [N]"""
    labels: Tensor
    """in the wanted order, int64 [N]"""
    facts: dict[str, Any]
    """to be stored beside the images"""


def size_of(shape: Shape) -> int:
    """Return the bytes of an image."""
    return shape[0] * shape[1] * shape[2]


def open_or_write(path: Path, inputs: str, at_most: int, shape: Shape, decode: Callable[[IO[bytes]], Decoded]) -> Cache:
    """Return the pictures in the file `path`. A file that is absent, damaged or has other `inputs` is written first.

    The file appears complete or not at all. Of several processes one writes it, and the others wait.

    Args:
        inputs: a digest of everything that the pictures depend on.
        at_most: the number of pictures, for the space that is needed.
        decode: appends the pictures to the open file.

    Raises:
        OSError: the file cannot be written.
    """
    if cache := _read(path, inputs, shape):
        return cache
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if cache := _read(path, inputs, shape):  # by another process in the meantime
            return cache
        if shutil.disk_usage(path.parent).free < 2 * at_most * size_of(shape):  # the pictures are written twice
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
        with _replacing(path) as file:
            _write(file, inputs, shape, decode)
    cache = _read(path, inputs, shape)
    if cache is None:
        raise OSError(errno.EIO, "what was written is not what is read", str(path))
    return cache


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, and delete the temporary files of killed processes. Without locks in the file system, do nothing."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process reads these pictures into {path}: waiting for it.", flush=True)
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        yield
        return
    try:
        for orphan in path.parent.glob(f".{path.name}.*.tmp"):
            orphan.unlink()
        yield
    finally:
        lock.release()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file; after the block, rename it to `path`."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _write(file: IO[bytes], inputs: str, shape: Shape, decode: Callable[[IO[bytes]], Decoded]) -> None:
    """Write the pictures in their wanted order, by way of a second temporary file."""
    unordered = Path(f"{file.name}.unordered.tmp")
    try:
        with unordered.open("xb") as appended:
            order, labels, facts = decode(appended)
        # The open file stays readable after it is unlinked below.
        rows = ImageRows(OpenFile(unordered), 0, shape, torch.zeros(int(order.max()) + 1))
    finally:
        unordered.unlink(missing_ok=True)

    size = labels.nbytes + len(labels) * size_of(shape)
    checksums = np.zeros(-(-size // PART), np.int64)
    file.write(_header(checksums.nbytes, len(labels), shape, {"layout": LAYOUT, "inputs": inputs, "facts": facts}))
    start = file.tell()
    file.write(checksums.data)
    position = 0

    def write(data: memoryview) -> None:
        nonlocal position
        while len(data):
            piece = data[: PART - position % PART]
            checksums[position // PART] = zlib.crc32(piece, int(checksums[position // PART]))
            file.write(piece)
            position, data = position + len(piece), data[len(piece) :]

    write(_bytes(labels))
    for block in order.split(BLOCK):
        write(_bytes(rows.__getitems__(block)[0]))
    file.seek(start)
    file.write(checksums.data)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.numpy().data.cast("B")


def _header(checksums: int, num_images: int, shape: Shape, metadata: dict[str, Any]) -> bytes:
    """Return the beginning of a safetensors file. The writer of safetensors would need all tensors in memory."""
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(value) for key, value in metadata.items()}}
    end = 0
    for name, dtype, sizes, nbytes in (
        ("checksums", "I64", [checksums // 8], checksums),
        ("labels", "I64", [num_images], 8 * num_images),
        ("images", "U8", [num_images, *shape], num_images * size_of(shape)),
    ):
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligned for int64
    return len(text).to_bytes(8, "little") + text


def _read(path: Path, inputs: str, shape: Shape) -> Cache | None:
    """Return the pictures in a file; None if it is absent or damaged, or has other inputs."""
    try:
        file = OpenFile(path)
        with safe_open(path, framework="pt") as tensors:
            metadata = {key: json.loads(value) for key, value in tensors.metadata().items()}
            checksums, labels, images = (tensors.get_tensor(name) for name in ("checksums", "labels", "images"))
        if metadata["layout"] != LAYOUT or metadata["inputs"] != inputs or images.shape[1:] != shape:
            return None
        start = file.size - images.nbytes
        if not file.is_at(path) or _checksums(file, start - labels.nbytes) != checksums.tolist():
            return None
        labels = labels.clone()  # not mapped: it is used at every step
        return Cache(images, ImageRows(file, start, shape, labels), metadata["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksums(file: OpenFile, start: int) -> list[int]:
    """Return the checksum of each part of the file from `start` on."""

    def checksum(first: int) -> int:
        buffer = memoryview(bytearray(min(PART, file.size - first)))
        file.read_into(buffer, first)
        return zlib.crc32(buffer)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(checksum, range(start, file.size, PART)))
