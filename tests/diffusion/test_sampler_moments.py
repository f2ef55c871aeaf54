"""Data whose optimal denoiser is known: mean and variance of the samples then have a closed form."""

from typing import Any

import pytest
import torch
from closed_forms import (
    PREDICTIONS,
    VARIANCES,
    Chain,
    GaussianData,
    MixtureData,
    betas_of_any_schedule,
    called_timesteps,
    response,
    seeded_randn_like,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion, Network, Variance
from ddpm.diffusion.samplers import DDIM, Ancestral, Sampler, Spacing

DATA = GaussianData(mean=0.3, std=0.4)


def gaussian_case(
    betas: Tensor, prediction: Prediction = "epsilon", variance: Variance = "small"
) -> tuple[Chain, GaussianDiffusion, Network]:
    chain = Chain.of_betas(betas)
    diffusion = GaussianDiffusion(
        betas,
        prediction=prediction,
        variance=variance,
        x0_mse=DATA.x0_variance(chain.alpha_bars),
        clip_x0=False,
    )
    return chain, diffusion, chain.network(prediction, DATA.best_x0)


def image_case(
    betas: Tensor, image: Tensor, prediction: Prediction = "epsilon", **options: Any
) -> tuple[Chain, GaussianDiffusion, Network]:
    chain = Chain.of_betas(betas)
    network = chain.network(prediction, lambda x, ab: image.double().expand_as(x))
    return chain, GaussianDiffusion(betas, prediction=prediction, **options), network


def expected_moments(
    data: GaussianData, chain: Chain, eta: float | None, sigma2: Tensor, start: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return mean and variance after each step, the noisiest first, by recursion over the chain of kept timesteps.

    The sampler is DDIM with `eta`, or with eta=None the ancestral sampler with the variances `sigma2`.
    """
    mean, variance = start
    after = []
    for i in reversed(range(len(chain.alpha_bars))):
        ab = chain.alpha_bars[i].item()
        previous = chain.alpha_bars[i - 1].item() if i else 1.0
        gain = data.gain(chain.alpha_bars[i]).item()
        shift = data.mean * (1 - gain * ab**0.5)  # E[x_0|x_t] = gain·x_t + shift
        if eta is None:
            to_x0, to_x = chain.c0[i].item(), chain.ct[i].item()
            added = sigma2[i].item() if i else 0.0
        else:
            added = eta**2 * (1 - previous) / (1 - ab) * (1 - ab / previous)
            to_eps = (max(1 - previous - added, 0.0)) ** 0.5
            to_x = to_eps / (1 - ab) ** 0.5
            to_x0 = previous**0.5 - to_x * ab**0.5
        slope = to_x0 * gain + to_x
        mean = slope * mean + to_x0 * shift
        variance = slope**2 * variance + added
        after.append((mean, variance))
    return after


def check_moments(
    sampler: Sampler,
    betas: Tensor,
    *,
    eta: float | None,
    prediction: Prediction = "epsilon",
    variance: Variance = "small",
) -> None:
    whole, diffusion, network = gaussian_case(betas, prediction, variance)
    timesteps = sorted(called_timesteps(sampler, diffusion))
    chain = Chain.of(whole.alpha_bars[timesteps])
    sigma2 = chain.reverse_variance(variance, DATA.x0_variance(chain.alpha_bars))
    start = (0.1, 0.9)
    expected = expected_moments(DATA, chain, eta, sigma2, start)
    measured = response(sampler, diffusion, network)
    assert len(measured) == len(expected)
    for answer, (mean, var) in zip(measured, expected, strict=True):
        assert answer.mean(start[0]) == pytest.approx(mean, rel=1e-3, abs=1e-4)
        assert answer.variance(start[1]) == pytest.approx(var, rel=2e-3)


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ancestral_moments_of_gaussian_data(prediction: Prediction, variance: Variance, steps: int) -> None:
    check_moments(Ancestral(steps), schedules.linear(60), eta=None, prediction=prediction, variance=variance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [60, 7])
def test_ddim_moments_of_gaussian_data(prediction: Prediction, eta: float, steps: int) -> None:
    check_moments(DDIM(steps, eta=eta), schedules.linear(60), eta=eta, prediction=prediction)


@given(
    betas=betas_of_any_schedule(60),
    steps=st.integers(2, 21),
    spacing=st.sampled_from(["uniform", "trailing"]),
    eta=st.sampled_from([None, 0.0, 0.7, 1.0]),
    prediction=st.sampled_from(["epsilon", "x0", "v"]),
)
def test_moments_of_gaussian_data_for_any_schedule(
    betas: Tensor, steps: int, spacing: Spacing, eta: float | None, prediction: Prediction
) -> None:
    if prediction == "epsilon" and torch.cumprod(1 - betas, 0)[-1] < 1e-6:
        prediction = "v"  # with so little signal, ε in float32 does not determine x0
    sampler = Ancestral(steps, spacing=spacing) if eta is None else DDIM(steps, eta=eta, spacing=spacing)
    check_moments(sampler, betas, eta=eta, prediction=prediction)


@pytest.mark.parametrize("steps", [None, 9])
def test_the_optimal_variance_reproduces_every_marginal_of_gaussian_data(steps: int) -> None:
    """p(x_{t-1}|x_t) is then q(x_{t-1}|x_t), so every latent has its exact marginal, and the result is E[x_0|x_1]."""
    whole, diffusion, network = gaussian_case(schedules.linear(100), variance="optimal")
    sampler = Ancestral(steps)
    timesteps = sorted(called_timesteps(sampler, diffusion))
    start_mean, start_variance = (moment.item() for moment in DATA.marginal(whole.alpha_bars[-1]))
    *latents, result = response(sampler, diffusion, network)
    for t, answer in zip(reversed(timesteps[:-1]), latents, strict=True):
        mean, variance = DATA.marginal(whole.alpha_bars[t])
        assert answer.mean(start_mean) == pytest.approx(mean.item(), abs=1e-4)
        assert answer.variance(start_variance) == pytest.approx(variance.item(), rel=1e-3)
    assert result.mean(start_mean) == pytest.approx(DATA.mean, abs=1e-4)
    left = DATA.std**2 - DATA.x0_variance(whole.alpha_bars[0]).item()
    assert result.variance(start_variance) == pytest.approx(left, rel=1e-3)


def test_sampling_with_the_chapters_schedule_reproduces_gaussian_data() -> None:
    _, diffusion, network = gaussian_case(schedules.linear(1000))
    randn_like = seeded_randn_like(0)
    x0 = Ancestral()(network, diffusion, randn_like(torch.empty(8, 1, 32, 32)), randn_like)
    assert x0.mean().item() == pytest.approx(DATA.mean, abs=4 * DATA.std / 8192**0.5)
    # four standard errors of 8192 draws, and half a percent for the finite number of steps
    assert x0.std().item() == pytest.approx(DATA.std, rel=4 / (2 * 8192) ** 0.5 + 0.005)


@pytest.mark.parametrize("spacing", ["uniform", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 11, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_single_image_is_sampled_exactly(prediction: Prediction, steps: int, spacing: Spacing) -> None:
    image = seeded_randn_like(0)(torch.empty(1, 1, 4, 4)).clamp(-1, 1)
    _, diffusion, network = image_case(schedules.linear(50), image, prediction)
    for sampler in (
        Ancestral(steps, spacing=spacing),
        DDIM(steps, spacing=spacing),
        DDIM(steps, eta=0.6, spacing=spacing),
    ):
        x_T = seeded_randn_like(1)(torch.empty(3, 1, 4, 4))
        x0 = sampler(network, diffusion, x_T, seeded_randn_like(2))
        torch.testing.assert_close(x0, image.expand_as(x0), rtol=0, atol=2e-4)


@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral(9), DDIM(40), DDIM(9), DDIM(9, eta=0.5), DDIM(9, eta=1.0)])
def test_the_chain_of_a_single_image_keeps_its_marginals(sampler: Sampler) -> None:
    """If x_T ~ q(x_T|x_0) and the predicted x0 is exact, every latent has the distribution N(√ᾱ x_0, 1-ᾱ)."""
    chain, diffusion, network = image_case(schedules.linear(40), torch.tensor(0.5), clip_x0=False)
    timesteps = sorted(called_timesteps(sampler, diffusion))
    ab = chain.alpha_bars
    answers = response(sampler, diffusion, network)
    for t, answer in zip(reversed(timesteps[:-1]), answers[:-1], strict=True):
        assert answer.mean(0.5 * ab[-1].item() ** 0.5) == pytest.approx(0.5 * ab[t].item() ** 0.5, abs=1e-4)
        assert answer.variance(1 - ab[-1].item()) == pytest.approx(1 - ab[t].item(), rel=1e-3)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_samples_gaussian_data(prediction: Prediction) -> None:
    betas = schedules.linear(60)
    betas[-1] = 1.0
    for sampler, eta in ((Ancestral(), None), (DDIM(60), 0.0), (Ancestral(9), None), (DDIM(9, eta=1.0), 1.0)):
        check_moments(sampler, betas, eta=eta, prediction=prediction)


ONE_D = MixtureData(torch.tensor([0.3, 0.7]).double(), torch.tensor([-0.6, 0.5]).double().view(1, 1, 1, 2), std=0.05)
TWO_D = MixtureData(
    torch.tensor([0.2, 0.3, 0.5]).double(),
    torch.tensor([[-0.6, 0.6, 0.0], [-0.5, -0.5, 0.7]]).double().view(2, 1, 1, 3),
    std=0.05,
)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), Ancestral(60), DDIM(60), DDIM(60, eta=0.5)])
@pytest.mark.parametrize("data", [ONE_D, TWO_D], ids=["1d", "2d"])
def test_a_mixture_keeps_its_modes_and_weights(data: Any, sampler: Sampler) -> None:
    betas = schedules.linear(300)
    diffusion = GaussianDiffusion(betas, prediction="v")
    chain = Chain.of_betas(betas)
    network = chain.network("v", data.best_x0)
    randn_like = seeded_randn_like(0)
    x_T = randn_like(torch.empty(4000, data.means.shape[0], 1, 1))
    x0 = sampler(network, diffusion, x_T, randn_like).double()
    distance = x0.unsqueeze(-1) - data.means
    nearest = (distance**2).sum(dim=(1, 2, 3)).argmin(-1)
    for k, weight in enumerate(data.weights.tolist()):
        mine = distance[nearest == k][..., k]
        # four standard errors, and 1.5 percent for the finite number of steps
        slack = 4 * (weight * (1 - weight) / 4000) ** 0.5 + 0.015
        assert len(mine) / 4000 == pytest.approx(weight, abs=slack)
        assert mine.mean(dim=0).abs().max() < 0.01
        assert 0.5 * data.std < mine.std().item() < 1.05 * data.std
        if sampler.steps is None:
            # A mode far from the others is Gaussian data. The samples are narrower, by the recursion's prediction.
            eta = 0.0 if isinstance(sampler, DDIM) else None
            mode = GaussianData(0.0, data.std)
            width = expected_moments(mode, chain, eta, chain.variance, (0.0, 1.0))[-1][1] ** 0.5
            assert mine.std().item() == pytest.approx(width, rel=0.08)
