"""A data set from any folder of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm.config import user_path
from ddpm.data.images import ImageData, Split
from ddpm.data.picture_files import MODES, find_pictures, read_picture_file, read_pictures, to_tensor
from ddpm.errors import UserError
from ddpm.seeding import Stream, generator

__all__ = ["ImageFolder", "find_pictures", "read_picture"]


class ImageFolder(ImageData):
    """All pictures below a folder, cropped around the centre and scaled to one size, in memory.

    The label of a picture is the index of its sub-folder of `root`, in the order of names; 0 without sub-folders.

    Args:
        root: the folder; `~` is the home directory.
        image_size: H = W or [H, W] in pixels.
        image_channels: 1 (gray) or 3 (RGB).
        validation_fraction, test_fraction: shares of all pictures, rounded up; the rest is for training.
        split_seed: seed of the split.
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
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}: set data.root to a folder of pictures.")
        try:
            paths, images = read_pictures(self.root, self.image_shape, self._fit)
        except ValueError as error:
            raise UserError(str(error)) from error
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
        return {name: Split(images[part], labels[part]) for name, part in parts.items()}

    def _fit(self, picture: Image.Image) -> Image.Image:
        return fit(picture, self.image_shape)


def fit(picture: Image.Image, image_shape: tuple[int, int, int]) -> Image.Image:
    """Returns the largest central part of a picture with the aspect ratio of the shape (C, H, W), scaled to it."""
    _, height, width = image_shape
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Returns one picture as `ImageFolder` reads it, uint8 [C, H, W].

    Raises:
        UserError: the picture cannot be read.
    """
    try:
        picture = read_picture_file(path, MODES[image_shape[0]])
    except ValueError as error:
        raise UserError(f"cannot read the picture {path} ({error}): repair or remove it.") from error
    return to_tensor(fit(picture, image_shape), image_shape)
