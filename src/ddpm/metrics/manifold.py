"""Do the samples look real, and do they show all that is real? Answers from nearest neighbours among features."""

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate

K_PRECISION = 3
"""neighbours for precision and recall, as Kynkäänniemi et al. (2019)"""
K_DENSITY = 5
"""neighbours for density and coverage, as Naeem et al. (2020)"""

CHUNK = 1000  # rows; of 10,000 distances each, 80 MB


def manifold_measures(samples: Tensor, real: Tensor) -> dict[str, Estimate]:
    """Precision and recall, density and coverage of samples [N, D] against real features [M, D].

    With the ball of a point reaching to its k-th nearest neighbour in its own set:

    - precision: share of samples in the ball of some real point (Kynkäänniemi et al. 2019, eq. 1 and 2)
    - recall: share of real points in the ball of some sample
    - density: real balls that a sample is in, in the mean, over k (Naeem et al. 2020, eq. 4)
    - coverage: share of real balls with a sample in them (Naeem et al. 2020, eq. 5)

    All depend on N and M. The errors are those of the mean over samples or over real points, the other set as it is;
    on MNIST the spread of independent sets was within a third of them.
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
    """The distance of each point to its k-th nearest other one, [len(ks), N]."""
    nearest = [torch.cdist(chunk, points).topk(max(ks) + 1, largest=False).values for chunk in points.split(CHUNK)]
    return torch.cat(nearest).T[list(ks)]  # the 0-th is the point itself
