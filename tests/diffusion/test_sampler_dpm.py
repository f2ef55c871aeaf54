"""DPM-Solver++: its order of convergence on a mixture with an exact ODE solution, and its stochastic form."""

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
import torch
from closed_forms import Chain, GaussianData, MixtureData, response, seeded_randn_like
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
    """Return the distribution function of the mixture's marginal q(x_t) at x [B]."""
    std = (ab * MIXTURE.std**2 + 1 - ab).sqrt()
    return (MIXTURE.weights * ndtr((x[:, None] - ab.sqrt() * MIXTURE.means.flatten()) / std)).sum(dim=1)


def transported(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the exact solution of the probability-flow ODE that starts with x at ᾱ = `start`, at ᾱ = `end`.

    Trajectories in one dimension never cross, so each keeps its quantile. Bisection finds the point of that quantile.
    """
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
    return diffusion, Chain.of(diffusion.alpha_bars).network("x0", MIXTURE.best_x0)


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
    """Compared at t = 0, because the last step returns the predicted x_0 under every order."""
    diffusion, network = mixture_case(betas)
    x_T = torch.linspace(-2.5, 2.5, 21).double()
    exact = transported(x_T, diffusion.alpha_bars[-1], diffusion.alpha_bars[0])
    errors = []
    for intervals in (40, 80, 160):
        sampler = DPMSolverPP(intervals + 1, order, spacing)
        at_0, _ = last_two(sampler.iterate(network, diffusion, x_T.view(-1, 1, 1, 1)))
        errors.append((at_0.x_prev.flatten() - exact).abs().max().item())
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

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return prediction(log_snr[t]).float().view(-1, 1, 1, 1)

    steps = list(DPMSolverPP(12, 3, spacing).iterate(network, diffusion, torch.full((1, 1, 1, 1), 0.7)))
    for before, step, after in list(zip(steps[1:], steps[2:], steps[3:], strict=False))[:-1]:
        start, end = log_snr[step.t], log_snr[after.t]
        at = (start + end + (end - start) * nodes) / 2
        integral = (end - start) / 2 * (weights * at.exp() * prediction(at)).sum()
        sigma_start, sigma_end = (1 - ab[step.t]).sqrt(), (1 - ab[after.t]).sqrt()
        expected = sigma_end / sigma_start * before.x_prev.item() + sigma_end * integral
        assert step.x_prev.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_a_higher_order_has_a_smaller_error_at_20_steps_of_the_linear_schedule() -> None:
    diffusion, network = mixture_case(schedules.linear(1000))
    x_T = torch.linspace(-2.5, 2.5, 21).double()
    exact = transported(x_T, diffusion.alpha_bars[-1], torch.ones(()).double())
    errors = []
    for order in (1, 2, 3):
        x0 = DPMSolverPP(20, order, "log_snr")(network, diffusion, x_T.view(-1, 1, 1, 1))
        errors.append((x0.flatten() - exact).abs().max().item())
    assert errors[0] > 2.5 * errors[1]
    assert errors[1] > 1.3 * errors[2]


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing", "log_snr"])
@pytest.mark.parametrize("clip_x0", [True, False])
def test_order_1_is_ddim(clip_x0: bool, spacing: Spacing) -> None:
    check_equal(DPMSolverPP(7, 1, spacing), DDIM(7, spacing=spacing), clip_x0)


@pytest.mark.parametrize("clip_x0", [True, False])
def test_stochastic_order_1_is_ddim_with_eta_1_and_the_ancestral_chain(clip_x0: bool) -> None:
    for steps in (7, 60):
        check_equal(SDEDPMSolverPP(steps, 1), DDIM(steps, eta=1.0), clip_x0)
        check_equal(Ancestral(steps), DDIM(steps, eta=1.0), clip_x0)


def check_equal(sampler: Sampler, other: Sampler, clip_x0: bool) -> None:
    diffusion = GaussianDiffusion(schedules.linear(60), clip_x0=clip_x0)
    x_T = seeded_randn_like(0)(torch.empty(4, 1, 3, 3))

    def large_output(x_t: Tensor, t: Tensor) -> Tensor:
        return 0.6 * x_t + 0.5 * torch.sin(2 * x_t)

    pairs = zip(
        sampler.iterate(large_output, diffusion, x_T, seeded_randn_like(1)),
        other.iterate(large_output, diffusion, x_T, seeded_randn_like(1)),
        strict=True,
    )
    for one, two in pairs:
        assert one.t == two.t
        torch.testing.assert_close(one.x_prev, two.x_prev, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_the_moments_of_the_stochastic_solver_converge_at_its_order(order: int) -> None:
    """Compared at t = 0 with N(√ᾱ mean, ᾱ std² + 1 - ᾱ). The solver is affine, so `response` gives exact moments."""
    betas = schedules.log_snr_linear(321, log_snr_max=6.0, log_snr_min=-12.0)
    diffusion = GaussianDiffusion(betas, prediction="x0", clip_x0=False)
    network = Chain.of(diffusion.alpha_bars).network("x0", GAUSSIAN.best_x0)
    start, end = (GAUSSIAN.marginal(diffusion.alpha_bars[t]) for t in (-1, 0))
    errors = []
    for intervals in (40, 80, 160):
        *_, at_0, _ = response(SDEDPMSolverPP(intervals + 1, order, "log_snr"), diffusion, network)
        errors.append(at_0.variance(start[1].item()) / end[1].item() - 1)
        assert at_0.mean(start[0].item()) == pytest.approx(end[0].item(), rel=0.1)
    slopes = [math.log2(error / finer) for error, finer in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.3)
    assert abs(errors[-1]) < (0.1 if order == 1 else 0.005)


@pytest.mark.parametrize(("make", "trailing"), [(SDEDPMSolverPP, 0.902), (DPMSolverPP, 0.735)])
def test_karras_keeps_the_variance_of_strong_components(make: type[DPMSolverPP], trailing: float) -> None:
    """With standard deviations like those of the strongest components of MNIST, 4.5, and of larger images."""

    def ratio(betas: Tensor, std: float, steps: int, spacing: Spacing) -> float:
        data = GaussianData(mean=0.0, std=std)
        diffusion = GaussianDiffusion(betas, prediction="x0", clip_x0=False)
        network = Chain.of(diffusion.alpha_bars).network("x0", data.best_x0)
        return response(make(steps, 2, spacing), diffusion, network)[-1].variance(1.0) / std**2

    sigmoid, linear = schedules.sigmoid(1000, start=0.0), schedules.linear(1000)
    assert ratio(sigmoid, 4.5, 20, "trailing") == pytest.approx(trailing, abs=0.01)
    assert [ratio(sigmoid, std, 20, "karras") for std in (4.5, 2.0)] == pytest.approx([1, 1], abs=0.05)
    assert [ratio(linear, std, 20, "karras") for std in (15.0, 4.5, 2.0)] == pytest.approx([1, 1, 1], abs=0.08)
    assert ratio(linear, 15.0, 250, "karras") == pytest.approx(1, abs=0.02)  # more steps are better


@pytest.mark.parametrize("sampler", [DPMSolverPP(8, 2), DPMSolverPP(8, 3), SDEDPMSolverPP(8, 2)])
@pytest.mark.parametrize(
    "betas", [schedules.linear(50), schedules.cosine(50, max_beta=1.0)], ids=["linear", "zero_snr"]
)
def test_one_image_is_reproduced(betas: Tensor, sampler: Sampler) -> None:
    """The predicted x_0 is exact, so every order ends at it, also with zero terminal SNR."""
    image = torch.linspace(-1, 1, 9).view(1, 1, 3, 3)
    diffusion = GaussianDiffusion(betas, prediction="x0")
    x_T = seeded_randn_like(0)(torch.empty(2, 1, 3, 3))
    steps = list(sampler.iterate(lambda x_t, t: image.expand_as(x_t), diffusion, x_T, seeded_randn_like(1)))
    torch.testing.assert_close(steps[-1].x_prev, image.expand(2, -1, -1, -1))
    if not isinstance(sampler, SDEDPMSolverPP):
        alpha_bars = diffusion.alpha_bars[[step.t for step in steps]]
        eps = (x_T - alpha_bars[0].sqrt() * image) / (1 - alpha_bars[0]).sqrt()
        for step, ab in zip(steps, alpha_bars[1:], strict=False):
            expected = ab.sqrt() * image + (1 - ab).sqrt() * eps
            torch.testing.assert_close(step.x_prev, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("make", "order"), [(DPMSolverPP, 0), (DPMSolverPP, 4), (SDEDPMSolverPP, 3)])
def test_an_unknown_order_is_refused(make: type[DPMSolverPP], order: int) -> None:
    with pytest.raises(ValueError, match=f"{make.__name__}'s order is 1 to .*, not {order}"):
        make(8, order)
