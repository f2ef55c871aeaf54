import pytest
import torch

from ddpm.metrics.kernel import kernel_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared_mmd(x, y):
    """Returns the unbiased estimate by its definition (Gretton et al. 2012, eq. 3)."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    def within(points):
        n = len(points)
        return sum(k(points[i], points[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    between = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    return (within(x) + within(y) - 2 * between).item()


def test_against_the_formula():
    x, y = normal(25, 3, seed=1), normal(40, 3, seed=2) + 0.5
    assert kernel_distance(x, y).mean == pytest.approx(squared_mmd(x, y))


def test_unbiased():
    """For equal distributions the estimates scatter around zero within their error."""
    estimates = [kernel_distance(normal(200, 4, seed=seed), normal(300, 4, seed=1000 + seed)) for seed in range(60)]
    means = torch.tensor([estimate.mean for estimate in estimates])
    spread = means.std().item()
    assert abs(means.mean().item()) < 3 * spread / len(means) ** 0.5
    assert means.min() < 0 < means.max()
    assert all(abs(estimate.mean) < 4 * estimate.se for estimate in estimates)


@pytest.mark.parametrize(
    ("shift", "n", "m", "least", "most"),
    [(0.5, 60, 400, 0.8, 1.4), (0.5, 400, 60, 0.8, 1.4), (0.0, 150, 150, 1.0, 2.0)],
)
def test_error_is_the_spread_of_repeated_draws(shift, n, m, least, most):
    """Both sets are drawn again. For equal distributions the jackknife error may be too large but not too small."""
    estimates = [kernel_distance(normal(n, 4, seed=seed) + shift, normal(m, 4, seed=1000 + seed)) for seed in range(60)]
    spread = torch.tensor([estimate.mean for estimate in estimates]).std().item()
    stated = torch.tensor([estimate.se for estimate in estimates]).mean().item()
    assert least < stated / spread < most
