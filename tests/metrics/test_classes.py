import pytest
import torch
from torch.nn.functional import one_hot

from ddpm.metrics.classes import class_shares, confidence, total_variation


def logits_of(digits):
    return one_hot(torch.as_tensor(digits), 10).float()


def test_total_variation_of_known_shares():
    uniform = torch.full((10,), 0.1, dtype=torch.float64)
    logits = logits_of([0] * 6 + [1] * 4)
    assert class_shares(logits).tolist() == [0.6, 0.4, *[0] * 8]
    assert total_variation(logits, uniform).mean == pytest.approx(0.8)
    assert total_variation(logits_of(range(10)), uniform).mean == pytest.approx(0)


def test_error_of_the_total_variation_is_the_spread_of_repeated_draws():
    shares = torch.tensor([0.19, 0.01, *[0.1] * 8]).double()
    generator = torch.Generator().manual_seed(0)
    draws = [shares.multinomial(1000, replacement=True, generator=generator) for _ in range(100)]
    estimates = [total_variation(logits_of(draw), torch.full((10,), 0.1, dtype=torch.float64)) for draw in draws]
    spread = torch.tensor([estimate.mean for estimate in estimates]).std().item()
    assert estimates[0].se == pytest.approx(spread, rel=0.4)


def test_confidence():
    probabilities = torch.tensor([[0.95, *[0.05 / 9] * 9], [0.55, *[0.05] * 9]])
    top, unsure = confidence(probabilities.log() + 3)
    assert top.mean == pytest.approx(0.75)
    assert top.se == pytest.approx(0.2)
    assert unsure.mean == 0.5
