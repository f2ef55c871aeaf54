"""Index batches for a DataLoader: the images that each process sees, and their order."""

from collections.abc import Callable, Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ddpm.devices import to_device
from ddpm.seeding import Stream, generator


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory. A batch is read by one indexing operation, without a loop over its images."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] and labels [B]. The DataLoader reads whole batches if this method exists."""
        indices = to_device(indices, self.images.device)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


class TrainBatches(Sampler[Tensor]):
    """Yields the part of each global training batch that belongs to one process, epoch after epoch without end.

    The order depends only on (seed, epoch). Rank r of R gets rows r·B/R to (r+1)·B/R of a global batch of B images. An
    epoch leaves out the images that do not fill a batch; the next epoch has another order.

    Args:
        position: returns (epoch, number of its finished batches); called when an iteration starts.
        epoch_batches: the batches of an epoch, all if None.
        repeat: give each epoch the batches of the first.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        position: Callable[[], tuple[int, int]],
        rank: int = 0,
        world_size: int = 1,
        epoch_batches: int | None = None,
        repeat: bool = False,
    ):
        assert batch_size % world_size == 0
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.position = position
        self.rank = rank
        self.world_size = world_size
        self.epoch_batches = epoch_batches
        self.repeat = repeat

    def __iter__(self) -> Iterator[Tensor]:
        # Not in the generator: the position must be read now, not when the first batch is fetched.
        return self._batches_from(*self.position())

    def _batches_from(self, epoch: int, done: int) -> Iterator[Tensor]:
        num_batches = self.num_images // self.batch_size
        while True:
            draws = generator(Stream.DATA_ORDER, self.seed, 0 if self.repeat else epoch)
            order = torch.randperm(self.num_images, generator=draws)
            batches = order[: num_batches * self.batch_size].view(num_batches, self.world_size, -1)
            yield from batches[done : self.epoch_batches, self.rank]
            epoch, done = epoch + 1, 0


def batches_in_order(num_images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """Return batches of all images, each once, for evaluation. Rank r of R gets images r, r+R, r+2R …, unpadded.

    All ranks get equally many batches, because FSDP's ranks wait for each other in each. So the last may have one
    image more than the others.
    """
    size = batch_size // world_size
    num_batches = max(1, -(-(num_images // world_size) // size))
    return list(torch.arange(rank, num_images, world_size).tensor_split([size * i for i in range(1, num_batches)]))


def batches_done(trainer: L.Trainer) -> int:
    """Return the number of batches that the run has trained on, over all epochs and all resumed processes.

    Lightning's `current_epoch` and `batch_idx` depend on where in the loop a checkpoint was made. This number does not.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
