"""Any folder of pictures as a data set."""

import math
import os
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

from ddpm.data.images import ImageData, Split
from ddpm.errors import UserError
from ddpm.seeding import Stream, generator

MODES = {1: "L", 3: "RGB"}
"""PIL's name for a number of channels"""
LONG = 2000
"""pictures from which on a progress bar is shown"""


class ImageFolder(ImageData):
    """All pictures below a folder, scaled and cropped around the centre to one size, in memory.

    A picture's label is the index of the sub-folder of `root` that it is in, by name (0 where there are none).

    Args:
        root: the folder; `~` is the home directory.
        image_size: H = W or [H, W] in pixels.
        image_channels: 1 (gray) or 3 (RGB).
        validation_fraction, test_fraction: of all pictures, rounded up; the rest is for training.
        split_seed: which pictures these are.
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
        self.root = Path(root).expanduser()
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed

    def load(self) -> dict[str, Split]:
        paths = find_pictures(self.root)
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


def find_pictures(root: Path) -> list[Path]:
    """All pictures below `root`, sorted; hidden ones are left out.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to a folder of pictures.")
    paths = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    )
    if not paths:
        raise UserError(f"there is no picture in {root}, nor below it ({', '.join(IMG_EXTENSIONS)}).")
    return paths


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """The middle of a picture, as large as it can be at this aspect ratio, scaled to uint8 [C, H, W].

    Raises:
        UserError: it cannot be read.
    """
    channels, height, width = image_shape
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert(MODES[channels])
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"cannot read the picture {path} ({error}): repair or remove it.") from error
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)
