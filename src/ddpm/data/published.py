"""What data sets have in common that are published as one training set and one test set of equal images."""

import socket
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddpm.data.images import ImageData, Split
from ddpm.errors import UserError


class PublishedImages(ImageData):
    """Base class. A subclass has a `shape` and implements `read`.

    Args:
        validation_size: number of the training images, from their end, that are for validation.
        image_channels, image_size: those of `shape`; other values are refused.
        kwargs: see `ImageData`.
    """

    shape: ClassVar[tuple[int, int, int]]
    """of the images, (C, H, W) with H = W"""

    def __init__(self, validation_size: int, image_channels: int, image_size: int, **kwargs: Any):
        super().__init__(image_channels=image_channels, image_size=image_size, **kwargs)
        if self.image_shape != self.shape:
            raise ValueError(
                f"these images have image_channels={self.shape[0]} and image_size={self.shape[1]}: leave both as they "
                "are, or use data=image_folder, which converts and resizes."
            )
        if validation_size < 1:
            raise ValueError(f"validation_size={validation_size}: validation needs at least one image.")
        self.validation_size = validation_size

    @abstractmethod
    def read(self) -> tuple[Split, Split]:
        """Return the published training set and the test set."""

    def load(self) -> dict[str, Split]:
        train, test = self.read()
        if self.validation_size >= len(train.labels):
            raise UserError(
                f"data.validation_size={self.validation_size} leaves no image of {len(train.labels)} to train on."
            )
        validation = torch.zeros(len(train.labels), dtype=torch.bool)
        validation[self._validation_last(train.labels)[-self.validation_size :]] = True
        return {
            "train": Split(train.images[~validation], train.labels[~validation]),
            "validation": Split(train.images[validation], train.labels[validation]),
            "test": test,
        }

    def _validation_last(self, labels: Tensor) -> Tensor:
        """Return all indices, those of the validation images last."""
        return torch.arange(len(labels))


@contextmanager
def download_folder(root: Path, problem: str, remedy: str) -> Iterator[Path]:
    """Yield a temporary folder in `root` for a download, and limit the time that the download waits for the network.

    Move the complete files out of the folder: jobs that start together then never see half a file.

    Raises:
        UserError: the download failed; the message consists of the problem, the reason and the remedy.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with download_timeout(), tempfile.TemporaryDirectory(dir=root) as temporary:
            yield Path(temporary)
    except (RuntimeError, OSError, HTTPException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"{problem}, and downloading it failed ({reason}).\n{remedy}") from error


@contextmanager
def download_timeout() -> Iterator[None]:
    """Limit the time that a download waits for the network to 20 seconds.

    torchvision and torch.hub set no limit, and a dead network would block for minutes.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
