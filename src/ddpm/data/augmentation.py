"""Random changes of training images.

An augmentation draws its numbers for the global batch, from a generator that depends on the seed and the number of
batches done. So a resumed run, and any number of processes, see the same images.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Augmentation(ABC):
    """Base class. Validation, the bound and all evaluations see the images as they are."""

    @abstractmethod
    def draw(self, count: int, draws: torch.Generator) -> Tensor:
        """Return the random numbers for `count` images, [count, ...] on the CPU. Draw from `draws` alone."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return the changed images, uint8 [B, C, H, W], for the numbers [B, ...] on the same device."""


class Flip(Augmentation):
    """Mirrors an image, left to right, with this probability. Do not use it for digits and letters."""

    def __init__(self, probability: float = 0.5):
        if not 0 < probability <= 1:
            raise ValueError(f"augmentation.probability={probability} must be above 0 and at most 1.")
        self.probability = probability

    def draw(self, count: int, draws: torch.Generator) -> Tensor:
        return torch.rand(count, generator=draws) < self.probability

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        return torch.where(drawn[:, None, None, None], images.flip(-1), images)


class Shift(Augmentation):
    """Moves an image by up to `pixels`, each way equally likely. The pixels at the border are repeated."""

    def __init__(self, pixels: int = 2):
        if pixels < 1:
            raise ValueError(f"augmentation.pixels={pixels} must be at least 1.")
        self.pixels = pixels

    def draw(self, count: int, draws: torch.Generator) -> Tensor:
        return torch.randint(-self.pixels, self.pixels + 1, (count, 2), generator=draws)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        if self.pixels >= min(height, width):
            raise ValueError(f"pixels={self.pixels} would move images of {height} x {width} out of sight.")
        rows, columns = (
            (torch.arange(size, device=images.device) - offset[:, None]).clamp(0, size - 1)
            for size, offset in zip((height, width), drawn.unbind(1), strict=True)
        )
        index = torch.arange(batch, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[:, None, None]
        return images[index, channel, rows[:, None, :, None], columns[:, None, None, :]]
