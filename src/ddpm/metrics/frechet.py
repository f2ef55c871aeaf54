"""The Fréchet distance (Heusel et al. 2017) between two sets of features."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ddpm.metrics.estimates import Estimate
from ddpm.metrics.measures import Comparison, ImageSet, Reference, mean_over_parts

GROUPS = 20


class FrechetDistance:
    """The Fréchet distance to the training or to the test images. The floor is the distance between these two sets.

    Args:
        to: "train" or "test".
    """

    def __init__(self, to: Literal["train", "test"]):
        self.to = to
        self.name = f"fd_{to}"
        self.caption = f"Fréchet distance to the {'training' if to == 'train' else 'test'} images"

    def __call__(self, samples: ImageSet, reference: Reference) -> Comparison:
        train, test = reference.train.features, reference.test.features
        to, other = (train, test) if self.to == "train" else (test, train)
        floor = mean_over_parts(lambda part: frechet_distance(part, to), other, len(samples))
        return Comparison(frechet_distance(samples.features, to), floor, has_ratio=True)


class GivenFeatures(nn.Identity):
    """The feature network that torchmetrics expects; it returns its input, because the features are known."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet_distance(features: Tensor, reference: Tensor) -> Estimate:
    """Return |μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) between features [N, D] and a reference [M, D], in float64.

    The bias depends on N and M, so compare only distances with equal N and M. The standard error is that of drawing
    new N features. It is a jackknife estimate that leaves out one of 20 groups in turn: all groups have the same size
    and the same bias, while a bootstrap would add to the bias. The standard error is right if the distance is well
    above its floor. At the floor it is up to 1.7 times too large, because the distance is quadratic in the error of
    the moments there. The order of the features must carry no information.
    """
    metric = FrechetInceptionDistance(
        feature=GivenFeatures(features.shape[1]),
        reset_real_features=False,
        sync_on_compute=False,  # this process has all the features
    )
    metric.update(reference.double(), real=True)

    def distance(part: Tensor) -> Tensor:
        metric.reset()
        metric.update(part.double(), real=False)
        return metric.compute()

    parts = features.tensor_split(GROUPS)
    left_out = torch.stack([distance(torch.cat(parts[:i] + parts[i + 1 :])) for i in range(GROUPS)])
    se = (left_out.var(correction=0) * (GROUPS - 1)).sqrt()
    return Estimate(distance(features).item(), se.item())
