"""Seeds that are computed from integer keys (purpose, seed, index), not from a global random state.

So a resumed run draws the same numbers as an undisturbed one, and validation or sampling does not change those of
training.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ddpm.devices import to_device
from ddpm.errors import UserError

GOLDEN_RATIO = (1 + 5**0.5) / 2


class Stream(IntEnum):
    """The purpose of random numbers: the first integer of every key. Equal keys give equal numbers."""

    DATA_ORDER = 0
    DIFFUSION = 1
    """timesteps and noise of training"""
    NETWORK = 2
    """dropout, and whatever else a network draws"""
    VALIDATION = 3
    SAMPLING = 4
    DATA_SPLIT = 5
    EVALUATION = 6
    INITIAL_WEIGHTS = 7
    LABELS = 8
    """which labels training leaves out, and the labels of evaluated samples"""
    AUGMENTATION = 9


def seed_at(*key: int) -> int:
    """A seed of 64 bits that depends on the integers of `key` alone.

    Raises:
        UserError: one is negative.
    """
    if min(key) < 0:
        raise UserError(f"a seed is 0 or more, not {min(key)}.")
    # With the length, as SeedSequence pads with zeros: (1, 2) would be (1, 2, 0).
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0])


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the non-negative integers of `key` alone."""
    return torch.Generator().manual_seed(seed_at(*key))


class ImageNoise:
    """Standard normal noise in which image i's numbers come from a generator of its own.

    They are the same whatever batch the image is in, on whichever device.

    Args:
        key: what the noise is for.
        indices: the images of the batch, [B].
    """

    def __init__(self, *key: int, indices: Sequence[int]):
        self.generators = [generator(*key, index) for index in indices]

    def __call__(self, like: Tensor) -> Tensor:
        """Fresh noise in the shape of `like`, [B, ...], and on its device."""
        noise = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators]
        return to_device(torch.stack(noise), like.device)


def evenly_spread(indices: Tensor, shift: float = 0.0) -> Tensor:
    """Return (shift + index · golden ratio) mod 1 for each index, float64: a low-discrepancy sequence in [0, 1)."""
    return (shift + indices.double() * GOLDEN_RATIO) % 1
