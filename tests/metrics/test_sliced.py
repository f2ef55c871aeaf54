import pytest
import torch

from ddpm.metrics.sliced import sliced_wasserstein


def points(seed, n=400, d=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_shift_by_a_constant_is_measured_exactly():
    """Along a unit direction u the distance is |u·shift|, whose mean square in D dimensions is |shift|²/D."""
    found = sliced_wasserstein(points(0) + torch.tensor([3.0, 0, 0]), points(0))
    assert found.mean == pytest.approx(3 / 3**0.5, rel=0.1)
    assert found.se < 1e-6
    assert sliced_wasserstein(points(0), points(0)) == (0, 0)


def test_the_standard_error_is_the_spread_over_independent_sets():
    found = [sliced_wasserstein(points(2 * i, n=100) + 1, points(2 * i + 1, n=100)) for i in range(50)]
    means, errors = torch.tensor(found, dtype=torch.float64).T
    assert errors.mean() == pytest.approx(means.std().item(), rel=0.3)
