"""Our steps against those of an independent implementation, diffusers, with equal images, networks and noise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from closed_forms import seeded_randn_like
from torch import Tensor, nn

from ddpm.diffusion import schedules
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion, Variance
from ddpm.diffusion.samplers import DDIM, Ancestral, DPMSolverPP, Sampler, SamplerStep, SDEDPMSolverPP, Spacing

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install -e '.[dev]')")

# diffusers calls np.array on tensors, for which torch gives a DeprecationWarning under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

THEIR_NAMES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
BETAS = schedules.linear(100)
Step = Callable[[Tensor, int, Tensor, Tensor], Tensor]
"""step(output, t, x_t, eps) -> x_{t-1}"""


class Network(nn.Module):
    """A random network whose predicted x_0 is outside [-1, 1] at many pixels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = (t / 100).view(-1, 1, 1, 1).expand_as(x_t)
        return 0.8 * x_t + self.layers(torch.cat([x_t, time], dim=1))


def their_scheduler(name: str, diffusion: GaussianDiffusion, **settings: Any) -> Any:
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=diffusion.num_steps,
        trained_betas=diffusion.betas.numpy(),
        prediction_type=THEIR_NAMES[diffusion.prediction],
        **settings,
    )
    # diffusers computes ᾱ as a float32 product, so that 1 - ᾱ at t = 0 has three correct digits.
    scheduler.betas, scheduler.alphas = diffusion.betas, 1 - diffusion.betas
    scheduler.alphas_cumprod = diffusion.alpha_bars
    return scheduler


def check_steps(sampler: Sampler, diffusion: GaussianDiffusion, step: Step) -> list[SamplerStep]:
    """Compare each of our steps with theirs from the same x_t and the noise of `seeded_randn_like(1)`."""
    network = Network()
    drawn: list[Tensor] = []
    draw = seeded_randn_like(1)

    def randn_like(x: Tensor) -> Tensor:
        drawn.append(draw(x))
        return drawn[-1]

    x_t = seeded_randn_like(0)(torch.empty(3, 1, 6, 6))
    steps = []
    with torch.no_grad():
        for ours in sampler.iterate(network, diffusion, x_t, randn_like):
            output = network(x_t, torch.full((3,), ours.t))
            theirs = step(output, ours.t, x_t, drawn.pop() if drawn else torch.zeros_like(x_t))
            torch.testing.assert_close(ours.x_prev, theirs.float(), rtol=2e-5, atol=2e-5)
            x_t = ours.x_prev
            steps.append(ours)
    bound = max(float(ours.x0.abs().max()) for ours in steps)
    assert bound == 1 if diffusion.clip_x0 else bound > 1.5
    return steps


# diffusers adds noise in the last step if t = 0 is not one of the timesteps; its variance is 1e-20 if "small".
@pytest.mark.parametrize(
    ("variance", "spacing"),
    [("small", "uniform"), ("small", "trailing"), ("small", "quadratic"), ("large", "uniform"), ("large", "quadratic")],
)
@pytest.mark.parametrize("prediction", THEIR_NAMES)
@pytest.mark.parametrize("clip_x0", [True, False])
def test_ancestral(clip_x0: bool, prediction: Prediction, variance: Variance, spacing: Spacing) -> None:
    diffusion = GaussianDiffusion(BETAS, prediction, variance, clip_x0=clip_x0)
    sampler = Ancestral(9, spacing)
    theirs = their_scheduler("DDPMScheduler", diffusion, variance_type=f"fixed_{variance}", clip_sample=clip_x0)
    theirs.set_timesteps(timesteps=sampler.timesteps(diffusion).flip(0).tolist())
    generator = torch.Generator().manual_seed(1)  # diffusers draws the noise itself
    check_steps(sampler, diffusion, lambda output, t, x_t, _: theirs.step(output, t, x_t, generator).prev_sample)


@pytest.mark.parametrize(
    ("prediction", "eta"), [("epsilon", 0.0), ("epsilon", 0.6), ("epsilon", 1.0), ("x0", 0.6), ("v", 0.6)]
)
@pytest.mark.parametrize("clip_x0", [True, False])
def test_ddim(clip_x0: bool, prediction: Prediction, eta: float) -> None:
    diffusion = GaussianDiffusion(BETAS, prediction, clip_x0=clip_x0)
    # diffusers uses t - T/S as the timestep before t. Of our spacings only trailing has that, if S divides T.
    sampler = DDIM(10, eta, "trailing")
    theirs = their_scheduler("DDIMScheduler", diffusion, clip_sample=clip_x0, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    assert theirs.timesteps.tolist() == sampler.timesteps(diffusion).flip(0).tolist()

    def step(output: Tensor, t: int, x_t: Tensor, eps: Tensor) -> Tensor:
        # By default diffusers combines the clipped x_0 with the ε of the unclipped x_0.
        return theirs.step(output, t, x_t, eta, use_clipped_model_output=True, variance_noise=eps).prev_sample

    check_steps(sampler, diffusion, step)


def their_dpm_solver(sampler: DPMSolverPP, diffusion: GaussianDiffusion) -> Step:
    theirs = their_scheduler(
        "DPMSolverMultistepScheduler",
        diffusion,
        algorithm_type="sde-dpmsolver++" if isinstance(sampler, SDEDPMSolverPP) else "dpmsolver++",
        solver_order=sampler.order,
        final_sigmas_type="zero",  # end at x_0
        thresholding=diffusion.clip_x0,  # clip to a quantile between 1 and sample_max_value
        sample_max_value=1.0,
    )
    theirs.set_timesteps(timesteps=sampler.timesteps(diffusion).flip(0).tolist())
    return lambda output, t, x_t, eps: theirs.step(output, t, x_t, variance_noise=eps).prev_sample


@pytest.mark.parametrize(
    ("spacing", "prediction", "clip_x0"),
    [("uniform", "epsilon", True), ("trailing", "x0", False), ("quadratic", "v", True), ("log_snr", "epsilon", False)],
)
@pytest.mark.parametrize("make", [DPMSolverPP, SDEDPMSolverPP])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver(
    order: int, make: type[DPMSolverPP], clip_x0: bool, prediction: Prediction, spacing: Spacing
) -> None:
    diffusion = GaussianDiffusion(BETAS, prediction, clip_x0=clip_x0)
    sampler = make(9, order, spacing)
    check_steps(sampler, diffusion, their_dpm_solver(sampler, diffusion))


@pytest.mark.parametrize("prediction", THEIR_NAMES)
def test_dpm_solver_of_order_3(prediction: Prediction) -> None:
    """diffusers, with a correction: like the authors' code, it lacks a factor 2 and so has order 2.

    It uses the second divided difference in place of the second derivative, which is twice as large. The test adds the
    missing half. `test_sampler_dpm.py` proves the order of ours.
    """
    diffusion = GaussianDiffusion(BETAS, prediction, clip_x0=False)
    sampler = DPMSolverPP(9, 3)  # with 15 or more steps diffusers does not lower the order of the last step but one
    step = their_dpm_solver(sampler, diffusion)
    ab = diffusion.alpha_bars
    log_snr = ((ab / (1 - ab)).log() / 2).tolist()
    seen: list[tuple[int, Tensor]] = []

    def mended(output: Tensor, t: int, x_t: Tensor, eps: Tensor) -> Tensor:
        theirs = step(output, t, x_t, eps)
        seen.append((t, diffusion.to_x0(output, x_t, torch.full((3,), t))))
        if len(seen) < 3 or len(seen) > 7:
            return theirs
        (t2, x2), (t1, x1), (t0, x0) = seen[-3:]
        after = int(sampler.timesteps(diffusion)[-len(seen) - 1])
        h = log_snr[after] - log_snr[t0]
        newer, older = log_snr[t0] - log_snr[t1], log_snr[t1] - log_snr[t2]
        divided = ((x0 - x1) / newer - (x1 - x2) / older) / (newer + older)
        half = ab[after].sqrt().item() * (h**2 / 2 - h - math.expm1(-h)) * divided
        assert half.abs().max() > 1e-4
        return theirs + half

    check_steps(sampler, diffusion, mended)
