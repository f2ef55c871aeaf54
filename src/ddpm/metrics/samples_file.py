"""Reads samples of images from any source: folders of pictures, NumPy files, IDX files."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ddpm.data.idx import largest_size, read_idx
from ddpm.data.picture_files import read_pictures

ARRAY_NAMES = ("images", "arr_0")
ROUNDING = 1e-3  # floats may exceed their range by this much

Shape = tuple[int, int, int]
"""(C, H, W) of an image"""


def read_samples(path: Path, shape: Shape) -> Tensor:
    """Return images of the shape (C, H, W) as uint8 [N, C, H, W].

    `path` is one of:

    - a folder: all pictures in it and in its subfolders, sorted by path
    - *.npy: one array; *.npz: its only array, or the array named "images" or "arr_0"
    - an IDX file, gzipped or not

    Arrays are [N, C, H, W] or [N, H, W, C], or [N, H, W] if they are grey; integers in 0 … 255, floats in [0, 1] or in
    [-1, 1].

    Raises:
        ValueError: `path` does not exist, is not one of these, or holds images of another shape.
    """
    if path.is_dir():
        return read_pictures(path, shape).images
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}.")
    if path.suffix in (".npy", ".npz"):
        return to_images(_read_numpy(path, shape), shape, str(path))
    if path.suffix == ".png":
        raise ValueError(f"{path} is one image: name the folder of images.")
    return to_images(read_idx(path).numpy(), shape, str(path))


def to_images(array: np.ndarray, shape: Shape, name: str) -> Tensor:
    """Return an array of images as uint8 [N, C, H, W]; see `read_samples`. Error messages mention `name`."""
    _check_shape(array.shape, shape, name)
    images = torch.from_numpy(_to_bytes(array, name))
    if array.shape[1:] == shape or shape[0] == 1:
        return images.reshape(-1, *shape)
    return images.permute(0, 3, 1, 2).contiguous()


def doubts(digits: Tensor) -> str | None:
    """Return what is suspicious in digits [N, 1, 28, 28] that should be white on black; None if nothing is."""
    border = torch.cat([digits[..., [0, -1], :].flatten(1), digits[..., :, [0, -1]].flatten(1)], dim=1)
    background, brightest = border.float().median().item(), digits.amax(dim=(1, 2, 3)).float().median().item()
    if background > 191:
        return "The samples seem inverted: expected white digits on a black background."
    if background > 32 or brightest < 192:
        return (
            f"The samples have backgrounds of about {background:.0f} and digits of about {brightest:.0f}: "
            "expected 0 and 255. They may be scaled from another range."
        )
    return None


def _check_shape(found: tuple[int, ...], shape: Shape, name: str) -> None:
    channels, height, width = shape
    allowed = [shape, (height, width, channels), *([(height, width)] if channels == 1 else [])]
    if found[1:] not in allowed or found[0] == 0:
        expected = " or ".join(f"[N, {', '.join(map(str, sides))}]" for sides in allowed)
        raise ValueError(f"{name} has the shape {list(found)}: expected {expected}.")


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} has elements of {array.dtype}: expected integers or floats.")
    low, high = array.min(), array.max()
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise ValueError(f"{name} has integers from {low} to {high}: expected 0 to 255.")
        if high <= 1:
            raise ValueError(f"{name} has the integers 0 and 1 alone: multiply by 255 if 1 is white.")
        return array.astype(np.uint8)
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # this form also refuses NaN
        raise ValueError(
            f"{name} has floats from {low:g} to {high:g}: expected [0, 1] or [-1, 1]; clamp them, or divide by 255."
        )
    black = 0 if low >= -ROUNDING else -1
    if black == -1 and low > -0.5:  # with black at -1, the background of a digit is near -1
        raise ValueError(
            f"{name} has floats from {low:g} to {high:g}, which is neither [0, 1] nor, with black at -1, [-1, 1]: "
            "clamp them to [0, 1] or save uint8."
        )
    unit = (array.astype(np.float32) - black) / (1 - black)
    return np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)


def _read_numpy(path: Path, shape: Shape) -> np.ndarray:
    """Return the array of images in a NumPy file. The header is checked first, so that memory stays bounded.

    Raises:
        ValueError: the file is damaged, holds no plain numbers, or its array has another shape.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return _read_array(file, path, path.stat().st_size, shape)
        with zipfile.ZipFile(path) as archive:
            arrays = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            named = [arrays[name] for name in ARRAY_NAMES if name in arrays] or list(arrays.values())
            if not named or (len(arrays) > 1 and not arrays.keys() & set(ARRAY_NAMES)):
                raise _WrongArrayError(f"{path} holds the arrays {list(arrays)}: call the one with images 'images'.")
            with archive.open(named[0]) as file:
                return _read_array(file, path, largest_size(named[0].compress_size), shape)
    except _WrongArrayError as error:
        raise ValueError(str(error)) from error
    # The zip module and NumPy's parser of headers raise exceptions of many types.
    except Exception as error:
        raise ValueError(f"{path} is no NumPy file of plain numbers, or is damaged.") from error


class _WrongArrayError(ValueError):
    """The file is a NumPy file, but not of such images."""


def _read_array(file: IO[bytes], path: Path, at_most: int, shape: Shape) -> np.ndarray:
    """Return the array in an open file in NumPy's format of at most `at_most` bytes."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found, fortran_order, dtype = read_header(file)
    if dtype.hasobject or math.prod(found) * dtype.itemsize > at_most:
        raise EOFError
    try:
        _check_shape(found, shape, str(path))
    except ValueError as error:
        raise _WrongArrayError(str(error)) from error
    data = bytearray(file.read(math.prod(found) * dtype.itemsize))
    return np.frombuffer(data, dtype).reshape(found, order="F" if fortran_order else "C")
