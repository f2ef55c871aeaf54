"""Finds picture files and reads them as 8-bit pictures; used for image folders and for samples on disk."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

BACKGROUND = (255, 255, 255)
"""what a transparent picture is laid on: white"""
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
"""formats that Pillow lists but cannot decode by itself, or that need another program"""


class Found(NamedTuple):
    pictures: list[Path]
    """sorted"""
    left_out: Counter[str]
    """how many files of each other ending there are"""

    def note(self) -> str:
        """What was left out, in one line; empty if nothing was."""
        endings = ", ".join(f"{count} {ending}" for ending, count in sorted(self.left_out.items()))
        return f"left out, not pictures by their names: {endings}" if endings else ""


def find_pictures(root: Path) -> Found:
    """The picture files at any depth below `root`.

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


def readable_endings() -> set[str]:
    """The endings of the files that Pillow reads here, such as ".png"."""
    endings = Image.registered_extensions()  # loads all of Pillow's plugins
    return {ending for ending, kind in endings.items() if kind in Image.OPEN and kind not in NO_PICTURES}


def read_picture_file(path: Path, mode: str) -> Image.Image:
    """The picture, upright, in 8 bits per channel.

    Pictures of 16 or 32 bits and floats are scaled by their range; transparent ones are laid on `BACKGROUND`.

    Args:
        mode: "L" (grey) or "RGB".

    Raises:
        ValueError: the file is damaged, or its values have no known range.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith(("I", "F")):
                picture = _to_8_bits(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)
            return picture.convert(mode)
    except Exception as error:  # decoders raise exceptions of any type
        raise ValueError(f"cannot read the picture {path} ({error})") from error


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """From one channel of 16 or 32 bits, or of floats in 0 … 1 or 0 … 255."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if picture.mode.startswith("I"):
        top = 2**16 - 1 if picture.mode != "I" or high < 2**16 else 2**31 - 1
    else:
        top = 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # NaN is refused too
        raise ValueError(f"its values reach from {low:g} to {high:g}: expected 0 to {top}")
    return Image.fromarray(np.rint(values / top * 255).astype(np.uint8))
