"""IDX, the file format of MNIST: a header with the sizes, then the bytes.

torchvision reads it too, but not gzipped, as the embedded images are and as Debian packages Fashion-MNIST.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTES = b"\x00\x00\x08"
"""how a file begins whose elements are uint8; the number of dimensions follows"""


def read_idx(path: Path) -> Tensor:
    """The uint8 array in an IDX file; `*.gz` is unpacked.

    Raises:
        ValueError: the file is damaged, or something else.
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
    """Write a uint8 array as a gzipped IDX file; equal arrays give equal bytes."""
    header = UNSIGNED_BYTES + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed,
    ):
        packed.write(header + array.numpy().tobytes())
