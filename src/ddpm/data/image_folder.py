"""A data set from any folder of pictures."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version
from torch import Tensor
from torch.utils.data import Dataset

from ddpm.config import user_path
from ddpm.data.images import ImageData, Split
from ddpm.data.picture_cache import Decoded, ImageRows, open_or_write, size_of
from ddpm.data.picture_files import (
    MODES,
    check_any,
    decode_pictures,
    find_pictures,
    note_of_left_out,
    picture_names,
    read_picture_file,
    to_tensor,
)
from ddpm.devices.failures import total_memory
from ddpm.errors import UserError
from ddpm.seeding import Stream, generator

__all__ = ["ImageFolder", "find_pictures", "read_picture"]

READER = "1"
"""version of how a picture becomes an image; another version reads all pictures anew"""


class Arrangement(NamedTuple):
    """The splits of N pictures, one after the other."""

    order: Tensor
    """the index of each picture among the sorted paths, int64 [N]"""
    labels: Tensor
    """int64 [N]"""
    sizes: dict[str, int]
    """the number of pictures in each split"""


class ImageFolder(ImageData):
    """All pictures below a folder, cropped around the centre and scaled to one size.

    The label of a picture is the index of its sub-folder of `root`, in the order of names; 0 without sub-folders. The
    pictures are decoded once into a file, which is mapped into memory. Memory is needed for a batch alone.

    Args:
        root: the folder; `~` is the home directory.
        image_size: H = W or [H, W] in pixels.
        image_channels: 1 (gray) or 3 (RGB).
        validation_fraction, test_fraction: shares of all pictures, rounded up; the rest is for training.
        split_seed: seed of the split.
        cache: the folder for the file of decoded pictures. If None, or if it cannot be used, they stay in memory.
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
        cache: str | Path | None = None,
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
        self.cache = None if cache is None else user_path(cache)
        self._rows: dict[str, ImageRows] = {}

    def load(self) -> dict[str, Split]:
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}: set data.root to a folder of pictures.")
        pictures, others = picture_names(self.root, skip=self.cache)
        try:
            check_any(self.root, pictures, note_of_left_out(others, []))
            return self._from_cache(pictures, others) if self.cache else self._into_memory(pictures, others)
        except ValueError as error:
            raise UserError(str(error)) from error

    def dataset_of(self, name: str) -> Dataset[tuple[Tensor, Tensor]]:
        if name in self._rows and not self.on_device:
            return self._rows[name]
        return super().dataset_of(name)

    def _from_cache(self, pictures: Sequence[str], others: Sequence[str]) -> dict[str, Split]:
        """Return the splits in the memory-mapped file, which is written if there is none of these pictures."""
        assert self.cache is not None
        real, (channels, height, width) = os.path.realpath(self.root), self.image_shape
        settings = (real, self.image_shape, self.validation_fraction, self.test_fraction, self.split_seed)
        key = hashlib.sha256(repr(settings).encode(errors="surrogateescape")).hexdigest()[:12]
        path = self.cache / f"{os.path.basename(real)}-{height}x{width}x{channels}-{key}.safetensors"

        def decode(file: IO[bytes]) -> Decoded:
            kept, reasons = self._decode(pictures, lambda image: file.write(image.contiguous().numpy().data))
            check_any(self.root, kept, note_of_left_out(others, reasons))
            order, labels, sizes = self._arrange(kept)
            return Decoded(order, labels, {"sizes": sizes, "reasons": reasons[:1] + [""] * len(reasons[1:])})

        inputs = self._inputs(pictures)
        try:
            cache = open_or_write(path, inputs, len(pictures), self.image_shape, decode)
        except OSError as error:
            refused = f"data.cache={self.cache} cannot be used ({error.strerror})"
            needed = len(pictures) * size_of(self.image_shape)
            if 2 * needed > total_memory(torch.device("cpu")):
                raise UserError(
                    f"{refused}, and the pictures, {needed / 2**30:.1f} GiB, do not fit into memory: "
                    "name another folder for them."
                ) from error
            print(f"{refused}: the pictures of {self.root} stay in memory, and each start reads them.", flush=True)
            return self._into_memory(pictures, others)

        note = note_of_left_out(others, cache.facts["reasons"])
        print(f"{self.root}: {len(cache.images)} pictures, kept in {path}{note and f'; {note}'}", flush=True)
        splits, first = {}, 0
        for name, size in cache.facts["sizes"].items():
            self._rows[name] = cache.rows.part(first, size)
            splits[name] = Split(cache.images[first : first + size], self._rows[name].labels)
            first += size
        return splits

    def _into_memory(self, pictures: Sequence[str], others: Sequence[str]) -> dict[str, Split]:
        images: list[Tensor] = []
        kept, reasons = self._decode(pictures, images.append)
        note = note_of_left_out(others, reasons)
        check_any(self.root, kept, note)
        if note:
            print(f"{self.root}: {len(kept)} pictures; {note}", flush=True)
        order, labels, sizes = self._arrange(kept)
        parts = zip(order.split(list(sizes.values())), labels.split(list(sizes.values())), strict=True)
        return {
            name: Split(torch.stack([images[index] for index in part]), of_part)
            for name, (part, of_part) in zip(sizes, parts, strict=True)
        }

    def _decode(self, pictures: Sequence[str], store: Callable[[Tensor], object]) -> tuple[list[Path], list[str]]:
        """Give each picture to `store`. Returns the paths, and the reasons why the others are left out."""
        kept, reasons = [], []
        paths = [self.root / name for name in pictures]
        for path, image in decode_pictures(self.root, paths, self.image_shape, self._fit):
            if isinstance(image, str):
                reasons.append(image)
            else:
                store(image)
                kept.append(path)
        return kept, reasons

    def _arrange(self, paths: Sequence[Path]) -> Arrangement:
        """Return the splits of pictures with these paths.

        Raises:
            ValueError: too few pictures.
        """
        folders = [path.relative_to(self.root).parts[:-1][:1] for path in paths]
        label = {folder: index for index, folder in enumerate(sorted(set(folders)))}
        test = math.ceil(self.test_fraction * len(paths))
        validation = math.ceil(self.validation_fraction * len(paths))
        if test + validation >= len(paths):
            raise ValueError(f"{self.root} has {len(paths)} pictures for training, validation and test: add some.")
        order = torch.randperm(len(paths), generator=generator(Stream.DATA_SPLIT, self.split_seed))
        sizes = {"test": test, "validation": validation, "train": len(paths) - test - validation}
        return Arrangement(order, torch.tensor([label[folder] for folder in folders])[order], sizes)

    def _inputs(self, pictures: Sequence[str]) -> str:
        """Return a digest of everything that the images depend on, besides the settings in the name of the file."""
        digest = hashlib.sha256(f"{READER} {pillow_version}\n".encode())
        folder = os.path.join(self.root, "")
        for name in pictures:
            stat = os.stat(folder + name)
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _fit(self, picture: Image.Image) -> Image.Image:
        return fit(picture, self.image_shape)


def fit(picture: Image.Image, image_shape: tuple[int, int, int]) -> Image.Image:
    """Return the largest central part of a picture with the aspect ratio of the shape (C, H, W), scaled to it."""
    _, height, width = image_shape
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Return one picture as `ImageFolder` reads it, uint8 [C, H, W].

    Raises:
        UserError: the picture cannot be read.
    """
    try:
        picture = read_picture_file(path, MODES[image_shape[0]])
    except ValueError as error:
        raise UserError(f"cannot read the picture {path} ({error}): repair or remove it.") from error
    return to_tensor(fit(picture, image_shape), image_shape)
