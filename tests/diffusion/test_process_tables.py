"""The type and place of the coefficients, bfloat16, and the arguments that are refused."""

import warnings
from typing import Any

import pytest
import torch
from closed_forms import seeded_randn_like
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion


def test_tables_are_float64_on_the_cpu_and_buffers_float32_and_unsaved() -> None:
    betas = schedules.linear(1000)
    diffusion = GaussianDiffusion(betas, variance="optimal", x0_mse=torch.linspace(0, 0.1, 1000))
    torch.testing.assert_close(diffusion.alpha_bars, torch.cumprod(1 - betas, 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(diffusion.betas, betas, rtol=0, atol=0)
    assert diffusion.num_steps == 1000
    assert diffusion.state_dict() == {}
    assert not list(diffusion.parameters())
    buffers = list(diffusion.buffers())
    assert buffers
    assert all(buffer.dtype == torch.float32 for buffer in buffers)
    diffusion.to("meta")
    assert all(buffer.device.type == "meta" for buffer in diffusion.buffers())
    for table in (diffusion.betas, diffusion.alpha_bars):
        assert table.dtype == torch.float64
        assert table.device.type == "cpu"


def test_a_half_precision_module_keeps_its_float64_tables() -> None:
    diffusion = GaussianDiffusion(schedules.linear(100)).to(torch.bfloat16)
    assert diffusion.betas.dtype == diffusion.alpha_bars.dtype == torch.float64
    torch.testing.assert_close(diffusion.betas, schedules.linear(100), rtol=0, atol=0)


def test_the_noise_of_the_first_steps_survives_bf16_autocast() -> None:
    diffusion = GaussianDiffusion(schedules.linear(1000))
    x0 = torch.full((1, 1, 100, 500), 0.9)
    eps = seeded_randn_like(0)(x0)
    for t in (0, 1, 5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_t = diffusion.q_sample(x0, torch.tensor([t]), eps)
        assert x_t.dtype == torch.float32
        ab = diffusion.alpha_bars[t].item()
        assert (x_t.std() / eps.std()).item() == pytest.approx((1 - ab) ** 0.5, rel=0.01)
        # bf16's rounding error has about the same standard deviation as this noise, so compare the noise itself.
        recovered = (x_t.double() - ab**0.5 * x0) / (1 - ab) ** 0.5
        assert (recovered - eps).abs().max() < 1e-3


def test_the_noise_of_the_first_steps_survives_a_module_in_bf16() -> None:
    diffusion = GaussianDiffusion(schedules.linear(1000))
    module = torch.nn.ModuleList([torch.nn.Conv2d(1, 1, 3), diffusion]).to(torch.bfloat16)
    assert module[0].weight.dtype == torch.bfloat16
    x0 = torch.full((1, 1, 100, 500), 0.9)
    eps = seeded_randn_like(0)(x0)
    for t in (0, 1, 5, 500, 999):
        x_t = diffusion.q_sample(x0, torch.tensor([t]), eps)
        ab = diffusion.alpha_bars[t].item()
        assert x_t.dtype == torch.float32
        assert (x_t.std() / eps.std()).item() == pytest.approx((1 - ab) ** 0.5, rel=0.01)
        assert x_t.mean().item() == pytest.approx(ab**0.5 * 0.9, abs=0.02)


def zero_terminal_snr() -> Tensor:
    betas = schedules.linear(50)
    betas[-1] = 1.0
    return betas


def test_epsilon_prediction_refuses_zero_terminal_snr() -> None:
    with pytest.raises(ValueError, match=r"\bv\b.*\bx0\b|\bx0\b.*\bv\b"):
        GaussianDiffusion(zero_terminal_snr(), prediction="epsilon")


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_works_with_v_and_x0(prediction: Prediction) -> None:
    diffusion = GaussianDiffusion(zero_terminal_snr(), prediction=prediction, clip_x0=False)
    t = torch.full((2,), 49)
    randn_like = seeded_randn_like(0)
    x0, eps = randn_like(torch.empty(2, 1, 3, 3)), randn_like(torch.empty(2, 1, 3, 3))
    x_t = diffusion.q_sample(x0, t, eps)
    torch.testing.assert_close(x_t, eps)
    target = diffusion.target(x0, x_t, t, eps)
    torch.testing.assert_close(diffusion.to_x0(target, x_t, t), x0)
    torch.testing.assert_close(diffusion.to_epsilon(target, x_t, t), eps)
    mean, variance, _ = diffusion.p_mean_variance(target, x_t, t)
    torch.testing.assert_close(mean, diffusion.alpha_bars[48].sqrt().float() * x0)
    assert variance[0].item() == pytest.approx(1 - diffusion.alpha_bars[48].item())


def test_a_schedule_that_leaves_signal_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"(?i)alpha_bar|ᾱ|noise|N\(0"):
        GaussianDiffusion(schedules.linear(300, rescale=False))


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.sigmoid, schedules.log_snr_linear])
def test_the_default_schedules_give_no_warning(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaussianDiffusion(make(1000))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    "arguments",
    [
        {"prediction": "score"},
        {"variance": "learned"},
        {"variance": "optimal"},
        {"variance": "optimal", "x0_mse": torch.ones(49)},
        {"betas": torch.tensor([0.1, -0.1, 0.999], dtype=torch.float64)},
        {"betas": torch.tensor([0.1, 1.1], dtype=torch.float64)},
        {"betas": torch.tensor([0.1, float("nan"), 0.999], dtype=torch.float64)},
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        GaussianDiffusion(**{"betas": schedules.linear(50)} | arguments)
