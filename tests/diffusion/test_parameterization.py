"""Round trips between the prediction types, at every t of the chapter's schedule."""

from typing import Any

import pytest
import torch
from closed_forms import PREDICTIONS, Chain, betas_of_any_schedule, column, seeded_randn_like
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion

ROUNDING = 4e-6  # a few float32 roundings of numbers up to 5


def conditioning(chain: Chain, prediction: str) -> tuple[Tensor, Tensor]:
    """Return the factors by which the conversions to x0 and to ε amplify rounding errors, [T] each."""
    ab = chain.alpha_bars
    to_x0 = {
        "epsilon": 1 / ab.sqrt(),
        "x0": torch.ones_like(ab),
        "v": torch.ones_like(ab),
        "mean": 1 / chain.c0,
    }[prediction]
    to_epsilon = {
        "epsilon": torch.ones_like(ab),
        "x0": 1 / (1 - ab).sqrt(),
        "v": torch.ones_like(ab),
        "mean": (1 + ab.sqrt() / chain.c0) / (1 - ab).sqrt(),
    }[prediction]
    return to_x0, to_epsilon


def within(actual: Tensor, expected: Tensor, bound: Tensor) -> bool:
    return bool(((actual.double() - expected.double()).abs() <= column(bound)).all())


def everywhere(
    betas: Tensor, prediction: Prediction, shape: tuple[int, ...] = (1, 4, 4)
) -> tuple[GaussianDiffusion, Tensor, Tensor, Tensor, Tensor]:
    diffusion = GaussianDiffusion(betas, prediction=prediction, clip_x0=False)
    t = torch.arange(len(betas))
    randn_like = seeded_randn_like(0)
    x0, eps = (randn_like(torch.empty(len(betas), *shape)) for _ in range(2))
    ab = column(diffusion.alpha_bars)
    x_t = (ab.sqrt() * x0 + (1 - ab).sqrt() * eps).float()
    return diffusion, t, x0, eps, x_t


@pytest.mark.parametrize("make", [schedules.linear, schedules.log_snr_linear])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_converts_back_to_x0_and_epsilon_at_every_t(prediction: Prediction, make: Any) -> None:
    betas = make(1000)
    diffusion, t, x0, eps, x_t = everywhere(betas, prediction)
    to_x0, to_epsilon = conditioning(Chain.of_betas(betas), prediction)
    target = diffusion.target(x0, x_t, t, eps)
    assert within(diffusion.to_x0(target, x_t, t), x0, ROUNDING * to_x0)
    assert within(diffusion.to_epsilon(target, x_t, t), eps, ROUNDING * to_epsilon)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_follows_its_definition(prediction: Prediction) -> None:
    diffusion, t, x0, eps, x_t = everywhere(schedules.linear(1000), prediction)
    expected = Chain.of(diffusion.alpha_bars).as_output(prediction, x0, x_t, t)
    # x_t is rounded, so the ε computed from x_t and x0 has that rounding error divided by √(1-ᾱ).
    slack = ROUNDING / (1 - diffusion.alpha_bars).sqrt()
    assert within(diffusion.target(x0, x_t, t, eps), expected, slack)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("wanted", PREDICTIONS)
def test_every_prediction_type_converts_to_every_other_at_every_t(source: Prediction, wanted: Prediction) -> None:
    betas = schedules.linear(1000)
    diffusion, t, x0, eps, x_t = everywhere(betas, source)
    output = diffusion.target(x0, x_t, t, eps)
    other = GaussianDiffusion(betas, prediction=wanted, clip_x0=False)
    converted = other.target(diffusion.to_x0(output, x_t, t), x_t, t, diffusion.to_epsilon(output, x_t, t))
    chain = Chain.of_betas(betas)
    ab = chain.alpha_bars
    to_x0, to_epsilon = conditioning(chain, source)
    bound = {
        "x0": to_x0,
        "epsilon": to_epsilon,
        "v": ab.sqrt() * to_epsilon + (1 - ab).sqrt() * to_x0,
        "mean": chain.c0 * to_x0 + 1,
    }[wanted]
    assert within(converted, other.target(x0, x_t, t, eps), 2 * ROUNDING * bound)


@given(
    betas=betas_of_any_schedule(),
    prediction=st.sampled_from(PREDICTIONS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
)
def test_round_trips_hold_for_any_schedule_and_shape(
    betas: Tensor, prediction: Prediction, shape: tuple[int, ...]
) -> None:
    diffusion, t, x0, eps, x_t = everywhere(betas, prediction, shape)
    to_x0, to_epsilon = conditioning(Chain.of_betas(betas), prediction)
    target = diffusion.target(x0, x_t, t, eps)
    assert target.shape == x_t.shape
    assert within(diffusion.to_x0(target, x_t, t), x0, ROUNDING * to_x0)
    assert within(diffusion.to_epsilon(target, x_t, t), eps, ROUNDING * to_epsilon)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_reverse_mean_is_the_posterior_of_the_predicted_x0(prediction: Prediction) -> None:
    betas = schedules.linear(1000)
    diffusion, t, x0, eps, x_t = everywhere(betas, prediction)
    chain = Chain.of_betas(betas)
    mean, _, _ = diffusion.p_mean_variance(diffusion.target(x0, x_t, t, eps), x_t, t)
    expected = column(chain.c0) * x0 + column(chain.ct) * x_t
    to_x0, _ = conditioning(chain, prediction)
    assert within(mean, expected, ROUNDING * (1 + chain.c0 * to_x0))
