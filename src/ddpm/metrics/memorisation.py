"""Memorisation: the share of samples that are near-copies of training images."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate

COPY_QUANTILE = 0.01
"""the threshold of near-copies is this quantile of the distances of held-out real images to training images"""

CHUNK = 500  # rows; 120 MB with 60,000 float32 distances in a row


class Nearest(NamedTuple):
    """The nearest training image of each of N images."""

    distances: Tensor
    """Euclidean, float64 [N]"""
    indices: Tensor
    """int64 [N]"""


class Memorisation(NamedTuple):
    distance: Estimate
    """mean distance of the samples to their nearest training image"""
    distance_held_out: Estimate
    """mean distance of held-out real images to their nearest training image"""
    copies: Estimate
    """share of near-copies among the samples"""
    copies_held_out: Estimate
    """share of near-copies among the held-out real images that were not used for the threshold"""
    threshold: float
    """an image with a smaller distance is a near-copy"""


def nearest(queries: Tensor, references: Tensor) -> Nearest:
    """Returns the nearest of the references [M, D] for each query [N, D].

    The search uses the dtype of the arguments. The returned distances are computed in float64.
    """
    square_norms = references.square().sum(dim=1)
    found = [torch.addmm(square_norms, chunk, references.T, alpha=-2).argmin(dim=1) for chunk in queries.split(CHUNK)]
    indices = torch.cat(found)
    return Nearest((queries.double() - references[indices].double()).norm(dim=1), indices)


def memorisation(samples: Tensor, held_out: Tensor) -> Memorisation:
    """Returns the shares of near-copies, and the mean distances, of samples and of held-out real images.

    The threshold is the 1 % quantile of the first half of the held-out distances. It is then applied to the samples
    and to the second half. The order of the held-out distances must carry no information.

    Args:
        samples: distances of the samples to their nearest training image, [N].
        held_out: distances of held-out real images to their nearest training image, [M].
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
