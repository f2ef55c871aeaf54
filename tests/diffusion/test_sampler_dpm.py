"""DPM-Solver++: its order on a mixture whose probability-flow ODE is solved in closed form, and its stochastic form."""

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
import torch
from closed_forms import Chain, GaussianData, MixtureData, response, seeded_noise
from torch import Tensor
from torch.special import ndtr

from ddpm.diffusion import schedules
from ddpm.diffusion.process import GaussianDiffusion, Network
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SamplerStep, SDEDPMSolverPP, Spacing

MIXTURE = MixtureData(
    weights=torch.tensor([0.3, 0.7]).double(),
    means=torch.tensor([-0.6, 0.5]).double().view(1, 1, 1, 2),
    std=0.3,
)
GAUSSIAN = GaussianData(mean=0.3, std=0.4)


def cdf(x: Tensor, ab: Tensor) -> Tensor:
    """Of the mixture's marginal q(x_t); x [B]."""
    std = (ab * MIXTURE.std**2 + 1 - ab).sqrt()
    return (MIXTURE.weights * ndtr((x[:, None] - ab.sqrt() * MIXTURE.means.flatten()) / std)).sum(dim=1)


def transported(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Where the probability-flow ODE brings x from the marginal of ᾱ `start` to that of `end`: trajectories in one
    dimension never cross, so each keeps its quantile, and the quantile is found by bisection."""
    quantile = cdf(x, start)
    low, high = torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, end) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def last_two(steps: Iterable[SamplerStep]) -> tuple[SamplerStep, SamplerStep]:
    *_, before, last = steps
    return before, last


def mixture_case(betas: Tensor) -> tuple[GaussianDiffusion, Network]:
    diffusion = GaussianDiffusion(betas, prediction="x0", clip_x0=False)
    return diffusion, Chain.of(diffusion.alpha_bars).denoiser("x0", MIXTURE.best_x0)


EVEN = schedules.log_snr_linear(1281, log_snr_max=6.0, log_snr_min=-6.0)


@pytest.mark.parametrize(
    ("betas", "spacing", "order"),
    [
        (EVEN, "log_snr", 1),
        (EVEN, "log_snr", 2),
        (EVEN, "log_snr", 3),
        (schedules.cosine(1281), "uniform", 1),
        (schedules.cosine(1281), "uniform", 2),
    ],
    ids=["even-1", "even-2", "even-3", "uneven-1", "uneven-2"],
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(betas: Tensor, spacing: Spacing, order: int) -> None:
    """At t = 0, before the step to x_0, which is the x_0 prediction whatever the order."""
    diffusion, denoise = mixture_case(betas)
    x_T = torch.linspace(-2.5, 2.5, 21).double()
    exact = transported(x_T, diffusion.alpha_bars[-1], diffusion.alpha_bars[0])
    errors = []
    for intervals in (40, 80, 160):
        sampler = DPMSolverPP(intervals + 1, order, spacing)
        at_0, _ = last_two(sampler.iterate(denoise, diffusion, x_T.view(-1, 1, 1, 1)))
        errors.append((at_0.x_t.flatten() - exact).abs().max().item())
    slopes = [math.log2(error / finer) for error, finer in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.2)


@pytest.mark.parametrize("spacing", ["uniform", "trailing", "quadratic", "log_snr"])
def test_order_3_is_exact_where_the_prediction_is_quadratic_in_log_snr(spacing: Spacing) -> None:
    """The exact step is x_t = σ_t/σ_s x_s + σ_t ∫ e^λ x_0(λ) dλ (Lu et al. 2022b, equation 8)."""
    diffusion = GaussianDiffusion(schedules.linear(200), prediction="x0", clip_x0=False)
    ab = diffusion.alpha_bars
    log_snr = (ab / (1 - ab)).log() / 2
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(30))

    def prediction(at: Tensor) -> Tensor:
        return 0.3 - 0.2 * at + 0.1 * at**2

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return prediction(log_snr[t]).float().view(-1, 1, 1, 1)

    steps = list(DPMSolverPP(12, 3, spacing).iterate(denoise, diffusion, torch.full((1, 1, 1, 1), 0.7)))
    for before, step, after in list(zip(steps[1:], steps[2:], steps[3:], strict=False))[:-1]:
        start, end = log_snr[step.t], log_snr[after.t]
        at = (start + end + (end - start) * nodes) / 2
        integral = (end - start) / 2 * (weights * at.exp() * prediction(at)).sum()
        sigma_start, sigma_end = (1 - ab[step.t]).sqrt(), (1 - ab[after.t]).sqrt()
        expected = sigma_end / sigma_start * before.x_t.item() + sigma_end * integral
        assert step.x_t.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_a_higher_order_ends_nearer_in_few_steps_of_a_usual_chain() -> None:
    diffusion, denoise = mixture_case(schedules.linear(1000))
    x_T = torch.linspace(-2.5, 2.5, 21).double()
    exact = transported(x_T, diffusion.alpha_bars[-1], torch.ones(()).double())
    errors = []
    for order in (1, 2, 3):
        x0 = DPMSolverPP(20, order, "log_snr")(denoise, diffusion, x_T.view(-1, 1, 1, 1))
        errors.append((x0.flatten() - exact).abs().max().item())
    assert errors[0] > 2.5 * errors[1]
    assert errors[1] > 1.3 * errors[2]


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing", "log_snr"])
@pytest.mark.parametrize("clip_x0", [True, False])
def test_order_1_is_ddim(clip_x0: bool, spacing: Spacing) -> None:
    check_equal(DPMSolverPP(7, 1, spacing), DDIM(7, spacing=spacing), clip_x0)


@pytest.mark.parametrize("clip_x0", [True, False])
def test_stochastic_order_1_is_ddim_with_eta_1_and_the_ancestral_chain(clip_x0: bool) -> None:
    check_equal(SDEDPMSolverPP(7, 1), DDIM(7, eta=1.0), clip_x0)
    check_equal(SDEDPMSolverPP(7, 1), Ancestral(7), clip_x0)


def check_equal(sampler: Sampler, other: Sampler, clip_x0: bool) -> None:
    diffusion = GaussianDiffusion(schedules.linear(60), clip_x0=clip_x0)
    x_T = seeded_noise(0)(torch.empty(4, 1, 3, 3))

    def bold(x_t: Tensor, t: Tensor) -> Tensor:
        return 0.6 * x_t + 0.5 * torch.sin(2 * x_t)

    pairs = zip(
        sampler.iterate(bold, diffusion, x_T, seeded_noise(1)),
        other.iterate(bold, diffusion, x_T, seeded_noise(1)),
        strict=True,
    )
    for one, two in pairs:
        assert one.t == two.t
        torch.testing.assert_close(one.x_t, two.x_t, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_the_stochastic_solver_reaches_the_moments_of_gaussian_data_at_its_order(order: int) -> None:
    """At t = 0, where the marginal is N(√ᾱ mean, ᾱ std² + 1 - ᾱ); the solver is affine, so its moments are exact."""
    betas = schedules.log_snr_linear(321, log_snr_max=6.0, log_snr_min=-12.0)
    diffusion = GaussianDiffusion(betas, prediction="x0", clip_x0=False)
    denoise = Chain.of(diffusion.alpha_bars).denoiser("x0", GAUSSIAN.best_x0)
    start, end = (GAUSSIAN.marginal(diffusion.alpha_bars[t]) for t in (-1, 0))
    errors = []
    for intervals in (40, 80, 160):
        *_, at_0, _ = response(SDEDPMSolverPP(intervals + 1, order, "log_snr"), diffusion, denoise)
        errors.append(at_0.variance(start[1].item()) / end[1].item() - 1)
        assert at_0.mean(start[0].item()) == pytest.approx(end[0].item(), rel=0.1)
    slopes = [math.log2(error / finer) for error, finer in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.3)
    assert abs(errors[-1]) < (0.1 if order == 1 else 0.005)


@pytest.mark.parametrize("sampler", [DPMSolverPP(8, 2), DPMSolverPP(8, 3), SDEDPMSolverPP(8, 2)])
@pytest.mark.parametrize(
    "betas", [schedules.linear(50), schedules.cosine(50, max_beta=1.0)], ids=["linear", "zero_snr"]
)
def test_one_image_is_reproduced(betas: Tensor, sampler: Sampler) -> None:
    """x_0 is predicted without error, so every order ends at it, also from a chain that keeps no signal."""
    image = torch.linspace(-1, 1, 9).view(1, 1, 3, 3)
    diffusion = GaussianDiffusion(betas, prediction="x0")
    x_T = seeded_noise(0)(torch.empty(2, 1, 3, 3))
    steps = list(sampler.iterate(lambda x_t, t: image.expand_as(x_t), diffusion, x_T, seeded_noise(1)))
    torch.testing.assert_close(steps[-1].x_t, image.expand(2, -1, -1, -1))
    if not isinstance(sampler, SDEDPMSolverPP):
        kept = diffusion.alpha_bars[[step.t for step in steps]]
        noise = (x_T - kept[0].sqrt() * image) / (1 - kept[0]).sqrt()
        for step, ab in zip(steps, kept[1:], strict=False):
            expected = ab.sqrt() * image + (1 - ab).sqrt() * noise
            torch.testing.assert_close(step.x_t, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("make", "order"), [(DPMSolverPP, 0), (DPMSolverPP, 4), (SDEDPMSolverPP, 3)])
def test_an_order_that_is_not_there_is_refused(make: type[DPMSolverPP], order: int) -> None:
    with pytest.raises(ValueError, match=f"{make.__name__}'s order is 1 to .*, not {order}"):
        make(8, order)
