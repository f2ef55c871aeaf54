"""Reads samples of digits from any source: folders of pictures, NumPy files, IDX files."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ddpm.data.idx import read_idx
from ddpm.data.picture_files import find_pictures, read_picture_file
from ddpm.metrics.digit_classifier import IMAGE_SHAPE

ARRAY_NAMES = ("images", "arr_0")
ROUNDING = 1e-3  # floats may exceed their range by this much


def read_samples(path: Path) -> Tensor:
    """Returns grey digits, white on black, as uint8 [N, 1, 28, 28].

    `path` is one of:

    - a folder: all pictures in it and in its subfolders, sorted by path
    - *.npy: one array; *.npz: its only array, or the array named "images" or "arr_0"
    - an IDX file, gzipped if its name ends in .gz

    Arrays are [N, 28, 28], [N, 1, 28, 28] or [N, 28, 28, 1]; integers in 0 … 255, floats in [0, 1] or in [-1, 1].

    Raises:
        ValueError: `path` does not exist, or is not one of these.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}.")
    if path.suffix in (".npy", ".npz"):
        return to_digits(_read_numpy(path), str(path))
    if path.suffix == ".png":
        raise ValueError(f"{path} is one image: name the folder of images.")
    return to_digits(read_idx(path).numpy(), str(path))


def to_digits(array: np.ndarray, name: str) -> Tensor:
    """Returns an array of digits as uint8 [N, 1, 28, 28]; see `read_samples`. Error messages mention `name`."""
    height, width = IMAGE_SHAPE[1:]
    shapes = ((1, height, width), (height, width), (height, width, 1))
    if array.shape[1:] not in shapes or len(array) == 0:
        raise ValueError(
            f"{name} has the shape {list(array.shape)}: expected [N, 28, 28], [N, 1, 28, 28] or [N, 28, 28, 1]."
        )
    return torch.from_numpy(_to_bytes(array, name).reshape(-1, 1, height, width))


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} has elements of {array.dtype}: expected integers or floats.")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer):
        if low < 0 or high > 255:
            raise ValueError(f"{name} has integers from {low} to {high}: expected 0 to 255.")
        if high <= 1:
            raise ValueError(f"{name} has the integers 0 and 1 alone: multiply by 255 if 1 is white.")
        return array.astype(np.uint8)
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # this form also rejects NaN
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


def _read_folder(folder: Path) -> Tensor:
    found = find_pictures(folder)
    if not found.pictures:
        raise ValueError(f"there is no picture in {folder}. {found.note()}".rstrip())
    return to_digits(np.stack([_read_digit(path) for path in found.pictures]), str(folder))


def _read_digit(path: Path) -> np.ndarray:
    picture = read_picture_file(path, "L")
    if picture.size != IMAGE_SHAPE[:0:-1]:
        raise ValueError(f"{path} is {picture.width}×{picture.height} pixels: expected 28×28.")
    return np.asarray(picture)


def seem_inverted(digits: Tensor) -> bool:
    """Returns whether most digits [N, 1, 28, 28] have a light border, so are dark on white, not white on black."""
    border = torch.cat([digits[..., [0, -1], :].flatten(1), digits[..., :, [0, -1]].flatten(1)], dim=1)
    return bool((border.float().mean(dim=1) > 127.5).float().mean() > 0.5)


def _read_numpy(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":  # mapped: a header with too large a shape allocates no memory
            arrays = {ARRAY_NAMES[0]: np.lib.format.open_memmap(path, mode="r")}
        else:
            with path.open("rb") as file:  # np.load does not close a damaged file that it opened
                arrays = dict(np.load(file, allow_pickle=False))
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no NumPy file of plain numbers, or is damaged.") from error
    named = [arrays[name] for name in ARRAY_NAMES if name in arrays] or list(arrays.values())
    if not named or (len(arrays) > 1 and not arrays.keys() & set(ARRAY_NAMES)):
        raise ValueError(f"{path} holds the arrays {list(arrays)}: call that of the digits images.")
    if not isinstance(named[0], np.ndarray):
        raise ValueError(f"{path} is no NumPy file of plain numbers, or is damaged.")
    return named[0]
