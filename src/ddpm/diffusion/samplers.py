"""Samplers, which turn noise x_T into images x_0.

    sampler(network, diffusion, x_T, randn_like) -> x_0
    network(x_t, t) -> output
    randn_like(x) -> fresh standard normal noise in the shape of x; only stochastic samplers call it

`Sampler.iterate` loops over the timesteps, calls the network and computes the predicted x_0. The network always
receives the timestep of the full chain. To add a sampler, write a subclass of `Sampler` that implements `step`, and a
YAML in `conf/sampler/`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import GaussianDiffusion, Network, RandnLike, check_choice
from ddpm.diffusion.spacing import SPACINGS, Spacing, spaced_timesteps
from ddpm.errors import UserError

ALL_STEPS = slice(None)


class SamplerStep(NamedTuple):
    """One step of a sampler."""

    t: int
    """the timestep of the full chain"""
    x_t: Images
    """the network's input"""
    x0: Images
    """the x_0 that was predicted from it"""
    x_prev: Images
    """the images after the step"""


class Trajectory(NamedTuple):
    """Constants of one sampling run; step i goes from noise level `alpha_bars[i + 1]` to `alpha_bars[i]`."""

    diffusion: GaussianDiffusion
    """the diffusion process over only the sampler's S timesteps"""
    alpha_bars: Float64[Tensor, " N"]
    """ᾱ of x_0, which is 1, followed by ᾱ of each of the S timesteps; N = S + 1"""
    lambdas: Float64[Tensor, " N"]
    """λ = log √ᾱ/√(1-ᾱ), half the log SNR; infinite for x_0"""
    randn_like: RandnLike

    def gaps(self, i: int, number: int) -> list[float]:
        """Return the length of step i in λ, and the distances in λ between the newest `number` predictions of x_0."""
        return (-self.lambdas[i : i + number + 1].diff()).tolist()


class Sampler(ABC):
    """Base class of the samplers, which go from x_T to x_0 in `steps` steps (all T timesteps if None).

    Args:
        steps: the number S of steps, each with one call of the (possibly guided) network.
        spacing: how to select S of the T timesteps. "uniform": round(linspace(0, T-1, S)); "trailing":
            round((i+1)·T/S) - 1; "quadratic": round(linspace(0, √(T-1), S)²), denser near the image; "log_snr": evenly
            spaced in log ᾱ/(1-ᾱ); "karras": T-1, then evenly spaced in σ^(1/7), σ = √(1-ᾱ)/√ᾱ, from σ = 20 to the
            lowest timestep of "trailing" (more in `spacing.py`). Every spacing includes T-1.
    """

    history = 1
    """maximum length of `x0s` in `step`"""

    def __init__(self, steps: int | None = None, spacing: Spacing = "uniform"):
        if steps is not None and steps < 1:
            raise ValueError(f"a sampler needs at least one step, not steps={steps}.")
        check_choice("spacing", spacing, SPACINGS)
        self.steps = steps
        self.spacing: Spacing = spacing

    @abstractmethod
    def step(self, trajectory: Trajectory, i: int, x_t: Images, x0s: Sequence[Images], eps: Images) -> Images:
        """Return the images after step i, [B, C, H, W]. The steps run from S - 1 down to 0, which returns x_0.

        Args:
            x0s: the predictions of x_0, newest first, at most `history` of them.
            eps: the predicted noise that corresponds to `x0s[0]`.
        """

    def iterate(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = ALL_STEPS,
    ) -> Iterator[SamplerStep]:
        """Sample from `x_T` and yield each step.

        Args:
            part: use only the timesteps `timesteps(diffusion)[part]`, in descending order. `x_T` must have the noise
                level of the highest timestep of the part. The result has the noise level of the timestep just below
                the part, or is x_0 if there is none.

        Raises:
            UserError: an output of the network was not finite. The check follows the last step.
        """
        timesteps = self.timesteps(diffusion)
        alpha_bars = torch.cat([diffusion.alpha_bars.new_ones(1), diffusion.alpha_bars[timesteps]])
        lambdas = (alpha_bars / (1 - alpha_bars)).log() / 2
        trajectory = Trajectory(diffusion.subsequence(timesteps), alpha_bars, lambdas, randn_like)
        x_t, x0s = x_T, list[Images]()
        finite = torch.tensor(True, device=x_T.device)
        for i, t in reversed(list(enumerate(timesteps.tolist()))[part]):
            with torch.no_grad():  # not around `yield`: it would act in the caller too
                now = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
                output = network(x_t, now)
                finite &= output.isfinite().all()
                x0, eps = diffusion.predict_x0_and_epsilon(output, x_t, now)
                x0s = [x0, *x0s][: self.history]
                x_prev = self.step(trajectory, i, x_t, x0s, eps)
            yield SamplerStep(t, x_t, x0, x_prev)
            x_t = x_prev
        if not finite:  # checked only once, because the check waits for the device
            raise UserError("the network's output is not finite: no samples made. Use another checkpoint or precision.")

    def __call__(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = ALL_STEPS,
    ) -> Images:
        """Return the images after the last step, [B, C, H, W]. The arguments are those of `iterate`."""
        x_t = x_T
        for step in self.iterate(network, diffusion, x_T, randn_like, part):
            x_t = step.x_prev
        return x_t

    def timesteps(self, diffusion: GaussianDiffusion) -> Int64[Tensor, " S"]:
        """Return the timesteps of the full chain at which the network is called, ascending.

        Raises:
            ValueError: the sampler has more steps than the diffusion, the spacing selects a timestep twice, or the
                spacing is "log_snr" and ᾱ_T is 0.
        """
        steps = diffusion.num_steps if self.steps is None else self.steps
        return spaced_timesteps(diffusion.alpha_bars, steps, self.spacing)


class Ancestral(Sampler):
    """The reverse chain p_θ (Ho et al. 2020, algorithm 2), with the variance of `diffusion`."""

    def step(self, trajectory: Trajectory, i: int, x_t: Images, x0s: Sequence[Images], eps: Images) -> Images:
        now = torch.full((len(x_t),), i, dtype=torch.int64, device=x_t.device)
        mean, variance, _ = trajectory.diffusion.p_mean_variance(x0s[0], x_t, now)
        return mean + variance.sqrt() * trajectory.randn_like(x_t) if i > 0 else mean


class DDIM(Sampler):
    """Denoising diffusion implicit models (Song et al. 2021, equations 12 and 16).

    Args:
        eta: η, between 0 and 1. With η = 0, the sampler is deterministic. With η = 1, it is the ancestral chain
            with small variance.
    """

    def __init__(self, steps: int | None = None, eta: float = 0.0, spacing: Spacing = "uniform"):
        super().__init__(steps, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM's eta must be between 0 and 1, not {eta}.")
        self.eta = eta

    def step(self, trajectory: Trajectory, i: int, x_t: Images, x0s: Sequence[Images], eps: Images) -> Images:
        alpha_bar, alpha_bar_prev = trajectory.alpha_bars[i + 1], trajectory.alpha_bars[i]
        variance = self.eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        direction = (1 - alpha_bar_prev - variance).clamp(min=0)
        x = alpha_bar_prev.sqrt().item() * x0s[0] + direction.sqrt().item() * eps
        return x + variance.sqrt().item() * trajectory.randn_like(x) if variance > 0 else x


class DPMSolverPP(Sampler):
    """DPM-Solver++ (Lu et al. 2022, algorithm 2): a multistep solver of the probability-flow ODE in λ.

    Each step extrapolates from the newest `order` predictions of x_0 and calls the network once. Order 1 is DDIM. The
    first steps have a lower order, because fewer predictions exist. The last steps also have a lower order, because λ
    is infinite at x_0: the last step has order 1 and returns the predicted x_0; the second to last step has at most
    order 2.

    Args:
        order: 1, 2 or 3.
    """

    max_order = 3

    def __init__(self, steps: int | None = None, order: int = 2, spacing: Spacing = "uniform"):
        super().__init__(steps, spacing)
        if not 1 <= order <= self.max_order:
            raise ValueError(f"{type(self).__name__}'s order is 1 to {self.max_order}, not {order}.")
        self.order = self.history = order

    def step(self, trajectory: Trajectory, i: int, x_t: Images, x0s: Sequence[Images], eps: Images) -> Images:
        x0s = x0s[: i + 1]
        alpha_bar_prev, alpha_bar = trajectory.alpha_bars[i : i + 2].tolist()
        h, *between = trajectory.gaps(i, len(x0s))
        gain, signal = -math.expm1(-h), math.sqrt(alpha_bar_prev)
        # Order 1, with D_0 = x0s[0]: √((1-ᾱ_prev)/(1-ᾱ)) x_t - √ᾱ_prev (e^-h - 1) D_0. Then the terms of the
        # derivatives of x_0 by λ, from differences of the predictions.
        x = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * x_t + signal * gain * x0s[0]
        if len(x0s) == 2:
            return x + signal * gain / 2 * _slope(x0s, h / between[0])
        if len(x0s) == 3:
            near, far = _slope(x0s, h / between[0]), _slope(x0s[1:], h / between[1])
            curvature = 2 * (near - far) * (h / (between[0] + between[1]))  # the authors' code lacks the factor 2
            slope = near + between[0] / h * curvature / 2
            return x + signal * ((1 - gain / h) * slope - ((h - gain) / h**2 - 1 / 2) * curvature)
        return x


class SDEDPMSolverPP(DPMSolverPP):
    """SDE-DPM-Solver++ (Lu et al. 2022, section 5): a solver of the reverse SDE, with fresh noise in each step.

    Order 1 is DDIM with η = 1, which is the ancestral chain with small variance.

    Args:
        order: 1 or 2.
    """

    max_order = 2

    def step(self, trajectory: Trajectory, i: int, x_t: Images, x0s: Sequence[Images], eps: Images) -> Images:
        x0s = x0s[: i + 1]
        alpha_bar_prev, alpha_bar = trajectory.alpha_bars[i : i + 2].tolist()
        h, *between = trajectory.gaps(i, len(x0s))
        gain, signal = -math.expm1(-2 * h), math.sqrt(alpha_bar_prev)
        x = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * math.exp(-h) * x_t + signal * gain * x0s[0]
        if len(x0s) == 2:
            x = x + signal * gain / 2 * _slope(x0s, h / between[0])
        return x + math.sqrt((1 - alpha_bar_prev) * gain) * trajectory.randn_like(x) if alpha_bar_prev < 1 else x


def _slope(x0s: Sequence[Images], ratio: float) -> Images:
    """Return the difference of the two newest predictions of x_0, times `ratio`: the step's length over their gap."""
    return (x0s[0] - x0s[1]) * ratio
