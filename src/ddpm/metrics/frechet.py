"""The Fréchet distance (Heusel et al. 2017) between two sets of features."""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from ddpm.metrics.estimates import Estimate, standard_error
from ddpm.metrics.measures import Comparison, ImageSet, Reference, mean_over_parts


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
        gaussian = Gaussian.of(to)
        floor = mean_over_parts(gaussian.distance, other, len(samples))
        return Comparison(gaussian.distance(samples.features), floor, has_ratio=True)


class Gaussian(NamedTuple):
    """The mean and the covariance of features, in float64."""

    mean: Tensor
    """[D]"""
    factor: Tensor
    """[D, R]; the covariance is factor·factorᵀ, and R is its rank"""

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Return the Gaussian with the moments of features [M, D]."""
        features = features.double()
        mean = features.mean(dim=0)
        centred = features - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / (len(features) - 1))
        kept = values > _rounding(values)
        return cls(mean, vectors[:, kept] * values[kept].sqrt())

    def distance(self, features: Tensor) -> Estimate:
        """Return |μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) from features [N, D].

        With Σ₂ = F·Fᵀ, tr (Σ₁Σ₂)^½ is the sum of the singular values of Y = (X - μ₁)F/√(N-1), where X are the
        features. They are the square roots of the eigenvalues of YᵀY or of YYᵀ, whichever is smaller. So N may be
        below D, and one symmetric eigenproblem gives the distance and its standard error.

        The bias depends on N and M, so compare only distances with equal N and M. The standard error is that of
        drawing new N features. It is an infinitesimal jackknife (Efron 1982): the spread of the derivatives of the
        distance with respect to the weight of each feature. It is right if the distance is well above its floor. At
        the floor it is up to 1.7 times too large, because the distance is quadratic in the error of the moments there.
        """
        features = features.double()
        n, shift = len(features), features.mean(dim=0) - self.mean
        centred = features - features.mean(dim=0)
        projected = centred @ self.factor / (n - 1) ** 0.5  # Y
        wide = projected.shape[0] <= projected.shape[1]
        values, vectors = torch.linalg.eigh(projected @ projected.T if wide else projected.T @ projected)
        kept = values > _rounding(values)
        roots, vectors = values[kept].sqrt(), vectors[:, kept]
        left = vectors if wide else projected @ vectors / roots  # left singular vectors of Y, [N, rank]

        square_norms = centred.square().sum(dim=1)  # their sum is (N-1)·tr Σ₁
        value = shift.square().sum() + square_norms.sum() / (n - 1) + self.factor.square().sum() - 2 * roots.sum()
        derivatives = 2 * centred @ shift + square_norms - n * left.square() @ roots
        return Estimate(value.item(), standard_error(derivatives).item())


def _rounding(eigenvalues: Tensor) -> float:
    """Return the size below which the eigenvalues of a covariance are rounding errors."""
    return max(eigenvalues.tolist(), default=0.0) * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps


def frechet_distance(features: Tensor, reference: Tensor) -> Estimate:
    """Return the Fréchet distance between features [N, D] and a reference [M, D]; see `Gaussian.distance`."""
    return Gaussian.of(reference).distance(features)
