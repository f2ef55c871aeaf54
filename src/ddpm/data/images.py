"""The base class of all data sets, which makes batches of the images."""

import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddpm.data.augmentation import Augmentation
from ddpm.data.batches import TensorImages, TrainBatches, batches_done, batches_in_order
from ddpm.devices import copies_asynchronously, to_device
from ddpm.errors import UserError
from ddpm.seeding import Stream, generator

LONGEST_TMPDIR = 71
"""in bytes: multiprocessing appends 32 for a socket, whose path is limited to 103 on macOS and 107 on Linux"""


class Split(NamedTuple):
    images: Tensor
    """uint8 [N, C, H, W]"""
    labels: Tensor
    """int64 [N]"""


class ImageData(LightningDataModule, ABC):
    """Base class of the data sets. Batches are (float32 images [B, C, H, W] in [-1, 1], int64 labels [B]).

    A subclass implements `load`. The images are uint8 and stay in memory, unless a subclass reads them from a file. The
    order of the training images depends only on (seed, epoch), and a run that resumes in the middle of an epoch sees
    the rest of this epoch. The training dataloader never ends, because Lightning does not restore its own epochs
    exactly: limit the training with `max_steps`. Use
    `Trainer(use_distributed_sampler=False)`, because the dataloaders already give each process its part.

    Args:
        batch_size: number of images in a batch, counted over all processes.
        image_channels, image_size: C, and H = W or [H, W] in pixels.
        seed: seed of the order of the training images.
        num_workers: number of processes that load batches.
        on_device: keep all images in the memory of the training device; needs num_workers=0.
    """

    augmentation: Augmentation | None = None
    """changes the training images; set it before the training starts"""

    def __init__(
        self,
        batch_size: int,
        image_channels: int,
        image_size: int | Sequence[int],
        seed: int = 0,
        num_workers: int = 0,
        on_device: bool = False,
    ):
        super().__init__()
        if batch_size < 1 or batch_size != int(batch_size):
            raise ValueError(f"batch_size={batch_size} must be a whole number, at least 1.")
        if num_workers < 0:
            raise ValueError(f"{num_workers=} must be at least 0.")
        if num_workers > (most := max(64, 4 * (os.cpu_count() or 1))):
            raise ValueError(f"{num_workers=} is too many for this machine: at most {most} processes.")
        if num_workers and len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
            raise ValueError(
                f"the path of the folder for temporary files, {tempfile.gettempdir()}, has more than {LONGEST_TMPDIR} "
                f"bytes, too long for the sockets of {num_workers=}. Set a shorter TMPDIR, or num_workers=0."
            )
        if on_device and num_workers:
            raise ValueError(f"on_device=true needs num_workers=0, not {num_workers}: workers do not see the device.")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_shape = (image_channels, height, width)
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.on_device = on_device
        self._splits: dict[str, Split] = {}
        self._epoch_batches: int | None = None
        self._repeat = False

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Return the splits "train", "validation" and "test". Download files in `prepare_data`, not here."""

    def setup(self, stage: str | None = None) -> None:
        """Load the images at the first call.

        Raises:
            UserError: the images are missing, do not have `image_shape`, or do not fill one batch.
        """
        if self._splits:
            return
        splits = self.load()
        for name, (images, _) in splits.items():
            if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
                found = f"{images.dtype} {list(images.shape[1:])}"
                raise UserError(f"the {name} images are {found}, not torch.uint8 {list(self.image_shape)}.")
        num_images = len(splits["train"].images)
        if self.batch_size > num_images:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {num_images} images for training: "
                "set a smaller one, or give more images."
            )
        self._splits = splits

    def ready(self) -> Self:
        """Download missing files, load the images, and return the data set."""
        self.prepare_data()
        self.setup()
        return self

    def split(self, name: str) -> Split:
        """Return all uint8 images and labels of "train", "validation" or "test", in the order of the data set."""
        assert self._splits, "call setup() first"
        return self._splits[name]

    @property
    def num_classes(self) -> int:
        """The number of classes: the labels are 0 … num_classes-1."""
        return 1 + max(int(split.labels.max()) for split in self._splits.values() if len(split.labels))

    def train_dataloader(self) -> DataLoader[Any]:
        num_images = len(self.split("train").images)
        rank, world_size = self._process()
        return self._loader(
            "train",
            TrainBatches(
                num_images, self.batch_size, self.seed, self._position, rank, world_size, self.num_batches, self._repeat
            ),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader_in_order("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader_in_order("test")

    def dataset_of(self, name: str) -> Dataset[tuple[Tensor, Tensor]]:
        """Return the split as a Dataset whose `__getitems__` reads a batch, on the training device if `on_device`."""
        images, labels = self.split(name)
        if self.on_device and self.trainer is not None:
            device = self.trainer.strategy.root_device
            images, labels = images.to(device), labels.to(device)
        return TensorImages(images, labels)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            rank, world_size = self._process()
            draws = generator(Stream.AUGMENTATION, self.seed, batches_done(self.trainer))
            drawn = self.augmentation.draw(len(images) * world_size, draws)  # for the global batch
            mine = drawn[rank * len(images) : (rank + 1) * len(images)]
            images = self.augmentation.apply(images, to_device(mine, images.device))
        return to_model_range(images), labels

    def _loader_in_order(self, name: str) -> DataLoader[Any]:
        return self._loader(name, batches_in_order(len(self.split(name).images), self.batch_size, *self._process()))

    def _loader(self, name: str, batches: Iterable[Any]) -> DataLoader[Any]:
        # Both warnings are wrong here: tensors in memory need no workers, and `TrainBatches` resumes within an epoch.
        for warning in ("The '.*' does not have many workers", "You're resuming from a checkpoint that ended"):
            warnings.filterwarnings("ignore", warning, PossibleUserWarning)
        return DataLoader(
            self.dataset_of(name),
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=not self.on_device
            and self.trainer is not None
            and copies_asynchronously(self.trainer.strategy.root_device),
            # Each iteration draws a seed for the workers. It must not change the state of the global generator.
            generator=torch.Generator(),
        )

    def _process(self) -> tuple[int, int]:
        """Return (rank, number of processes)."""
        if self.trainer is None:
            return 0, 1
        world_size = self.trainer.world_size
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} counts the images of all processes "
                f"and must be divisible by the number of processes, {world_size}."
            )
        return self.trainer.global_rank, world_size

    def limit_epochs(self, batches: int, repeat: bool = False) -> None:
        """Limit a training epoch to this number of batches. With `repeat`, each epoch has the same batches."""
        self._epoch_batches, self._repeat = batches, repeat

    @property
    def num_batches(self) -> int:
        """The number of batches in a training epoch, each of `batch_size` images."""
        return self._epoch_batches or len(self.split("train").images) // self.batch_size

    def _position(self) -> tuple[int, int]:
        """Return the position in the training: (epoch, number of finished batches in this epoch)."""
        if self.trainer is None:
            return 0, 0
        done = batches_done(self.trainer)
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return 0, done % int(self.trainer.limit_train_batches)  # each epoch repeats the same batches
        return divmod(done, self.num_batches)


def to_model_range(images: Tensor) -> Tensor:
    """Convert uint8 0 … 255 to float32 in [-1, 1], x/127.5 - 1; any shape."""
    # In place: more memory would take longer than the arithmetic.
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to the nearest uint8 0 … 255; any shape. Values outside [-1, 1] are clamped.

    Images that are uint8 are returned as they are.

    Raises:
        UserError: a value is NaN or infinite.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.isfinite().all():
        raise UserError("the images contain NaN or infinity: the model that made them diverged in training.")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _as_it_is(batch: Any) -> Any:
    return batch
