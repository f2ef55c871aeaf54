"""Fidelity and diversity of samples: precision, recall, density and coverage from nearest neighbours of features."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate
from ddpm.metrics.measures import Comparison, ImageSet, Reference

K_PRECISION = 3
"""number of neighbours for precision and recall (Kynkäänniemi et al. 2019)"""
K_DENSITY = 5
"""number of neighbours for density and coverage (Naeem et al. 2020)"""

CHUNK = 1000  # rows; 80 MB with 10,000 distances in a row


CAPTIONS = {
    "precision": "precision: samples that look real",
    "recall": "recall: real images that the samples reach",
    "density": "density of the real images around samples",
    "coverage": "coverage: real images with samples near",
}


class ManifoldMeasure:
    """One of the measures of `manifold_measures`, against training images. The ceiling is that of test images.

    Args:
        which: a key of `CAPTIONS`.
    """

    def __init__(self, which: Literal["precision", "recall", "density", "coverage"]):
        self.name = which
        self.caption = CAPTIONS[which]

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        value, real = (_all_measures(images, reference.train_subset) for images in (samples, reference.test_subset))
        return Comparison(value[self.name], real[self.name])


@lru_cache(maxsize=2)  # the four measures share their distances
def _all_measures(samples: ImageSet, real: ImageSet) -> dict[str, Estimate]:
    return manifold_measures(samples.features, real.features)


def manifold_measures(samples: Tensor, real: Tensor) -> dict[str, Estimate]:
    """Return precision, recall, density and coverage of samples [N, D] against real features [M, D].

    The ball of a point reaches to the k-th nearest neighbour of the point in its own set.

    - precision: share of samples in the ball of any real point (Kynkäänniemi et al. 2019, eq. 1 and 2)
    - recall: share of real points in the ball of any sample
    - density: mean number of real balls that contain a sample, divided by k (Naeem et al. 2020, eq. 4)
    - coverage: share of real balls that contain a sample (Naeem et al. 2020, eq. 5)

    All four depend on N and M. The standard errors are those of the mean over samples or over real points, with the
    other set fixed. On MNIST the spread over independent sets differed from them by less than a third.
    """
    real_radii = _radii(real, (K_PRECISION, K_DENSITY))
    wide_radii = _radii(samples, (K_PRECISION,))[0]
    precise, dense = [], []
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for chunk, radii in zip(samples.split(CHUNK), wide_radii.split(CHUNK), strict=True):
        distances = torch.cdist(chunk, real)
        precise.append((distances <= real_radii[0]).any(dim=1))
        recalled |= (distances <= radii[:, None]).any(dim=0)
        within = distances <= real_radii[1]
        dense.append(within.sum(dim=1) / K_DENSITY)
        covered |= within.any(dim=0)
    return {
        "precision": Estimate.of(torch.cat(precise).double()),
        "recall": Estimate.of(recalled.double()),
        "density": Estimate.of(torch.cat(dense).double()),
        "coverage": Estimate.of(covered.double()),
    }


def _radii(points: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Return the distance of each point to its k-th nearest other point, [len(ks), N]."""
    nearest = [torch.cdist(chunk, points).topk(max(ks) + 1, largest=False).values for chunk in points.split(CHUNK)]
    return torch.cat(nearest).T[list(ks)]  # index 0 is the point itself
