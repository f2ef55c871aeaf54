"""The Fréchet distance (Heusel et al. 2017) between two sets of features."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ddpm.metrics.estimates import Estimate

GROUPS = 20


class GivenFeatures(nn.Identity):
    """Stands where torchmetrics expects the feature network: the features are known already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet_distance(features: Tensor, reference: Tensor) -> Estimate:
    """|μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) between features [N, D] and a reference [M, D], in float64.

    Its bias depends on N and M, so compare only distances of equal N and M. The error is that of drawing the
    N features anew, by a jackknife that leaves out each 20th of them in turn: all parts have the same size and bias,
    which a bootstrap would add to. It is right where the distance is well above its floor, and up to 1.7 times too
    large at the floor, where the distance is quadratic in the error of the moments. The order must mean nothing.
    """
    metric = FrechetInceptionDistance(
        feature=GivenFeatures(features.shape[1]),
        reset_real_features=False,
        sync_on_compute=False,  # these are all the features, whatever other processes are there
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
