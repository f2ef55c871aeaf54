"""Finds picture files and reads them as 8-bit pictures; used for image folders and for samples on disk."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

MODES = {1: "L", 3: "RGB"}
"""Pillow's name for a number of channels"""

BACKGROUND = (255, 255, 255)
"""white; transparent pictures are laid on it"""
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
"""formats that Pillow lists but cannot decode by itself, or that need another program"""
LONG = 2000
"""a progress bar is shown for this many pictures or more"""
BLOCK = 1000
"""pictures that are decoded before the next ones are started, which bounds the memory"""
LARGE = 2**22
"""pixels; larger pictures are decoded one at a time, which bounds the memory"""
_one_large_picture = Lock()


class Pictures(NamedTuple):
    """The pictures of a folder that can be read."""

    paths: list[Path]
    """sorted"""
    images: Tensor
    """uint8 [N, C, H, W]"""


Fit = Callable[[Image.Image], Image.Image]
"""brings a picture with 8 bits per channel to the size"""


def read_pictures(root: Path, shape: tuple[int, int, int], fit: Fit = lambda picture: picture) -> Pictures:
    """Return all pictures at any depth below `root`. Prints a line if any are left out.

    Pictures that are damaged, have another size, or have more pixels than Pillow's limit, are left out and counted.

    Args:
        shape: C (1 or 3), H, W.

    Raises:
        ValueError: there is no picture that can be read.
    """
    others: list[Path] = []
    pictures = find_pictures(root, others)
    images = torch.empty(len(pictures), *shape, dtype=torch.uint8)
    paths: list[Path] = []
    reasons: list[str] = []
    for path, result in decode_pictures(root, pictures, shape, fit):
        if isinstance(result, str):
            reasons.append(result)
        else:
            images[len(paths)] = result
            paths.append(path)
    note = note_of_left_out(others, reasons)
    check_any(root, paths, note)
    if note:
        print(f"{root}: {len(paths)} pictures; {note}", flush=True)
    return Pictures(paths, images[: len(paths)])


def check_any(root: Path, paths: Sequence[str | Path], note: str) -> None:
    """Raise a ValueError if no picture of a folder can be read. `note` says what was left out."""
    if not paths:
        raise ValueError(f"there is no picture in {root} that can be read. {note}".rstrip())


def decode_pictures(
    root: Path, pictures: Sequence[Path], shape: tuple[int, int, int], fit: Fit
) -> Iterator[tuple[Path, Tensor | str]]:
    """Yield each path with its picture, uint8 [C, H, W], or with the reason why the picture is left out.

    Shows a progress bar if there are many. A few pictures at a time are in memory.
    """

    def read(path: Path) -> Tensor | str:
        try:
            return to_tensor(fit(read_picture_file(path, MODES[shape[0]])), shape)
        except Exception as error:  # `fit` fails for a picture without pixels, for example
            return f"{path}: {error}"

    blocks = [pictures[first : first + BLOCK] for first in range(0, len(pictures), BLOCK)]
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool, progress(f"Reading {root}", len(pictures)) as advance:
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for block in blocks:
            yield from zip(block, pool.map(read, block), strict=True)
            advance(len(block))


@contextmanager
def progress(caption: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of this many pictures, if they are many; yields a function that counts finished ones."""
    with Progress(console=Console(stderr=True), transient=True, disable=total < LONG) as shown:
        task = shown.add_task(caption, total=total)
        yield lambda count: shown.advance(task, count)


def to_tensor(picture: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """Return a picture of 8 bits per channel as uint8 [C, H, W].

    Raises:
        ValueError: the picture has another size.
    """
    channels, height, width = shape
    if picture.size != (width, height):
        raise ValueError(f"it has {picture.width}×{picture.height} pixels: expected {width}×{height}")
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)


def note_of_left_out(others: Iterable[str | Path], reasons: Sequence[str]) -> str:
    """Return what was left out, in one line; empty if nothing was."""
    endings = Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in others)
    parts = [f"{count} {ending}" for ending, count in sorted(endings.items())]
    if reasons:
        first = " ".join(reasons[0].split())
        parts.append(f"{len(reasons)} that cannot be used, such as {first}")
    return f"left out: {', '.join(parts)}" if parts else ""


def find_pictures(root: Path, others: list[Path] | None = None) -> list[Path]:
    """Return the picture files at any depth below `root`, sorted.

    Each real file counts once, whatever links lead to it. Hidden files and folders, pipes and devices are skipped.

    Args:
        others: gets the files that are no pictures by their ending.
    """
    pictures, left_out = picture_names(root)
    if others is not None:
        others += (root / name for name in left_out)
    return [root / name for name in pictures]


def picture_names(root: Path, skip: Path | None = None) -> tuple[list[str], list[str]]:
    """Return the files of `find_pictures` and the other files, relative to `root`. `skip` is a folder to leave out.

    The names are texts, because paths as objects take longer than all else for many files.
    """
    files: dict[str, str] = {}
    found = _files_below(str(root), "", set() if skip is None else {os.path.realpath(skip)})
    for name, real in sorted(found, key=lambda file: file[0].replace("/", "\0")):  # folder by folder, as paths sort
        files.setdefault(real, name)
    names: dict[bool, list[str]] = {True: [], False: []}
    endings = readable_endings()
    for name in files.values():
        names[os.path.splitext(name)[1].lower() in endings].append(name)
    return names[True], names[False]


def _files_below(folder: str, prefix: str, entered: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the path of each file, after `prefix`, and its real path."""
    real_folder = os.path.realpath(folder)
    if real_folder in entered:  # a link to a folder that was entered already
        return
    entered.add(real_folder)
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(entry.path, f"{prefix}{entry.name}/", entered)
        elif entry.is_file():
            # Resolving each path would take longer than all else for many files.
            real = os.path.realpath(entry.path) if entry.is_symlink() else f"{real_folder}/{entry.name}"
            yield prefix + entry.name, real


def readable_formats() -> list[str]:
    """Return Pillow's names of the formats that it decodes by itself."""
    Image.init()  # loads all plugins
    return [name for name in Image.OPEN if name not in NO_PICTURES]


def readable_endings() -> set[str]:
    """Return the endings of the files that Pillow reads here, such as ".png"."""
    formats = set(readable_formats())
    return {ending for ending, name in Image.registered_extensions().items() if name in formats}


def read_picture_file(path: Path, mode: str) -> Image.Image:
    """Return the picture, upright, in 8 bits per channel.

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
    """Convert one channel of 16 or 32 bits, or of floats in 0 … 1 or 0 … 255."""
    values: Any = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if picture.mode.startswith("I"):
        top = 2**16 - 1 if picture.mode != "I" or high < 2**16 else 2**31 - 1
    else:
        top = 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # this form also refuses NaN
        raise ValueError(f"its values reach from {low:g} to {high:g}: expected 0 to {top}")
    return Image.fromarray(np.rint(values / top * 255).astype(np.uint8))
