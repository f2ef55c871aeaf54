"""Reads and writes IDX, the file format of MNIST: a header with the sizes, then the bytes.

torchvision also reads IDX, but not gzipped. The images in this package and Debian's Fashion-MNIST are gzipped.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTES = b"\x00\x00\x08"
"""first bytes of a file with uint8 elements; the number of dimensions follows"""


def read_idx(path: Path) -> Tensor:
    """Returns the uint8 array in an IDX file; `*.gz` is decompressed.

    Raises:
        ValueError: the file is damaged, or is not an IDX file of bytes.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = struct.unpack_from(f">{data[3]}I", data, offset=4)
    except (gzip.BadGzipFile, EOFError, zlib.error, IndexError, struct.error):
        data, shape = b"", ()
    start = 4 + 4 * len(shape)
    if data[:3] != UNSIGNED_BYTES or len(data) != start + math.prod(shape):
        raise ValueError(f"{path} is no IDX file of bytes, or is damaged: put a good copy in its place.")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)


def write_idx(path: Path, array: Tensor) -> None:
    """Writes a uint8 array as a gzipped IDX file. Equal arrays give equal bytes."""
    header = UNSIGNED_BYTES + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed,
    ):
        packed.write(header + array.numpy().tobytes())
