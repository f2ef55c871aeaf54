"""Any folder of pictures as a data set."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ddpm.config import user_path
from ddpm.data.images import ImageData, Split
from ddpm.data.picture_files import find_pictures, read_picture_file
from ddpm.errors import UserError
from ddpm.seeding import Stream, generator

MODES = {1: "L", 3: "RGB"}
"""PIL's name for a number of channels"""
LONG = 2000
"""a progress bar is shown for this many pictures or more"""


class ImageFolder(ImageData):
    """All pictures below a folder, cropped around the centre and scaled to one size, in memory.

    The label of a picture is the index, by name, of the sub-folder of `root` that holds it (0 without sub-folders).

    Args:
        root: the folder; `~` is the home directory.
        image_size: H = W or [H, W] in pixels.
        image_channels: 1 (gray) or 3 (RGB).
        validation_fraction, test_fraction: shares of all pictures, rounded up; the rest is for training.
        split_seed: decides which pictures these are.
        batch_size, kwargs: see `ImageData`.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 128,
        image_channels: int = 3,
        image_size: int | Sequence[int] = 32,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(batch_size, image_channels, image_size, **kwargs)
        if image_channels not in MODES:
            raise ValueError(f"image_channels={image_channels}: pictures are read with 1 (gray) or 3 (RGB).")
        if min(validation_fraction, test_fraction) <= 0 or validation_fraction + test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction must be above 0, and below 1 together.")
        self.root = user_path(root)
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed

    def load(self) -> dict[str, Split]:
        paths = self._find()
        folders = [path.relative_to(self.root).parts[:-1][:1] for path in paths]
        label = {folder: index for index, folder in enumerate(sorted(set(folders)))}
        labels = torch.tensor([label[folder] for folder in folders])

        test = math.ceil(self.test_fraction * len(paths))
        validation = math.ceil(self.validation_fraction * len(paths))
        order = torch.randperm(len(paths), generator=generator(Stream.DATA_SPLIT, self.split_seed))
        parts = {
            "test": order[:test],
            "validation": order[test : test + validation],
            "train": order[test + validation :],
        }
        images = self._read(paths)
        return {name: Split(images[part], labels[part]) for name, part in parts.items()}

    def _find(self) -> list[Path]:
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}: set data.root to a folder of pictures.")
        found = find_pictures(self.root)
        if not found.pictures:
            raise UserError(f"there is no picture in {self.root}, nor below it. {found.note()}".rstrip())
        if found.left_out:
            print(f"{self.root}: {len(found.pictures)} pictures; {found.note()}", flush=True)
        return found.pictures

    def _read(self, paths: list[Path]) -> Tensor:
        """uint8 [N, C, H, W]"""
        images = torch.empty(len(paths), *self.image_shape, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            pictures = track(
                pool.map(lambda path: read_picture(path, self.image_shape), paths),
                f"Reading {self.root}",
                total=len(paths),
                console=Console(stderr=True),
                transient=True,
                disable=len(paths) < LONG,
            )
            for i, picture in enumerate(pictures):
                images[i] = picture
        return images


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """The largest central part of a picture with the wanted aspect ratio, scaled to uint8 [C, H, W].

    Raises:
        UserError: the picture cannot be read.
    """
    channels, height, width = image_shape
    try:
        picture = read_picture_file(path, MODES[channels])
    except ValueError as error:
        raise UserError(f"{error}: repair or remove it.") from error
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)
