from typing import Any

import pytest
import torch
from closed_forms import PREDICTIONS, VARIANCES, Chain, betas_of_any_schedule, column, seeded_randn_like
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion, Variance


def forward_coefficients(diffusion: GaussianDiffusion) -> tuple[Tensor, Tensor]:
    """Return the factors of x0 and eps in q_sample, [T] each."""
    t = torch.arange(diffusion.num_steps)
    one, zero = torch.ones(len(t), 1, 1, 1), torch.zeros(len(t), 1, 1, 1)
    return diffusion.q_sample(one, t, zero).flatten(), diffusion.q_sample(zero, t, one).flatten()


def posterior_coefficients(diffusion: GaussianDiffusion) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.arange(diffusion.num_steps)
    one, zero = torch.ones(len(t), 1, 1, 1), torch.zeros(len(t), 1, 1, 1)
    c0, variance = diffusion.q_posterior(one, zero, t)
    ct, _ = diffusion.q_posterior(zero, one, t)
    return c0.flatten(), ct.flatten(), variance.flatten()


def bayes_on_a_grid(x0: float, x_t: float, ab_previous: float, ab: float) -> tuple[float, float]:
    """Return mean and variance of q(x_{t-1}|x_t, x_0) ∝ q(x_t|x_{t-1})·q(x_{t-1}|x_0), summed on a grid."""
    alpha = ab / ab_previous
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    log_density = -((x_t - alpha**0.5 * x) ** 2) / (2 * (1 - alpha))
    log_density = log_density - (x - ab_previous**0.5 * x0) ** 2 / (2 * (1 - ab_previous))
    density = torch.softmax(log_density, 0)
    mean = (density * x).sum()
    return mean.item(), (density * (x - mean) ** 2).sum().item()


@given(betas=betas_of_any_schedule())
def test_composing_single_steps_gives_the_marginal(betas: Tensor) -> None:
    signal, spread = forward_coefficients(GaussianDiffusion(betas))
    a, variance = 1.0, 0.0
    for t, beta in enumerate(betas.tolist()):
        a, variance = (1 - beta) ** 0.5 * a, (1 - beta) * variance + beta
        assert signal[t].item() == pytest.approx(a, rel=1e-5)
        assert spread[t].item() == pytest.approx(variance**0.5, rel=1e-5)


def test_single_steps_give_the_mean_and_std_of_q_sample() -> None:
    diffusion = GaussianDiffusion(schedules.linear(50))
    randn_like = seeded_randn_like(0)
    x = x0 = torch.full((1, 1, 200, 500), 0.7)
    for t, beta in enumerate(diffusion.betas.tolist()):
        x = (1 - beta) ** 0.5 * x + beta**0.5 * randn_like(x)
        jump = diffusion.q_sample(x0, torch.tensor([t]), randn_like(x0))
        for sample in (x, jump):
            ab = diffusion.alpha_bars[t].item()
            assert sample.mean().item() == pytest.approx(ab**0.5 * 0.7, abs=5 * ((1 - ab) / 1e5) ** 0.5)
            assert sample.std().item() == pytest.approx((1 - ab) ** 0.5, rel=0.012)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    betas=betas_of_any_schedule(),
    seed=st.integers(0, 2**31),
)
def test_each_image_gets_its_own_t(shape: tuple[int, ...], betas: Tensor, seed: int) -> None:
    diffusion = GaussianDiffusion(betas)
    draw = seeded_randn_like(seed)
    x0, eps = draw(torch.empty(shape)), draw(torch.empty(shape))
    t = torch.randint(len(betas), shape[:1], generator=torch.Generator().manual_seed(seed))
    together = diffusion.q_sample(x0, t, eps)
    assert together.shape == shape
    for i in range(shape[0]):
        ab = diffusion.alpha_bars[t[i]]
        expected = ab.sqrt() * x0[i] + (1 - ab).sqrt() * eps[i]
        torch.testing.assert_close(together[i], expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [1, 2, 10, 300, 999])
def test_the_posterior_is_bayes_rule_on_a_grid(t: int) -> None:
    diffusion = GaussianDiffusion(schedules.linear(1000))
    x0, x_t = 0.4, -1.1 if t > 50 else 0.45
    ab = diffusion.alpha_bars.tolist()
    mean, variance = diffusion.q_posterior(
        torch.full((1, 1, 1, 1), x0), torch.full((1, 1, 1, 1), x_t), torch.tensor([t])
    )
    expected_mean, expected_variance = bayes_on_a_grid(x0, x_t, ab[t - 1], ab[t])
    assert mean.item() == pytest.approx(expected_mean, abs=1e-5)
    assert variance.item() == pytest.approx(expected_variance, rel=1e-4)


def test_the_posterior_of_a_subsequence_is_bayes_rule_between_the_kept_steps() -> None:
    diffusion = GaussianDiffusion(schedules.linear(1000))
    timesteps = torch.tensor([0, 3, 250, 600, 999])
    short = diffusion.subsequence(timesteps)
    ab = diffusion.alpha_bars[timesteps].tolist()
    for i in range(1, len(timesteps)):
        x_t = -1.1 if i > 1 else 0.45
        mean, variance = short.q_posterior(
            torch.full((1, 1, 1, 1), 0.4), torch.full((1, 1, 1, 1), x_t), torch.tensor([i])
        )
        expected_mean, expected_variance = bayes_on_a_grid(0.4, x_t, ab[i - 1], ab[i])
        assert mean.item() == pytest.approx(expected_mean, abs=1e-5)
        assert variance.item() == pytest.approx(expected_variance, rel=1e-4)


@given(betas=betas_of_any_schedule(), data=st.data())
def test_posteriors_at_every_t_of_any_chain_and_subsequence(betas: Tensor, data: Any) -> None:
    last = len(betas) - 1
    timesteps = sorted(data.draw(st.sets(st.integers(0, last - 1), max_size=last)) | {last})
    whole = GaussianDiffusion(betas)
    short = whole.subsequence(torch.tensor(timesteps))
    assert short.num_steps == len(timesteps)
    torch.testing.assert_close(short.alpha_bars, whole.alpha_bars[timesteps], rtol=1e-12, atol=1e-15)
    for diffusion in (whole, short):
        chain = Chain.of(diffusion.alpha_bars)
        for actual, expected in zip(
            posterior_coefficients(diffusion), (chain.c0, chain.ct, chain.variance), strict=True
        ):
            torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_posterior_at_t_0_is_x0_with_variance_0(variance: Variance) -> None:
    diffusion = GaussianDiffusion(schedules.linear(100), variance=variance, x0_mse=torch.full((100,), 0.1))
    x0, x_t = torch.full((3, 1, 2, 2), 0.3), torch.full((3, 1, 2, 2), -0.9)
    mean, spread = diffusion.q_posterior(x0, x_t, torch.zeros(3, dtype=torch.int64))
    assert (spread == 0).all()
    assert spread.shape == (3, 1, 1, 1)
    torch.testing.assert_close(mean, x0, rtol=1e-6, atol=0)


def test_a_subsequence_of_all_steps_changes_nothing() -> None:
    """With prediction="x0", because a subsequence always has that prediction type."""
    diffusion = GaussianDiffusion(schedules.cosine(60), prediction="x0", variance="large", clip_x0=False)
    same = diffusion.subsequence(torch.arange(60))
    torch.testing.assert_close(same.betas, diffusion.betas, rtol=1e-9, atol=0)
    x_t, output = torch.full((60, 1, 1, 1), 0.3), torch.full((60, 1, 1, 1), -0.8)
    t = torch.arange(60)
    torch.testing.assert_close(same.p_mean_variance(output, x_t, t), diffusion.p_mean_variance(output, x_t, t))


@pytest.mark.parametrize("timesteps", [None, [0, 7, 20, 55, 99], [9, 19, 49, 99]])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_reverse_variance_at_every_t(variance: Variance, timesteps: list[int] | None) -> None:
    """Small is β̃, and β̃ of t = 1 at t = 0; large is β; optimal is β̃ + c0²·x0_mse."""
    x0_mse = torch.linspace(0.01, 0.3, 100, dtype=torch.float64)
    diffusion = GaussianDiffusion(schedules.linear(100), variance=variance, x0_mse=x0_mse)
    if timesteps is not None:
        diffusion, x0_mse = diffusion.subsequence(torch.tensor(timesteps)), x0_mse[timesteps]
    t = torch.arange(diffusion.num_steps)
    x = torch.zeros(len(t), 1, 2, 2)
    _, actual, _ = diffusion.p_mean_variance(x, x, t)
    assert actual.shape == (len(t), 1, 1, 1)
    chain = Chain.of(diffusion.alpha_bars)
    expected = chain.reverse_variance(variance, x0_mse)
    torch.testing.assert_close(actual.flatten().double(), expected, rtol=1e-5, atol=0)
    at_zero = {"small": chain.variance[1], "large": diffusion.betas[0], "optimal": x0_mse[0]}[variance]
    assert actual[0].item() == pytest.approx(at_zero.item(), rel=1e-5)


def output_for(chain: Chain, prediction: str, x0: float, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the output of a network that predicts the value `x0`, outside [-1, 1], for every pixel."""
    return chain.as_output(prediction, torch.full_like(x_t, x0), x_t, t).float()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clip_x0_puts_the_clamped_x0_into_the_mean(prediction: Prediction) -> None:
    betas = schedules.linear(100)
    chain = Chain.of_betas(betas)
    t = torch.arange(100)
    x_t = seeded_randn_like(0)(torch.empty(100, 1, 2, 2))
    output = output_for(chain, prediction, 2.5, x_t, t)
    for clip_x0, x0 in ((True, 1.0), (False, 2.5)):
        diffusion = GaussianDiffusion(betas, prediction=prediction, clip_x0=clip_x0)
        mean, _, predicted = diffusion.p_mean_variance(output, x_t, t)
        # 1/√ᾱ amplifies a rounding error of ε at the last t, 1/c0 one of the mean at the middle t
        torch.testing.assert_close(predicted, torch.full_like(x_t, x0), rtol=2e-3, atol=0)
        expected = column(chain.c0) * x0 + column(chain.ct) * x_t
        torch.testing.assert_close(mean.double(), expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_p_sample_adds_eps_times_the_standard_deviation_except_at_t_0(variance: Variance) -> None:
    diffusion = GaussianDiffusion(
        schedules.linear(100), variance=variance, x0_mse=torch.full((100,), 0.1), prediction="x0"
    )
    t = torch.arange(100)
    x_t, output = torch.full((100, 1, 2, 2), 0.3), torch.full((100, 1, 2, 2), -0.2)
    eps = seeded_randn_like(0)(x_t)
    mean, var, _ = diffusion.p_mean_variance(output, x_t, t)
    moved = diffusion.p_sample(output, x_t, t, eps) - mean
    assert (moved[0] == 0).all()
    torch.testing.assert_close(moved[1:], (var.sqrt() * eps)[1:], rtol=1e-3, atol=1e-6)
