"""Finds picture files and reads them as 8-bit pictures; used for image folders and for samples on disk."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

MODES = {1: "L", 3: "RGB"}
"""Pillow's name for a number of channels"""

BACKGROUND = (255, 255, 255)
"""white; transparent pictures are laid on it"""
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
"""formats that Pillow lists but cannot decode by itself, or that need another program"""
LONG = 2000
"""a progress bar is shown for this many pictures or more"""
LARGE = 2**22
"""pixels; larger pictures are decoded one at a time, which bounds the memory"""
_one_large_picture = Lock()


class Found(NamedTuple):
    pictures: list[Path]
    """sorted"""
    left_out: Counter[str]
    """number of other files by their ending"""


class Pictures(NamedTuple):
    """The pictures of a folder that can be read."""

    paths: list[Path]
    """sorted"""
    images: Tensor
    """uint8 [N, C, H, W]"""


def read_pictures(
    root: Path, shape: tuple[int, int, int], fit: Callable[[Image.Image], Image.Image] = lambda picture: picture
) -> Pictures:
    """Returns all pictures at any depth below `root`. Prints a line if any are left out.

    Pictures that are damaged, have another size, or have more pixels than Pillow's limit, are left out and counted.

    Args:
        shape: C (1 or 3), H, W.
        fit: brings a picture with 8 bits per channel to the size.

    Raises:
        ValueError: there is no picture that can be read.
    """
    found = find_pictures(root)

    def read(path: Path) -> Tensor | str:
        """Returns the picture, or the reason why it is left out."""
        try:
            return to_tensor(fit(read_picture_file(path, MODES[shape[0]])), shape)
        except Exception as error:  # `fit` fails for a picture without pixels, for example
            return f"{path}: {error}"

    images = torch.empty(len(found.pictures), *shape, dtype=torch.uint8)
    paths: list[Path] = []
    reasons: list[str] = []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = track(
            pool.map(read, found.pictures),
            f"Reading {root}",
            total=len(found.pictures),
            console=Console(stderr=True),
            transient=True,
            disable=len(found.pictures) < LONG,
        )
        for path, result in zip(found.pictures, results, strict=True):
            if isinstance(result, str):
                reasons.append(result)
            else:
                images[len(paths)] = result
                paths.append(path)
    note = _note(found.left_out, reasons)
    if not paths:
        raise ValueError(f"there is no picture in {root} that can be read. {note}".rstrip())
    if note:
        print(f"{root}: {len(paths)} pictures; {note}", flush=True)
    return Pictures(paths, images[: len(paths)])


def to_tensor(picture: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """Returns a picture of 8 bits per channel as uint8 [C, H, W].

    Raises:
        ValueError: the picture has another size.
    """
    channels, height, width = shape
    if picture.size != (width, height):
        raise ValueError(f"it has {picture.width}×{picture.height} pixels: expected {width}×{height}")
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)


def _note(left_out: Counter[str], reasons: list[str]) -> str:
    """Returns what was left out, in one line; empty if nothing was."""
    parts = [f"{count} {ending}" for ending, count in sorted(left_out.items())]
    if reasons:
        first = " ".join(reasons[0].split())
        parts.append(f"{len(reasons)} that cannot be used, such as {first}")
    return f"left out: {', '.join(parts)}" if parts else ""


def find_pictures(root: Path) -> Found:
    """Returns the picture files at any depth below `root`.

    Each real file counts once, whatever links lead to it. Hidden files and folders, pipes and devices are skipped.
    """
    endings = readable_endings()
    pictures: list[Path] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for path in sorted(_files_below(root, set())):
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        if path.suffix.lower() in endings:
            pictures.append(path)
        else:
            left_out[path.suffix.lower() or "without an ending"] += 1
    return Found(pictures, left_out)


def _files_below(folder: Path, entered: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in entered:  # a link to a folder that was entered already
        return
    entered.add(real)
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(Path(entry.path), entered)
        elif entry.is_file():
            yield Path(entry.path)


def readable_formats() -> list[str]:
    """Returns Pillow's names of the formats that it decodes by itself."""
    Image.init()  # loads all plugins
    return [name for name in Image.OPEN if name not in NO_PICTURES]


def readable_endings() -> set[str]:
    """Returns the endings of the files that Pillow reads here, such as ".png"."""
    formats = set(readable_formats())
    return {ending for ending, name in Image.registered_extensions().items() if name in formats}


def read_picture_file(path: Path, mode: str) -> Image.Image:
    """Returns the picture, upright, in 8 bits per channel.

    Pictures of 16 or 32 bits and floats are scaled by their range. Transparent ones are laid on `BACKGROUND`.

    Args:
        mode: "L" (grey) or "RGB".

    Raises:
        ValueError: the file is damaged or too large, or its values have no known range.
    """
    try:
        with Image.open(path, formats=readable_formats()) as file:
            if file.width * file.height <= LARGE:
                return _decode(file, mode)
            with _one_large_picture:
                return _decode(file, mode)
    except Exception as error:  # decoders raise exceptions of any type
        raise ValueError(str(error)) from error


def _decode(file: Image.Image, mode: str) -> Image.Image:
    picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith(("I", "F")):
        picture = _to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)
    return picture.convert(mode)


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Converts one channel of 16 or 32 bits, or of floats in 0 … 1 or 0 … 255."""
    values: Any = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if picture.mode.startswith("I"):
        top = 2**16 - 1 if picture.mode != "I" or high < 2**16 else 2**31 - 1
    else:
        top = 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # this form also refuses NaN
        raise ValueError(f"its values reach from {low:g} to {high:g}: expected 0 to {top}")
    return Image.fromarray(np.rint(values / top * 255).astype(np.uint8))
