"""MNIST, Fashion-MNIST, and the small MNIST that comes with the package."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddpm.config import user_path
from ddpm.data.idx import idx_shape, read_idx
from ddpm.data.images import Split
from ddpm.data.published import PublishedImages, download_folder
from ddpm.errors import UserError

PARTS = {"train": ("train",), "t10k": ("t10k", "test")}
"""words in the names of the files, by the part of the data set"""
KINDS = {3: "images", 1: "labels"}
"""what a file holds, by its number of dimensions"""
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class IDXImages(PublishedImages):
    """Grey 28×28 images in the four files of MNIST, gzipped or not.

    Args:
        folder: the folder of the files; see `find_files`.
        validation_size, image_channels, image_size, kwargs: see `PublishedImages`.
    """

    shape = (1, 28, 28)

    def __init__(
        self, folder: Path, validation_size: int, image_channels: int = 1, image_size: int = 28, **kwargs: Any
    ):
        super().__init__(validation_size, image_channels, image_size, **kwargs)
        self.folder = folder

    def read(self) -> tuple[Split, Split]:
        files = find_files(self.folder)
        train, test = (read_split(files, part, self.folder) for part in PARTS)
        return train, test


def find_files(folder: Path) -> dict[str, Path]:
    """Return the files of MNIST in a folder and its subfolders, by the names in `FILES`; for `raw` in its parent too.

    A file with another name counts if "train", "t10k" or "test" is in its name, and if its header says that it holds
    images (three dimensions) or labels (one). Browsers and Kaggle rename the files: train-images.idx3-ubyte,
    train-images-idx3-ubyte (1).
    """
    found: dict[str, Path] = {}
    for name in FILES:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found.setdefault(name, path)
    if len(found) == len(FILES):
        return found
    for path in sorted((folder.parent if folder.name == "raw" else folder).rglob("*")):
        part = next((part for part, words in PARTS.items() if any(word in path.name.lower() for word in words)), None)
        if part is None or not path.is_file():
            continue
        dimensions = len(idx_shape(path) or ())
        if dimensions in KINDS:
            found.setdefault(f"{part}-{KINDS[dimensions]}-idx{dimensions}-ubyte", path)
    return found


def read_split(files: Mapping[str, Path], part: str, folder: Path) -> Split:
    """Return the images and the labels of a part of MNIST.

    Args:
        files: see `find_files`.
        part: a key of `PARTS`.
        folder: for messages.

    Raises:
        UserError: a file is absent or damaged, or the two files do not fit each other.
    """
    paths = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        if name not in files:
            raise UserError(f"there is no {name} (nor {name}.gz) in {folder}.")
        paths.append(files[name])
    try:
        images, labels = map(read_idx, paths)
    except ValueError as error:
        raise UserError(str(error)) from error
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(images) == 0:
        raise UserError(
            f"{paths[0]} holds {list(images.shape)} and {paths[1]} holds {list(labels.shape)}: "
            "expected [N, 28, 28] images and as many labels. Put good copies in their place."
        )
    return Split(images[:, None], labels.long())


class MNIST(IDXImages):
    """The 60,000 training and 10,000 test digits of LeCun et al. (1998), downloaded if they are missing.

    Args:
        root: the folder that holds `MNIST/raw`; `~` is the home directory.
        batch_size, validation_size, kwargs: see `IDXImages` and `ImageData`.
    """

    dataset: ClassVar[str] = "MNIST"
    """name of the folder, and of torchvision's class, which downloads the files"""

    def __init__(self, root: str | Path, batch_size: int = 128, validation_size: int = 5000, **kwargs: Any):
        self.root = user_path(root)
        super().__init__(
            self.root / self.dataset / "raw", batch_size=batch_size, validation_size=validation_size, **kwargs
        )

    def prepare_data(self) -> None:
        """Download the files if any is missing.

        Raises:
            UserError: the download failed.
        """
        if len(find_files(self.folder)) == len(FILES):
            return
        remedy = (
            f"Set DDPM_DATA_DIR or paths.data to a folder that holds {self.dataset}/raw, or put the four files "
            f"{', '.join(FILES)} there, or use data=mnist_mini, which needs no network."
        )
        with download_folder(self.root, f"{self.dataset} is not in {self.folder}", remedy) as temporary:
            import torchvision.datasets

            downloaded = getattr(torchvision.datasets, self.dataset)(temporary, download=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                os.replace(Path(downloaded.raw_folder) / name, self.folder / name)


class FashionMNIST(MNIST):
    """The 60,000 training and 10,000 test articles of clothing of Xiao et al. (2017), with the settings of `MNIST`."""

    dataset = "FashionMNIST"


class MNISTMini(IDXImages):
    """The first 1,000 training and 200 test images of each digit of MNIST, in their order; part of the package.

    The last training images of each digit are for validation. (The last images of all digits together would lack the
    frequent digits: these have their 1,000 images earlier in MNIST.)
    """

    def __init__(self, batch_size: int = 128, validation_size: int = 1000, **kwargs: Any):
        super().__init__(
            Path(__file__).parent / "mnist_mini", batch_size=batch_size, validation_size=validation_size, **kwargs
        )

    def _validation_last(self, labels: Tensor) -> Tensor:
        nth_of_its_digit = torch.empty_like(labels)
        for digit in labels.unique():
            is_digit = labels == digit
            nth_of_its_digit[is_digit] = torch.arange(int(is_digit.sum()))
        return nth_of_its_digit.argsort(stable=True)
