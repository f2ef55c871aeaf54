"""Are the samples copies of training images?"""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate

COPY_QUANTILE = 0.01
"""nearer to a training image than this share of held-out real images is called a near-copy"""

CHUNK = 500  # rows; of 60,000 distances each, 120 MB in float32


class Nearest(NamedTuple):
    """The nearest training image of each of N images."""

    distances: Tensor
    """Euclidean, float64 [N]"""
    indices: Tensor
    """int64 [N]"""


class Memorisation(NamedTuple):
    distance: Estimate
    """to the nearest training image, in the mean over the samples"""
    distance_held_out: Estimate
    copies: Estimate
    """share of near-copies among the samples"""
    copies_held_out: Estimate
    """the same among held-out real images that had no part in the threshold"""
    threshold: float
    """a distance below it makes a near-copy"""


def nearest(queries: Tensor, references: Tensor) -> Nearest:
    """The nearest of the references [M, D] for each query [N, D].

    The search is in the dtype of the arguments, the distance of what it found exact to float64.
    """
    square_norms = references.square().sum(dim=1)
    found = [torch.addmm(square_norms, chunk, references.T, alpha=-2).argmin(dim=1) for chunk in queries.split(CHUNK)]
    indices = torch.cat(found)
    return Nearest((queries.double() - references[indices].double()).norm(dim=1), indices)


def memorisation(samples: Tensor, held_out: Tensor) -> Memorisation:
    """From the distances of samples [N] and of held-out real images [M] to their nearest training image.

    The threshold is the 1 % quantile of the first half of the held-out distances, and the second half is judged by
    it as the samples are: their order must mean nothing.
    """
    calibration, judged = held_out.tensor_split(2)
    threshold = calibration.quantile(COPY_QUANTILE)
    return Memorisation(
        Estimate.of(samples),
        Estimate.of(held_out),
        Estimate.of((samples < threshold).double()),
        Estimate.of((judged < threshold).double()),
        threshold.item(),
    )
