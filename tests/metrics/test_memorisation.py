from types import SimpleNamespace

import pytest
import torch

from ddpm.metrics import memorisation as module
from ddpm.metrics.memorisation import TrainingDistance, copy_threshold, near_copies, nearest


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [3, 500])
def test_nearest_against_all_distances(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    queries, references = uniform(10, 5, seed=1), uniform(40, 5, seed=2)
    expected = (queries[:, None].double() - references.double()).norm(dim=2).min(dim=1)
    found = nearest(queries, references)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.distances, expected.values)


def test_a_copy_is_at_distance_zero():
    references = uniform(50, 784) * 255
    found = nearest(references[[7, 3]], references)
    assert found.distances.tolist() == [0, 0]
    assert found.indices.tolist() == [7, 3]


def test_near_copies_are_below_the_quantile_of_the_first_half():
    held_out = torch.cat([torch.arange(1, 102), torch.full((100,), 0.5), torch.tensor([1.5])]).double()
    assert copy_threshold(held_out) == 2  # 1 % of 1 … 101
    samples = torch.tensor([0.0, 1.9, 2.0, 3.0]).double()
    copies = near_copies(samples, held_out)
    assert copies.value.mean == 0.5
    assert copies.real.mean == 1  # of the other half

    reference = SimpleNamespace(
        samples_nearest={"pixels": SimpleNamespace(distances=samples)},
        test_nearest={"pixels": SimpleNamespace(distances=held_out)},
    )
    distance = TrainingDistance("pixels")(None, reference)
    assert distance.value.mean == pytest.approx(6.9 / 4)
    assert distance.real.mean == pytest.approx(held_out.mean().item())
