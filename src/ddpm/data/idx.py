"""Reads and writes IDX, the file format of MNIST: a header with the sizes, then the bytes.

torchvision also reads IDX, but not gzipped. The images in this package and Debian's Fashion-MNIST are gzipped.
"""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

UNSIGNED_BYTES = b"\x00\x00\x08"
"""first bytes of a file with uint8 elements; the number of dimensions follows"""
MAX_COMPRESSION = 200
"""unpacked size divided by packed size; images of digits have about 5"""
FREE = 2**26
"""bytes that may be unpacked whatever the compression"""


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array in an IDX file, gzipped or not.

    Raises:
        ValueError: the file cannot be read or is damaged, or is not an IDX file of bytes.
    """
    try:
        with _open(path) as file:
            shape = _read_header(file)
            size = math.prod(shape)
            if size > largest_size(os.path.getsize(path)):
                raise ValueError
            data = bytearray(file.read(size + 1))  # one byte more, to see whether the file goes on
            if len(data) != size:
                raise ValueError
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is no IDX file of bytes, or is damaged: put a good copy in its place.") from error
    return torch.frombuffer(data, dtype=torch.uint8).view(shape) if size else torch.empty(shape, dtype=torch.uint8)


def idx_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape in the header of an IDX file of bytes; None for any other file."""
    try:
        with _open(path) as file:
            return _read_header(file)
    except (OSError, EOFError, ValueError, struct.error, zlib.error):
        return None


def largest_size(packed: int) -> int:
    """Return the number of bytes that a packed file of `packed` bytes may hold. More would be made to fill memory."""
    return packed * MAX_COMPRESSION + FREE


def write_idx(path: Path, array: Tensor) -> None:
    """Write a uint8 array as a gzipped IDX file. Equal arrays give equal bytes."""
    header = UNSIGNED_BYTES + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed,
    ):
        packed.write(header + array.numpy().tobytes())


def _open(path: Path) -> IO[bytes]:
    """Open the file, unpacked if it is gzipped, whatever its name."""
    file = path.open("rb")
    is_gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not is_gzipped:
        return file
    file.close()
    return io.BufferedReader(gzip.GzipFile(path))


def _read_header(file: IO[bytes]) -> tuple[int, ...]:
    start = file.read(4)
    if start[:3] != UNSIGNED_BYTES:
        raise ValueError
    dimensions = start[3]
    return struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
