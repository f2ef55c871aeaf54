"""Memorisation: the share of samples that are near-copies of training images."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate
from ddpm.metrics.measures import Comparison, ImageSet, Nearest, Reference

COPY_QUANTILE = 0.01
"""the threshold of near-copies is this quantile of the distances of held-out real images to training images"""

SPACES = ("pixels", "features")
"""where distances are measured: between images in [0, 1], and between features"""
Space = Literal["pixels", "features"]
CHUNK = 500  # rows; 120 MB with 60,000 float32 distances in a row


class TrainingDistance:
    """The mean distance of the samples to their nearest training image. The other number is that of test images."""

    def __init__(self, space: Space):
        self.space: Space = space
        self.name = f"{space.removesuffix('s')}_distance"
        self.caption = f"{space}: distance to the nearest training image"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        judged = _judged(reference, self.space)
        return Comparison(judged.distance, judged.distance_held_out)


class NearCopies:
    """The share of near-copies of training images. The other number is that of test images."""

    def __init__(self, space: Space):
        self.space: Space = space
        self.name = f"{space.removesuffix('s')}_copies"
        self.caption = f"{space}: share of near-copies"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        judged = _judged(reference, self.space)
        return Comparison(judged.copies, judged.copies_held_out)


def _judged(reference: Reference, space: Space) -> "Memorisation":
    return memorisation(reference.samples_nearest[space].distances, reference.test_nearest[space].distances)


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
    threshold = copy_threshold(held_out)
    judged = held_out.tensor_split(2)[1]
    return Memorisation(
        Estimate.of(samples),
        Estimate.of(held_out),
        Estimate.of((samples < threshold).double()),
        Estimate.of((judged < threshold).double()),
        threshold.item(),
    )


def copy_threshold(held_out: Tensor) -> Tensor:
    """Returns the 1 % quantile of the first half of the held-out distances [M]."""
    return held_out.tensor_split(2)[0].quantile(COPY_QUANTILE)
