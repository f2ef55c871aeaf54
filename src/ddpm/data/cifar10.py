"""CIFAR-10, in the Python format of its authors."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ddpm.config import user_path
from ddpm.data.images import Split
from ddpm.data.published import PublishedImages, download_folder
from ddpm.errors import UserError

FOLDER = "cifar-10-batches-py"
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
TEST = ["test_batch"]


class CIFAR10(PublishedImages):
    """The 50,000 training and 10,000 test pictures of Krizhevsky (2009), downloaded if they are missing.

    Args:
        root: the folder that holds `cifar-10-batches-py`; `~` is the home directory.
        batch_size, kwargs: see `ImageData`.
        validation_size, image_channels, image_size: see `PublishedImages`.
    """

    shape = (3, 32, 32)

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 128,
        validation_size: int = 5000,
        image_channels: int = 3,
        image_size: int = 32,
        **kwargs: Any,
    ):
        super().__init__(validation_size, image_channels, image_size, batch_size=batch_size, **kwargs)
        self.root = user_path(root)
        self.folder = self.root / FOLDER

    def prepare_data(self) -> None:
        """Download the files if any is missing.

        Raises:
            UserError: the download failed.
        """
        if all((self.folder / name).is_file() for name in TRAIN + TEST):
            return
        remedy = f"Set DDPM_DATA_DIR or paths.data to a folder that holds {FOLDER}, as in cifar-10-python.tar.gz."
        with download_folder(self.root, f"CIFAR-10 is not in {self.folder}", remedy) as temporary:
            import torchvision.datasets

            torchvision.datasets.CIFAR10(temporary, download=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (temporary / FOLDER).iterdir():
                os.replace(path, self.folder / path.name)

    def read(self) -> tuple[Split, Split]:
        train, test = (read_batches([self.folder / name for name in names]) for names in (TRAIN, TEST))
        return train, test


def read_batches(paths: Sequence[Path]) -> Split:
    """Return the images and labels of files such as data_batch_1, in order.

    Raises:
        UserError: a file is absent or damaged, or holds something else.
    """
    images, labels = [], []
    for path in paths:
        try:
            with path.open("rb") as file:
                content = {_text(key): value for key, value in _Arrays(file, encoding="latin1").load().items()}
            pixels, classes = content["data"], np.asarray(content["labels"])
            if pixels.dtype != np.uint8 or pixels.shape != (len(classes), 3072) or classes.dtype.kind != "i":
                raise ValueError("expected uint8 [N, 3072] and N labels")
        except Exception as error:  # a damaged pickle raises exceptions of any type
            raise UserError(
                f"{path} holds no CIFAR-10 images in the Python format, or is damaged ({error}): "
                "put a good copy in its place."
            ) from error
        images.append(torch.from_numpy(np.array(pixels)).view(-1, *CIFAR10.shape))
        labels.append(torch.from_numpy(classes.astype(np.int64)))
    return Split(torch.cat(images), torch.cat(labels))


class _Arrays(pickle.Unpickler):
    """Reads dicts, lists, texts, numbers and NumPy arrays. Anything else could run code, and is refused."""

    ALLOWED = frozenset(
        {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
    )

    def __init__(self, file: IO[bytes], encoding: str):
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        # NumPy 2 warns of the old name of this module.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _text(key: Any) -> Any:
    return key.decode() if isinstance(key, bytes) else key
