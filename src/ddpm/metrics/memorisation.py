"""Memorisation: the share of samples that are near-copies of training images."""

import math
from typing import Literal

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate
from ddpm.metrics.measures import Comparison, ImageSet, Nearest, Reference

COPY_QUANTILE = 0.01
"""the threshold of near-copies is this quantile of the distances of held-out real images to training images"""

SPACES = ("pixels", "features")
"""where distances are measured: between images in [0, 1], and between features"""
Space = Literal["pixels", "features"]
CHUNK = 500
"""queries that are searched at once"""
REFERENCES = 20_000
"""references that are searched at once; uint8 pixels become float32 only here"""


class TrainingDistance:
    """The mean distance of the samples to their nearest training image. The other number is that of test images."""

    def __init__(self, space: Space):
        self.space: Space = space
        self.name = f"{space.removesuffix('s')}_distance"
        self.caption = f"{space}: distance to the nearest training image"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        samples_distances, test_distances = _distances(reference, self.space)
        return Comparison(Estimate.of(samples_distances), Estimate.of(test_distances))


class NearCopies:
    """The share of near-copies of training images. The other number is that of test images."""

    def __init__(self, space: Space):
        self.space: Space = space
        self.name = f"{space.removesuffix('s')}_copies"
        self.caption = f"{space}: share of near-copies"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        return near_copies(*_distances(reference, self.space))


def _distances(reference: Reference, space: Space) -> tuple[Tensor, Tensor]:
    """Return the distances of samples [N] and of test images [M] to their nearest training image."""
    return reference.samples_nearest[space].distances, reference.test_nearest[space].distances


def nearest(queries: Tensor, references: Tensor) -> Nearest:
    """Return the nearest of the references [M, ...] for each query [N, ...].

    Features are searched in their dtype; uint8 images are searched as float32 pixels in [0, 1]. The returned distances
    are computed in float64.
    """
    best = torch.full((len(queries),), math.inf, dtype=_points(queries[:1]).dtype)
    indices = torch.zeros(len(queries), dtype=torch.int64)
    for first, part in zip(range(0, len(references), REFERENCES), references.split(REFERENCES), strict=True):
        points = _points(part)
        square_norms = points.square().sum(dim=1)
        for rows in torch.arange(len(queries)).split(CHUNK):
            found = torch.addmm(square_norms, _points(queries[rows]), points.T, alpha=-2).min(dim=1)
            closer = found.values < best[rows]
            best[rows] = torch.where(closer, found.values, best[rows])
            indices[rows] = torch.where(closer, first + found.indices, indices[rows])
    distances = [
        (_points(queries[rows]).double() - _points(references[indices[rows]]).double()).norm(dim=1)
        for rows in torch.arange(len(queries)).split(CHUNK)
    ]
    return Nearest(torch.cat(distances), indices)


def _points(images: Tensor) -> Tensor:
    """Return features as they are, and uint8 images as float32 [N, C·H·W] in [0, 1]."""
    return images.flatten(1).float() / 255 if images.dtype == torch.uint8 else images


def near_copies(samples: Tensor, held_out: Tensor) -> Comparison:
    """Return the shares of near-copies among samples and among held-out real images.

    The threshold is the 1 % quantile of the first half of the held-out distances. It is then applied to the samples
    and to the second half. The order of the held-out distances must carry no information.

    Args:
        samples: distances of the samples to their nearest training image, [N].
        held_out: distances of held-out real images to their nearest training image, [M].
    """
    threshold, judged = copy_threshold(held_out), held_out.tensor_split(2)[1]
    return Comparison(Estimate.of((samples < threshold).double()), Estimate.of((judged < threshold).double()))


def copy_threshold(held_out: Tensor) -> Tensor:
    """Return the 1 % quantile of the first half of the held-out distances [M]."""
    return held_out.tensor_split(2)[0].quantile(COPY_QUANTILE)
