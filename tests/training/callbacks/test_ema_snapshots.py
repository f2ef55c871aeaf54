"""Averages whose length is chosen after training, against averages that were kept with this length."""

import pytest
import torch
from small import fit, small_model
from torch import nn

from ddpm.errors import UserError
from ddpm.training.callbacks import EMASnapshots, LastCheckpoint
from ddpm.training.power_averages import coefficients, gamma, power_average, reconstruct, snapshots_in


def test_the_exponents_are_those_of_the_paper():
    assert gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma(0.10) == pytest.approx(6.94, abs=0.005)


def test_an_average_weights_step_k_by_its_power():
    """Against the sum over all steps of the weights that the update gives."""
    walk = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)
    network = nn.Linear(1, 1, bias=False).double()
    average = power_average(network, 0.1)
    shares = torch.zeros(0, dtype=torch.float64)
    for k, value in enumerate(walk, start=1):
        nn.init.constant_(network.weight, value.item())
        average.update_parameters(network)
        kept = (1 - 1 / k) ** (gamma(0.1) + 1)
        shares = torch.cat([shares * kept, torch.tensor([1 - kept], dtype=torch.float64)])
    assert average.module.weight.item() == pytest.approx((shares @ walk).item(), rel=1e-12)
    middle = (torch.arange(1, 51) - 0.5) / 50
    center = (shares * middle).sum()
    assert ((shares * (middle - center) ** 2).sum().sqrt()).item() == pytest.approx(0.1, abs=0.002)


def test_a_stored_average_is_found_exactly_and_others_closely():
    steps, gammas = [100, 100, 200, 200], [gamma(0.05), gamma(0.1)] * 2
    factors, error = coefficients(steps, gammas, 200, gamma(0.1))
    assert factors == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert error < 1e-12
    many = [step for step in range(25, 1001, 25) for _ in range(2)]
    for length, worst in ((0.03, 0.03), (0.07, 1e-3), (0.15, 0.01)):
        factors, error = coefficients(many, [gamma(0.05), gamma(0.1)] * 40, 1000, gamma(length))
        assert sum(factors) == pytest.approx(1, abs=0.02)
        assert error < worst


def train(folder, steps, *, lengths=(0.05, 0.1), resume=None):
    model = small_model()
    snapshots = EMASnapshots(folder / "ema", lengths, every_steps=2)
    fit(model, steps, snapshots, LastCheckpoint(folder, every_steps=100, every_minutes=60), resume=resume)
    return model


def test_the_average_of_another_length_is_the_one_that_training_would_have_kept(tmp_path):
    model = train(tmp_path, 40, lengths=[0.05, 0.07, 0.1])
    kept = reconstruct(tmp_path / "ema", 0.07, at_most=40)
    assert kept.error < 1e-12
    for snapshot in snapshots_in(tmp_path / "ema"):
        if snapshot.length == 0.07:
            snapshot.path.unlink()
    found = reconstruct(tmp_path / "ema", 0.07, at_most=40)
    assert found.step == kept.step == 40
    plain = model.network.state_dict()
    distance = sum((found.weights[name] - kept.weights[name]).square().sum() for name in plain)
    assert distance < 1e-3 * sum((plain[name] - kept.weights[name]).square().sum() for name in plain)
    assert reconstruct(tmp_path / "ema", 0.07, at_most=21).step == 20


def test_a_run_that_continues_stores_the_same_averages(tmp_path):
    train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 3)
    train(tmp_path / "parts", 6, resume=tmp_path / "parts" / "checkpoints" / "last.ckpt")
    stored = snapshots_in(tmp_path / "whole" / "ema")
    assert [(s.step, s.length) for s in stored] == [(2, 0.05), (2, 0.1), (4, 0.05), (4, 0.1), (6, 0.05), (6, 0.1)]
    for snapshot in stored:
        other = torch.load(tmp_path / "parts" / "ema" / snapshot.path.name, weights_only=True)
        state = torch.load(snapshot.path, weights_only=True)["state_dict"]
        assert all(torch.equal(weight, other["state_dict"][name]) for name, weight in state.items())


def test_lengths_and_folders_without_an_average_are_refused(tmp_path):
    with pytest.raises(UserError, match="there are none"):
        reconstruct(tmp_path, 0.1, at_most=10)
    train(tmp_path, 2)
    with pytest.raises(UserError, match=r"ema.length=0.5: .* between 0.01 and 0.25"):
        reconstruct(tmp_path / "ema", 0.5, at_most=2)
    with pytest.raises(ValueError, match="different"):
        EMASnapshots(tmp_path, lengths=[0.1, 0.1])
    with pytest.raises(ValueError, match="between"):
        EMASnapshots(tmp_path, lengths=[0.5])
