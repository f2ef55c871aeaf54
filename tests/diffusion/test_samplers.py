"""Timesteps, noise, clipping, and the iterator."""

import math
from typing import Any

import pytest
import torch
from closed_forms import Chain, GaussianData, Schedule, called_timesteps, seeded_randn_like
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.process import GaussianDiffusion
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SDEDPMSolverPP, Spacing

SPACINGS: tuple[Spacing, ...] = ("uniform", "trailing", "quadratic", "log_snr", "karras")


def ideal_steps(spacing: str, num_steps: int, steps: int) -> list[float]:
    last = num_steps - 1
    if spacing == "trailing":
        return [(i + 1) * num_steps / steps - 1 for i in range(steps)]
    fractions = [i / (steps - 1) for i in range(steps)]
    return [last * (u if spacing == "uniform" else u**2) for u in fractions]


@given(
    num_steps=st.integers(21, 1000),
    share=st.floats(0, 1),
    spacing=st.sampled_from(["uniform", "trailing", "quadratic"]),
    make=st.sampled_from([DDIM, Ancestral, DPMSolverPP]),
)
def test_timesteps_are_the_rounded_formula(num_steps: int, share: float, spacing: Spacing, make: Any) -> None:
    # more than about √T quadratic timesteps repeat near 0
    most = int(math.sqrt(num_steps)) if spacing == "quadratic" else num_steps
    steps = 2 + int(share * (most - 2))
    diffusion = GaussianDiffusion(schedules.linear(num_steps))
    timesteps = make(steps=steps, spacing=spacing).timesteps(diffusion)
    assert timesteps.dtype == torch.int64
    assert timesteps[-1] == num_steps - 1
    assert (timesteps.diff() > 0).all()
    for t, ideal in zip(timesteps.tolist(), ideal_steps(spacing, num_steps, steps), strict=True):
        assert abs(t - ideal) <= 0.5 + 1e-9


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [DDIM, Ancestral, DPMSolverPP, SDEDPMSolverPP])
def test_the_network_is_called_at_the_original_timesteps_from_last_to_first(make: Any, spacing: Spacing) -> None:
    diffusion = GaussianDiffusion(schedules.linear(200), prediction="x0")
    called = called_timesteps(make(steps=8, spacing=spacing), diffusion)
    assert len(called) == 8
    assert called[0] == 199
    assert called == sorted(set(called), reverse=True)
    if spacing not in ("log_snr", "karras"):
        for t, ideal in zip(reversed(called), ideal_steps(spacing, 200, 8), strict=True):
            assert abs(t - ideal) <= 0.5 + 1e-9


@pytest.mark.parametrize("make_betas", [schedules.linear, schedules.log_snr_linear])
def test_log_snr_steps_are_even_in_log_snr(make_betas: Schedule) -> None:
    diffusion = GaussianDiffusion(make_betas(1000), prediction="x0")
    called = called_timesteps(DDIM(12, spacing="log_snr"), diffusion)
    assert called[0] == 999
    assert called[-1] == 0
    ab = diffusion.alpha_bars
    log_snr = torch.log(ab / (1 - ab))
    ideal = torch.linspace(log_snr[-1].item(), log_snr[0].item(), 12, dtype=torch.float64)
    for t, wanted in zip(called[1:-1], ideal[1:-1], strict=True):
        # between the neighbours of the selected timestep
        assert log_snr[t + 1] <= wanted <= log_snr[t - 1]


@pytest.mark.parametrize(
    ("betas", "highest"),
    [(schedules.sigmoid(1000, start=0.0), 20), (schedules.log_snr_linear(1000), 12.18), (schedules.linear(1000), 96.2)],
    ids=["σ=20", "T-1", "trailing"],
)
def test_karras_steps_are_even_in_the_seventh_root_of_sigma(betas: Tensor, highest: float) -> None:
    """From σ = 20; from T-1 if its σ is smaller; from the second highest timestep of `trailing` if its σ is larger."""
    timesteps = DDIM(20, spacing="karras").timesteps(GaussianDiffusion(betas, prediction="v")).tolist()
    ab = torch.cumprod(1 - betas, 0)
    sigma = ((1 - ab) / ab).sqrt()
    assert timesteps[0] == 49
    assert timesteps[-1] == 999
    ramp = timesteps if highest == 12.18 else timesteps[:-1]
    for i, t in enumerate(ramp):
        part = i / (len(ramp) - 1)
        wanted = ((1 - part) * sigma[49].item() ** (1 / 7) + part * highest ** (1 / 7)) ** 7
        assert sigma[max(t - 1, 0)] < wanted * 1.001  # between the neighbours of the selected timestep
        assert sigma[min(t + 1, 999)] > wanted * 0.999


@given(num_steps=st.integers(21, 300), share=st.floats(0, 1), schedule=st.sampled_from(["linear", "cosine", "sigmoid"]))
def test_karras_gives_distinct_steps_for_every_number_of_steps(num_steps: int, share: float, schedule: str) -> None:
    steps = 1 + int(share * (num_steps - 1))
    diffusion = GaussianDiffusion(getattr(schedules, schedule)(num_steps), prediction="v")
    timesteps = DDIM(steps, spacing="karras").timesteps(diffusion)
    assert len(timesteps) == steps
    assert timesteps[0] >= 0
    assert timesteps[-1] == num_steps - 1
    assert (timesteps.diff() > 0).all()


@pytest.mark.parametrize("make", [DDIM, Ancestral])
@pytest.mark.parametrize("spacing", ["uniform", "trailing", "karras"])
def test_t_steps_are_all_timesteps(make: Any, spacing: Spacing) -> None:
    diffusion = GaussianDiffusion(schedules.linear(73))
    assert make(steps=73, spacing=spacing).timesteps(diffusion).tolist() == list(range(73))


def test_ancestral_uses_every_timestep_by_default() -> None:
    diffusion = GaussianDiffusion(schedules.linear(60), prediction="x0")
    assert called_timesteps(Ancestral(), diffusion) == list(range(59, -1, -1))


@pytest.mark.parametrize(("spacing", "steps"), [("quadratic", 100), ("uniform", 101), ("trailing", 101)])
@pytest.mark.parametrize("make", [DDIM, Ancestral])
def test_repeated_steps_are_refused(make: Any, spacing: Spacing, steps: int) -> None:
    diffusion = GaussianDiffusion(schedules.linear(100), prediction="x0")
    with pytest.raises(ValueError, match=r"step"):
        called_timesteps(make(steps=steps, spacing=spacing), diffusion)


def test_repeated_log_snr_steps_are_refused() -> None:
    diffusion = GaussianDiffusion(schedules.cosine(100), prediction="x0")
    with pytest.raises(ValueError, match=r"step"):
        called_timesteps(DDIM(100, spacing="log_snr"), diffusion)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("arguments", [{"spacing": "random"}, {"steps": 0}, {"steps": -3}, {"eta": -0.1}])
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    diffusion = GaussianDiffusion(schedules.linear(100), prediction="x0")
    with pytest.raises(ValueError, match=r"\w"):
        called_timesteps(DDIM(**{"steps": 5} | arguments), diffusion)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_single_step_uses_the_noisiest_timestep(spacing: Spacing) -> None:
    diffusion = GaussianDiffusion(schedules.linear(100), prediction="x0")
    assert called_timesteps(DDIM(1, spacing=spacing), diffusion) == [99]
    assert called_timesteps(Ancestral(1, spacing=spacing), diffusion) == [99]


@pytest.mark.parametrize(
    ("sampler", "stochastic"),
    [
        (Ancestral(), True),
        (Ancestral(6), True),
        (Ancestral(6, spacing="trailing"), True),
        (DDIM(6, eta=1.0), True),
        (DDIM(6, eta=0.3), True),
        (DDIM(6), False),
        (DDIM(30), False),
        (DPMSolverPP(6, 2), False),
        (SDEDPMSolverPP(6, 2), True),
        (SDEDPMSolverPP(6, 2, "trailing"), True),
    ],
)
def test_stochastic_samplers_draw_noise_once_per_step_except_in_the_last(sampler: Sampler, stochastic: bool) -> None:
    diffusion = GaussianDiffusion(schedules.linear(30), prediction="x0")
    events = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        events.append("network")
        return torch.zeros_like(x_t)

    def randn_like(x: Tensor) -> Tensor:
        assert x.shape == (2, 1, 4, 4)
        events.append("noise")
        return torch.randn_like(x)

    sampler(network, diffusion, torch.zeros(2, 1, 4, 4), randn_like)
    steps = events.count("network")
    assert events == (["network", "noise"] * (steps - 1) + ["network"] if stochastic else ["network"] * steps)


def test_ddim_recomputes_epsilon_from_the_clipped_x0() -> None:
    diffusion = GaussianDiffusion(schedules.linear(60))
    sampler = DDIM(10)
    x = torch.full((1, 1, 1, 1), 2.0)
    steps = list(sampler.iterate(lambda x_t, t: -torch.ones_like(x_t), diffusion, x, seeded_randn_like(0)))
    ab = diffusion.alpha_bars
    timesteps = [int(step.t) for step in steps]
    previous = [ab[t].item() for t in timesteps[1:]] + [1.0]
    expected = 2.0
    for step, t, ab_previous in zip(steps, timesteps, previous, strict=True):
        now = ab[t].item()
        x0 = max(-1.0, min(1.0, (expected + (1 - now) ** 0.5) / now**0.5))
        eps = (expected - now**0.5 * x0) / (1 - now) ** 0.5
        expected = ab_previous**0.5 * x0 + (1 - ab_previous) ** 0.5 * eps
        assert step.x0.item() == pytest.approx(x0, abs=1e-4)
        assert step.x_prev.item() == pytest.approx(expected, abs=1e-4)
    assert steps[0].x0.item() == 1.0


@pytest.mark.parametrize(
    "sampler", [Ancestral(), Ancestral(9), DDIM(9), DDIM(9, eta=0.5), DPMSolverPP(9, 3), SDEDPMSolverPP(9)]
)
def test_a_clipped_chain_ends_inside_the_image_range(sampler: Sampler) -> None:
    diffusion = GaussianDiffusion(schedules.linear(60))
    randn_like = seeded_randn_like(0)
    x0 = sampler(lambda x_t, t: -3 * torch.ones_like(x_t), diffusion, randn_like(torch.empty(4, 1, 3, 3)), randn_like)
    assert x0.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("sampler", [Ancestral(8), DDIM(8), DDIM(8, eta=1.0), DPMSolverPP(8), SDEDPMSolverPP(8)])
def test_iterate_yields_the_image_after_each_step(sampler: Sampler) -> None:
    data = GaussianData(mean=0.3, std=0.4)
    diffusion = GaussianDiffusion(schedules.linear(50), clip_x0=False)
    network = Chain.of(diffusion.alpha_bars).network("epsilon", data.best_x0)
    x_T = seeded_randn_like(0)(torch.empty(2, 1, 3, 3))
    seen = []

    def recording(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((int(t[0]), x_t.clone()))
        return network(x_t, t)

    steps = list(sampler.iterate(recording, diffusion, x_T, seeded_randn_like(1)))
    assert [int(step.t) for step in steps] == [t for t, _ in seen]
    torch.testing.assert_close(seen[0][1], x_T)
    for step, (_, input_of_call) in zip(steps, seen[1:], strict=False):
        torch.testing.assert_close(step.x_prev, input_of_call)
    for step, (t, input_of_call) in zip(steps, seen, strict=True):
        ab = diffusion.alpha_bars[t]
        torch.testing.assert_close(step.x0.double(), data.best_x0(input_of_call.double(), ab), rtol=1e-3, atol=1e-3)
    result = sampler(network, diffusion, x_T, seeded_randn_like(1))
    torch.testing.assert_close(result, steps[-1].x_prev)


def test_sampling_keeps_shape_and_dtype_and_does_not_change_its_input() -> None:
    diffusion = GaussianDiffusion(schedules.linear(30), prediction="x0")
    x_T = seeded_randn_like(0)(torch.empty(2, 3, 4, 5))
    before = x_T.clone()
    for sampler in (Ancestral(), DDIM(5), DDIM(5, eta=1.0), DPMSolverPP(5), SDEDPMSolverPP(5)):
        x0 = sampler(lambda x_t, t: torch.zeros_like(x_t), diffusion, x_T)
        assert x0.shape == x_T.shape
        assert x0.dtype == torch.float32
        assert torch.equal(x_T, before)
