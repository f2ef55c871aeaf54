"""The Muon optimizer against the singular values and torch's own optimizers."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim import Muon as TorchMuon

from ddpm.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16), (1, 9)], ids=str)
def test_the_singular_values_become_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.max() < 1.25
    assert values.min() > 0.3


def test_a_gradient_of_zero_changes_nothing():
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def stepped(optimizer, weight: torch.Tensor, steps: int = 4) -> torch.Tensor:
    parameter = nn.Parameter(weight.clone())
    optimizer = optimizer([parameter])
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        parameter.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return parameter.detach()


def test_a_matrix_follows_torchs_muon():
    weight = torch.randn(12, 30)
    theirs = partial(TorchMuon, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    change, expected = (stepped(make, weight) - weight for make in (partial(Muon, lr=0.1), theirs))
    torch.testing.assert_close(change, expected, rtol=0, atol=0.02 * expected.abs().max().item())  # theirs is bfloat16


def test_a_convolution_is_a_matrix_of_its_output_channels():
    weight = torch.randn(6, 4, 3, 3)
    assert torch.equal(
        stepped(partial(Muon, lr=0.1), weight).flatten(1), stepped(partial(Muon, lr=0.1), weight.flatten(1))
    )


def test_a_vector_follows_adam():
    weight = torch.randn(7)
    ours, theirs = (stepped(partial(make, lr=0.1, betas=(0.9, 0.99)), weight) for make in (Muon, Adam))
    torch.testing.assert_close(ours, theirs)
