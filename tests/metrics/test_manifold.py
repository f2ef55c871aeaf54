import pytest
import torch

from ddpm.metrics import manifold
from ddpm.metrics.manifold import manifold_measures


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(samples, real):
    """Returns the measures by their definitions, point by point."""

    def radius(point, points, k):
        return sorted((point - other).norm().item() for other in points)[k]

    def within(point, centre, points, k):
        return (point - centre).norm().item() <= radius(centre, points, k)

    precision = [any(within(y, x, real, 3) for x in real) for y in samples]
    recall = [any(within(x, y, samples, 3) for y in samples) for x in real]
    density = [sum(within(y, x, real, 5) for x in real) / 5 for y in samples]
    coverage = [any(within(y, x, real, 5) for y in samples) for x in real]
    parts = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {name: sum(values) / len(values) for name, values in parts.items()}


@pytest.mark.parametrize("chunk", [4, 1000])
def test_against_the_definitions(monkeypatch, chunk):
    monkeypatch.setattr(manifold, "CHUNK", chunk)
    samples, real = 0.6 * normal(22, 2, seed=1) + 0.4, normal(17, 2, seed=2)
    measured = {name: estimate.mean for name, estimate in manifold_measures(samples, real).items()}
    assert measured == pytest.approx(by_hand(samples, real))
    assert len(set(measured.values())) == 4
    assert all(0 < value < 1 for value in measured.values())


def test_extremes():
    real = normal(50, 3)
    same = {name: estimate.mean for name, estimate in manifold_measures(real, real).items()}
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = {name: estimate.mean for name, estimate in manifold_measures(real + 100, real).items()}
    assert set(far.values()) == {0}


def test_a_missing_mode_lowers_only_recall_and_coverage():
    modes = torch.tensor([[0.0, 0.0], [20.0, 0.0]]).double()
    real = normal(200, 2, seed=1) + modes[torch.arange(200) % 2]
    measured = manifold_measures(normal(200, 2, seed=2), real)
    assert measured["precision"].mean > 0.9
    assert measured["density"].mean > 0.9
    assert measured["recall"].mean == pytest.approx(0.5, abs=0.06)
    assert measured["coverage"].mean == pytest.approx(0.5, abs=0.06)
