import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from ddpm.metrics.frechet import frechet_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, factor, n=400, seed=0):
    """Returns points [n, D] with exactly the sample mean `mean` and the sample covariance factor·factorᵀ."""
    points = normal(n, len(mean), seed=seed)
    points = points - points.mean(dim=0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(points.T.cov()), points.T, upper=False)
    return mean + (factor @ whitened).T


def test_distance_of_known_gaussians():
    """With Σ₁ = Q diag(a²) Qᵀ and Σ₂ = Q diag(b²) Qᵀ the distance is |μ₁-μ₂|² + |a-b|²."""
    rotation = torch.linalg.qr(normal(4, 4)).Q
    a, b = torch.tensor([[1.0, 2.0, 0.5, 3.0], [2.0, 2.0, 0.0, 1.0]], dtype=torch.float64)  # one has no spread
    mean = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    samples = with_moments(mean, rotation @ a.diag(), seed=1)
    reference = with_moments(torch.zeros_like(mean), rotation @ b.diag(), n=300, seed=2)
    expected = (mean.square().sum() + (a - b).square().sum()).item()
    assert frechet_distance(samples, reference).mean == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(reference, samples).mean == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("shift", "least", "most"), [(0.3, 0.7, 1.5), (0.0, 1.0, 2.0)])
def test_error_is_the_spread_of_repeated_draws(shift, least, most):
    """At the floor, where the distance is only its bias, the jackknife error may be too large but not too small."""
    reference = normal(4000, 6, seed=100)
    estimates = [frechet_distance(normal(400, 6, seed=seed) + shift, reference) for seed in range(40)]
    spread = torch.tensor([estimate.mean for estimate in estimates]).std().item()
    stated = torch.tensor([estimate.se for estimate in estimates]).mean().item()
    assert least < stated / spread < most


def test_features_without_any_spread():
    """The distance from one point is |μ₁-μ₂|² + tr Σ₂, with no error because each draw would be this point."""
    reference = with_moments(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    point = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64).expand(20, 3)
    assert frechet_distance(point, reference) == pytest.approx((5 + 3, 0))
    assert frechet_distance(reference, point).mean == pytest.approx(5 + 3)
    assert frechet_distance(point, point) == (0, 0)


@pytest.mark.parametrize(("n", "m", "d"), [(30, 400, 8), (30, 400, 60), (60, 40, 80)])
def test_the_value_is_that_of_torchmetrics_also_for_fewer_points_than_features(n, m, d):
    samples, reference = normal(n, d, seed=1) * 2 + 0.5, normal(m, d, seed=2)
    network = torch.nn.Identity()
    network.num_features = d
    theirs = FrechetInceptionDistance(feature=network)
    theirs.update(samples, real=False)
    theirs.update(reference, real=True)
    assert frechet_distance(samples, reference).mean == pytest.approx(theirs.compute().item(), rel=1e-5)
