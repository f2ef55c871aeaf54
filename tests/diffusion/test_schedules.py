import math
from typing import Any

import pytest
import torch
from closed_forms import SCHEDULES, betas_of_any_schedule
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules


def test_linear_is_the_chapters_schedule_at_1000_steps() -> None:
    betas = schedules.linear(1000)
    expected = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    torch.testing.assert_close(betas, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_steps", [21, 50, 250, 4000])
def test_linear_rescales_both_ends_by_1000_over_t(num_steps: int) -> None:
    betas = schedules.linear(num_steps)
    assert betas[0].item() == pytest.approx(0.1 / num_steps, rel=1e-12)
    assert betas[-1].item() == pytest.approx(20 / num_steps, rel=1e-12)
    assert torch.diff(betas).std() < 1e-12


def test_linear_without_rescale_keeps_both_ends() -> None:
    betas = schedules.linear(10, beta_start=0.1, beta_end=0.5, rescale=False)
    assert betas[0].item() == pytest.approx(0.1)
    assert betas[-1].item() == pytest.approx(0.5)


@pytest.mark.parametrize("num_steps", [2, 10, 20])
def test_linear_with_too_few_steps_names_the_remedy(num_steps: int) -> None:
    with pytest.raises(ValueError, match="rescale=False"):
        schedules.linear(num_steps)


@pytest.mark.parametrize("s", [0.008, 0.02])
@pytest.mark.parametrize("num_steps", [10, 1000])
def test_cosine_alpha_bars_follow_their_formula(num_steps: int, s: float) -> None:
    alpha_bars = torch.cumprod(1 - schedules.cosine(num_steps, s=s), 0)

    def f(u: float) -> float:
        return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

    for t in range(num_steps - 5):  # max_beta clamps the last β
        assert alpha_bars[t].item() == pytest.approx(f((t + 1) / num_steps) / f(0), rel=1e-9)


@pytest.mark.parametrize("make", [schedules.cosine, schedules.sigmoid])
@pytest.mark.parametrize("max_beta", [0.999, 0.5])
def test_max_beta_clamps_beta_and_changes_nothing_else(make: Any, max_beta: float) -> None:
    betas, uncut = make(100, max_beta=max_beta), make(100, max_beta=1.0)
    assert betas[-1].item() == max_beta
    torch.testing.assert_close(betas, uncut.clamp(max=max_beta), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7)])
def test_sigmoid_alpha_bars_follow_their_formula(start: Any, end: float, tau: float) -> None:
    """Jabri et al. 2022: ᾱ falls from 1 to 0 along the logistic curve from start/τ to end/τ."""
    num_steps = 200
    alpha_bars = torch.cumprod(1 - schedules.sigmoid(num_steps, start=start, end=end, tau=tau), 0)

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x / tau))

    for t in range(num_steps - 1):
        u = (t + 1) / num_steps
        expected = (logistic(end) - logistic(start + u * (end - start))) / (logistic(end) - logistic(start))
        assert alpha_bars[t].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_steps", [2, 37, 1000])
@pytest.mark.parametrize(("log_snr_max", "log_snr_min"), [(13.3, -5.0), (8.0, -9.0)])
def test_log_snr_linear_is_a_straight_line_from_max_to_min(
    num_steps: int, log_snr_max: float, log_snr_min: float
) -> None:
    betas = schedules.log_snr_linear(num_steps, log_snr_max=log_snr_max, log_snr_min=log_snr_min)
    alpha_bars = torch.cumprod(1 - betas, 0)
    log_snr = torch.log(alpha_bars) - torch.log1p(-alpha_bars)
    for t in range(num_steps):
        expected = log_snr_max + (log_snr_min - log_snr_max) * t / (num_steps - 1)
        assert log_snr[t].item() == pytest.approx(expected, abs=1e-7)


@given(betas=betas_of_any_schedule(max_steps=400))
def test_every_schedule_gives_valid_betas(betas: Tensor) -> None:
    assert betas.dtype == torch.float64
    assert betas.ndim == 1
    assert (betas > 0).all()
    assert (betas <= 1).all()
    alpha_bars = torch.cumprod(1 - betas, 0)
    assert (torch.diff(alpha_bars) < 0).all()
    assert alpha_bars[-1] < 1e-2


@given(name=st.sampled_from(sorted(SCHEDULES)), num_steps=st.integers(21, 3000))
def test_every_schedule_gives_num_steps_betas(name: str, num_steps: int) -> None:
    assert SCHEDULES[name](num_steps).shape == (num_steps,)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_zero_steps_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        SCHEDULES[name](0)
