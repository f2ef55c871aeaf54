from typing import Any

import pytest
import torch
from closed_forms import (
    PREDICTIONS,
    VARIANCES,
    Chain,
    betas_of_any_schedule,
    column,
    gaussian_kl,
    network_that_returns,
    seeded_randn_like,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.objective import VLB, MinSNR, Simple, WeightedMSE, low_discrepancy, uniform
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion, Variance

T = 1000


def x0_mse() -> Tensor:
    return torch.linspace(1e-4, 0.3, T, dtype=torch.float64)


def wrong_guess(
    prediction: Prediction, variance: Variance = "small"
) -> tuple[GaussianDiffusion, Chain, tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return one image for each t and the output of a network whose x0 is wrong by 0.5."""
    diffusion = GaussianDiffusion(
        schedules.linear(T), prediction=prediction, variance=variance, x0_mse=x0_mse(), clip_x0=True
    )
    chain = Chain.of(diffusion.alpha_bars)
    t = torch.arange(T)
    randn_like = seeded_randn_like(0)
    x0, eps, error = (randn_like(torch.empty(T, 1, 3, 3)) for _ in range(3))
    guess = x0 + 0.5 * error.sign()
    x_t = (column(chain.alpha_bars).sqrt() * x0 + (1 - column(chain.alpha_bars)).sqrt() * eps).float()
    output = chain.as_output(prediction, guess, x_t, t).float()
    return diffusion, chain, (output, x0, x_t, t, eps), guess


def chi_square(draws: Tensor, num_values: int) -> float:
    expected = len(draws) / num_values
    return float(((torch.bincount(draws, minlength=num_values) - expected) ** 2).sum() / expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_plain_mean_squared_error_of_the_output(prediction: Prediction) -> None:
    diffusion, _, (output, x0, x_t, t, eps), _ = wrong_guess(prediction)
    loss = Simple()(network_that_returns(output), diffusion, x0, t, eps)
    target = diffusion.target(x0, x_t, t, eps)
    assert loss.shape == (T,)
    torch.testing.assert_close(loss, ((output - target) ** 2).mean(dim=(1, 2, 3)))
    assert (Simple().weights(diffusion) == 1).all()


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_vlb_is_the_kl_of_one_step_in_nats_per_pixel(prediction: Prediction, variance: Variance) -> None:
    """Against KL(q(x_{t-1}|x_t, x_0) ‖ p(x_{t-1}|x_t)) without the part that depends on the variances alone."""
    diffusion, chain, batch, guess = wrong_guess(prediction, variance)
    output, x0, x_t, t, eps = batch
    loss = VLB()(network_that_returns(output), diffusion, x0, t, eps)

    sigma2 = column(chain.reverse_variance(variance, x0_mse())).expand(-1, 1, 3, 3)
    beta_tilde = column(chain.variance).expand_as(sigma2)
    mean_q = column(chain.c0) * x0 + column(chain.ct) * x_t
    mean_p = column(chain.c0) * guess + column(chain.ct) * x_t
    kl = gaussian_kl(mean_q[1:], beta_tilde[1:], mean_p[1:], sigma2[1:])
    constant = gaussian_kl(mean_q[1:], beta_tilde[1:], mean_q[1:], sigma2[1:])
    expected = (kl - constant).mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss[1:].double(), expected, rtol=1e-2, atol=0)

    first = ((x0[0].double() - guess[0]) ** 2 / (2 * sigma2[0])).mean()
    assert loss[0].item() == pytest.approx(first.item(), rel=1e-2)


@pytest.mark.parametrize("loss", [VLB(), MinSNR(), MinSNR(gamma=1.0)], ids=["vlb", "min_snr", "min_snr_1"])
def test_the_value_does_not_depend_on_what_the_network_predicts(loss: WeightedMSE) -> None:
    values = {}
    for prediction in PREDICTIONS:
        diffusion, _, (output, x0, _, t, eps), _ = wrong_guess(prediction)
        values[prediction] = loss(network_that_returns(output), diffusion, x0, t, eps)
    for prediction in PREDICTIONS[1:]:
        torch.testing.assert_close(values[prediction], values["epsilon"], rtol=1e-2, atol=0)


def test_vlb_weight_of_epsilon_is_equation_12_of_ho() -> None:
    diffusion = GaussianDiffusion(schedules.linear(T))
    chain = Chain.of(diffusion.alpha_bars)
    expected = chain.betas**2 / (2 * chain.variance * (1 - chain.betas) * (1 - chain.alpha_bars))
    weights = VLB().weights(diffusion)
    assert weights.dtype == torch.float64
    assert weights.shape == (T,)
    torch.testing.assert_close(weights[1:], expected[1:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_hang(gamma: float) -> None:
    betas = schedules.linear(T)
    ab = torch.cumprod(1 - betas, 0)
    snr = ab / (1 - ab)
    clamped = torch.where(snr > gamma, gamma, snr)
    jacobians: dict[Prediction, Tensor] = {
        "x0": torch.ones_like(snr),
        "epsilon": 1 / snr,
        "v": 1 / (snr + 1),
        "mean": 1 / Chain.of(ab).c0 ** 2,
    }
    for prediction, jacobian in jacobians.items():
        weights = MinSNR(gamma=gamma).weights(GaussianDiffusion(betas, prediction=prediction))
        assert weights.dtype == torch.float64
        torch.testing.assert_close(weights, clamped * jacobian, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", [Simple(), VLB(), MinSNR()], ids=["simple", "vlb", "min_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses_never_clip(loss: WeightedMSE, prediction: Prediction) -> None:
    """The loss of x0 = 5 for a white pixel is (5-1)², whether the reverse chain clips or not."""
    values = []
    for clip_x0 in (True, False):
        diffusion = GaussianDiffusion(schedules.linear(100), prediction=prediction, clip_x0=clip_x0)
        t = torch.arange(100)
        x0, eps = torch.ones(100, 1, 1, 1), seeded_randn_like(0)(torch.empty(100, 1, 1, 1))
        x_t = diffusion.q_sample(x0, t, eps)
        output = Chain.of(diffusion.alpha_bars).as_output(prediction, 5 * x0, x_t, t).float()
        values.append(loss(network_that_returns(output), diffusion, x0, t, eps))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    diffusion = GaussianDiffusion(schedules.linear(100), prediction="x0")
    output = 5 * x0
    simple = Simple()(network_that_returns(output), diffusion, x0, t, eps)
    torch.testing.assert_close(simple, torch.full((100,), 16.0))


@given(
    betas=betas_of_any_schedule(),
    prediction=st.sampled_from(PREDICTIONS),
    variance=st.sampled_from(["small", "large"]),
)
def test_weights_are_positive_and_finite_for_any_chain(
    betas: Tensor, prediction: Prediction, variance: Variance
) -> None:
    diffusion = GaussianDiffusion(betas, prediction=prediction, variance=variance)
    for loss in (Simple(), VLB(), MinSNR()):
        weights = loss.weights(diffusion)
        assert weights.shape == betas.shape
        assert weights.isfinite().all()
        assert (weights > 0).all()


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_weights_are_finite_at_zero_terminal_snr(prediction: Prediction) -> None:
    betas = schedules.linear(50)
    betas[-1] = 1.0
    diffusion = GaussianDiffusion(betas, prediction=prediction)
    for loss in (Simple(), VLB(), MinSNR()):
        assert loss.weights(diffusion).isfinite().all()


def test_uniform_draws_every_t_equally_often() -> None:
    t = uniform(20_000, 20, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64
    assert t.shape == (20_000,)
    assert set(t.tolist()) == set(range(20))
    assert chi_square(t, 20) < 50.8  # one in ten thousand for 19 degrees of freedom


@given(num_steps=st.integers(1, 1000), batch_size=st.integers(1, 64), seed=st.integers(0, 2**31))
def test_low_discrepancy_spreads_evenly_for_any_batch(num_steps: int, batch_size: int, seed: int) -> None:
    t = low_discrepancy(batch_size, num_steps, torch.Generator().manual_seed(seed))
    assert t.dtype == torch.int64
    assert t.shape == (batch_size,)
    assert t.min() >= 0
    assert t.max() < num_steps
    # The points are 1/B apart, so the first k of T timesteps hold B·k/T of them, rounded up or down.
    held = torch.bincount(t, minlength=num_steps).cumsum(0)
    share = batch_size * torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    assert (held - share).abs().max() < 1 + 1e-6


@pytest.mark.parametrize(("batch_size", "num_steps"), [(8, 8), (8, 1000), (50, 1000)])
def test_low_discrepancy_draws_one_timestep_from_each_equal_interval(batch_size: int, num_steps: int) -> None:
    for seed in range(20):
        t = low_discrepancy(batch_size, num_steps, torch.Generator().manual_seed(seed))
        strata = t * batch_size // num_steps
        assert sorted(strata.tolist()) == list(range(batch_size))


def test_low_discrepancy_is_uniform_at_each_position_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([low_discrepancy(3, 7, generator) for _ in range(7000)])
    for place in range(3):
        assert chi_square(draws[:, place], 7) < 27.9  # one in ten thousand for 6 degrees of freedom


@pytest.mark.parametrize("draw", [uniform, low_discrepancy])
def test_draws_are_a_function_of_their_generator_alone(draw: Any) -> None:
    torch.manual_seed(1)
    first = draw(64, T, torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = draw(64, T, torch.Generator().manual_seed(5))
    third = draw(64, T, torch.Generator().manual_seed(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
