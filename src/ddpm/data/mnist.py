"""MNIST, Fashion-MNIST, and the small MNIST that comes with the package."""

import os
import socket
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddpm.config import user_path
from ddpm.data.idx import read_idx
from ddpm.data.images import ImageData, Split
from ddpm.errors import UserError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class IDXImages(ImageData):
    """Gray 28×28 images in the four files of MNIST, gzipped or not.

    Args:
        folder: where the files are.
        validation_size: this many of the training images, the last ones, are for validation.
        image_channels, image_size: may only be said as they are.
        kwargs: see `ImageData`.
    """

    def __init__(
        self, folder: Path, validation_size: int, image_channels: int = 1, image_size: int = 28, **kwargs: Any
    ):
        super().__init__(image_channels=image_channels, image_size=image_size, **kwargs)
        if self.image_shape != (1, 28, 28):
            raise ValueError(
                "these images have image_channels=1 and image_size=28: leave both as they are "
                "(data=image_folder converts and resizes)."
            )
        if validation_size < 1:
            raise ValueError(f"validation_size={validation_size}: validation needs at least one image.")
        self.folder = folder
        self.validation_size = validation_size

    def load(self) -> dict[str, Split]:
        images, labels, test_images, test_labels = (self._read(name) for name in FILES)
        images, test_images = images[:, None], test_images[:, None]
        labels, test_labels = labels.long(), test_labels.long()
        if self.validation_size >= len(images):
            raise UserError(
                f"data.validation_size={self.validation_size} leaves no image of {len(images)} to train on."
            )
        validation = torch.zeros(len(images), dtype=torch.bool)
        validation[self._order_of_choice(labels)[-self.validation_size :]] = True
        return {
            "train": Split(images[~validation], labels[~validation]),
            "validation": Split(images[validation], labels[validation]),
            "test": Split(test_images, test_labels),
        }

    def _order_of_choice(self, labels: Tensor) -> Tensor:
        """All indices, those of the validation images last."""
        return torch.arange(len(labels))

    def _find(self, name: str) -> Path | None:
        paths = (self.folder / name, self.folder / f"{name}.gz")
        return next((path for path in paths if path.is_file()), None)

    def _read(self, name: str) -> Tensor:
        path = self._find(name)
        if path is None:
            raise UserError(f"there is no {name} (nor {name}.gz) in {self.folder}.")
        try:
            return read_idx(path)
        except ValueError as error:
            raise UserError(str(error)) from error


class MNIST(IDXImages):
    """The 60,000 training and 10,000 test digits of LeCun et al. (1998), downloaded if they are not there.

    Args:
        root: the folder that holds `MNIST/raw`; `~` is the home directory.
        batch_size, validation_size, kwargs: see `IDXImages` and `ImageData`.
    """

    dataset: ClassVar[str] = "MNIST"
    """of the folder, and of torchvision's class, which knows where to download from"""

    def __init__(self, root: str | Path, batch_size: int = 128, validation_size: int = 5000, **kwargs: Any):
        self.root = user_path(root)
        super().__init__(
            self.root / self.dataset / "raw", batch_size=batch_size, validation_size=validation_size, **kwargs
        )

    def prepare_data(self) -> None:
        """Download what is not there.

        Raises:
            UserError: that failed.
        """
        if all(self._find(name) for name in FILES):
            return
        try:
            self._download()
        except (RuntimeError, OSError, HTTPException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{self.dataset} is not in {self.folder}, and downloading it failed ({reason}).\n"
                f"Set DDPM_DATA_DIR or paths.data to a folder that holds {self.dataset}/raw, or put the four files "
                f"{', '.join(FILES)} there, or use data=mnist_mini, which needs no network."
            ) from error

    def _download(self) -> None:
        import torchvision.datasets

        self.root.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # seconds; torchvision sets none, and a dead network would hold us for minutes
        try:
            # Beside the target, and then moved: jobs that start together never see half a file.
            with tempfile.TemporaryDirectory(dir=self.root) as temporary:
                downloaded = getattr(torchvision.datasets, self.dataset)(temporary, download=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                for name in FILES:
                    os.replace(Path(downloaded.raw_folder) / name, self.folder / name)
        finally:
            socket.setdefaulttimeout(timeout)


class FashionMNIST(MNIST):
    """The 60,000 training and 10,000 test articles of clothing of Xiao et al. (2017); as `MNIST` otherwise."""

    dataset = "FashionMNIST"


class MNISTMini(IDXImages):
    """The first 1,000 training and 200 test images of each digit of MNIST, in their order; part of the package.

    Validation takes the last ones of each digit. (The last ones of all would lack those digits that are frequent, whose
    thousand is full earlier.)
    """

    def __init__(self, batch_size: int = 128, validation_size: int = 1000, **kwargs: Any):
        super().__init__(
            Path(__file__).parent / "mnist_mini", batch_size=batch_size, validation_size=validation_size, **kwargs
        )

    def _order_of_choice(self, labels: Tensor) -> Tensor:
        nth_of_its_digit = torch.empty_like(labels)
        for digit in labels.unique():
            is_digit = labels == digit
            nth_of_its_digit[is_digit] = torch.arange(int(is_digit.sum()))
        return nth_of_its_digit.argsort(stable=True)
