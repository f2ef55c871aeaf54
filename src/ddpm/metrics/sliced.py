"""The sliced Wasserstein distance (Bonneel et al. 2015) between two sets of features of equal size."""

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate
from ddpm.metrics.measures import Comparison, ImageSet, Reference

GROUPS = 20
NUM_DIRECTIONS = 256


class SlicedWasserstein:
    """The sliced Wasserstein distance to the training images. The floor is that of test images."""

    name = "sliced_wasserstein"
    caption = "sliced Wasserstein distance to the training images"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        train, test = reference.train_subset.features, reference.test_subset.features
        value, floor = (sliced_wasserstein(features, train) for features in (samples.features, test))
        return Comparison(value, floor, has_ratio=True)


def sliced_wasserstein(features: Tensor, reference: Tensor) -> Estimate:
    """Return the root of the mean squared 2-Wasserstein distance over 256 directions, of features [N, D] each.

    Along one direction the optimal transport joins the i-th smallest values of both sets. The directions are always
    the same. The bias depends on N, so compare only distances with equal N. The standard error is that of drawing
    both sets again, a jackknife estimate that leaves out one of 20 groups of both sets in turn. The order within a
    set must carry no information.
    """
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(features.shape[1], NUM_DIRECTIONS, generator=random, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    x, y = features.double() @ directions, reference.double() @ directions

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (x.sort(dim=0).values - y.sort(dim=0).values).square().mean().sqrt()

    groups = torch.arange(len(x)).tensor_split(GROUPS)
    kept = [torch.cat(groups[:i] + groups[i + 1 :]) for i in range(GROUPS)]
    left_out = torch.stack([distance(x[part], y[part]) for part in kept])
    return Estimate(distance(x, y).item(), (left_out.var(correction=0) * (GROUPS - 1)).sqrt().item())
