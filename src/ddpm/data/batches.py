"""Which images a process sees, and when: index batches for an ordinary DataLoader."""

from collections.abc import Callable, Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ddpm.seeding import Stream, generator


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory; a batch is one indexing, without a loop over its images."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and labels [B]; the DataLoader asks for whole batches where this method exists."""
        indices = indices.to(self.images.device)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


class TrainBatches(Sampler[Tensor]):
    """One process's part of each global batch of training, epoch after epoch without end.

    The order depends on (seed, epoch) alone. Rank r of R has rows r·B/R to (r+1)·B/R of a global batch of B. Images
    that fill no batch wait for an epoch with another order.

    Args:
        position: gives (epoch, batches of it that are done) whenever an iteration starts.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        position: Callable[[], tuple[int, int]],
        rank: int = 0,
        world_size: int = 1,
    ):
        assert batch_size % world_size == 0
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.position = position
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[Tensor]:
        # Here, and not in the generator: the position is that of now, not that of the first batch's fetching.
        return self._batches_from(*self.position())

    def _batches_from(self, epoch: int, done: int) -> Iterator[Tensor]:
        num_batches = self.num_images // self.batch_size
        while True:
            order = torch.randperm(self.num_images, generator=generator(Stream.DATA_ORDER, self.seed, epoch))
            batches = order[: num_batches * self.batch_size].view(num_batches, self.world_size, -1)
            yield from batches[done:, self.rank]
            epoch, done = epoch + 1, 0


def batches_in_order(num_images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """Every image once, for evaluation: rank r of R has the images r, r+R, r+2R …; none is repeated to fill up."""
    return list(torch.arange(rank, num_images, world_size).split(batch_size // world_size))


def batches_done(trainer: L.Trainer) -> int:
    """Batches that the run has trained on, over all epochs and all the processes that went on with it.

    Lightning's `current_epoch` and `batch_idx` depend on where in its loop a checkpoint was made; this does not.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
