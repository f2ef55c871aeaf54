"""Samplers: from noise x_T to images x_0.

    sampler(network, diffusion, x_T, randn_like) -> x_0
    network(x_t, t) -> the network's output;    randn_like(x) -> fresh noise of x's shape, once a stochastic step

Each may walk over a part of the timesteps; the network always receives the original t. A sampler of your own is
a subclass of `Sampler` with its `iterate`, and a YAML in `conf/sampler/`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import GaussianDiffusion, Network, RandnLike, check_choice
from ddpm.diffusion.spacing import SPACINGS, Spacing, spaced_timesteps

WHOLE = slice(None)


class SamplerStep(NamedTuple):
    """One step of a sampler."""

    t: int
    """the original timestep at which the network was asked"""
    x_t: Images
    """the image after the step"""
    x0: Images
    """the x_0 predicted in the step"""


class Sampler(ABC):
    """A walk from x_T to x_0 over `steps` timesteps (all of them when None).

    Args:
        steps: the number S of network evaluations.
        spacing: which timesteps, out of T: "uniform" round(linspace(0, T-1, S)); "trailing" round((i+1)·T/S) - 1;
            "quadratic" round(linspace(0, √(T-1), S)²), denser near the image; "log_snr" even in log ᾱ/(1-ᾱ).
            All hold T-1.
    """

    def __init__(self, steps: int | None = None, spacing: Spacing = "uniform"):
        if steps is not None and steps < 1:
            raise ValueError(f"a sampler needs at least one step, not steps={steps}.")
        check_choice("spacing", spacing, SPACINGS)
        self.steps = steps
        self.spacing: Spacing = spacing

    @abstractmethod
    def iterate(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = WHOLE,
    ) -> Iterator[SamplerStep]:
        """Walk from `x_T` to the image, step by step.

        Args:
            part: walk these steps alone, a slice of `timesteps(diffusion)`: from an image `x_T` of the last one's
                noise to one of the noise that the timestep before the first has, or to x_0.
        """

    def __call__(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = WHOLE,
    ) -> Images:
        """The images that the walk from `x_T` ends at, [B, C, H, W]; arguments as in `iterate`."""
        x_t = x_T
        for step in self.iterate(network, diffusion, x_T, randn_like, part):
            x_t = step.x_t
        return x_t

    def timesteps(self, diffusion: GaussianDiffusion) -> Int64[Tensor, " S"]:
        """The original timesteps of the walk, ascending.

        Raises:
            ValueError: more steps than the chain has, or so many that the spacing takes one twice.
        """
        steps = diffusion.num_steps if self.steps is None else self.steps
        return spaced_timesteps(diffusion.alpha_bars, steps, self.spacing)


class Ancestral(Sampler):
    """The reverse chain p_θ itself (Ho et al. 2020, algorithm 2), with the variance that `diffusion` is set to."""

    @torch.no_grad()
    def iterate(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = WHOLE,
    ) -> Iterator[SamplerStep]:
        timesteps = self.timesteps(diffusion)
        chain = diffusion.subsequence(timesteps)
        x_t = x_T
        for i, t in reversed(list(enumerate(timesteps.tolist()))[part]):
            output = network(x_t, _batch_of(t, x_t))
            x0 = diffusion.to_x0(output, x_t, _batch_of(t, x_t))
            mean, variance, x0 = chain.p_mean_variance(x0, x_t, _batch_of(i, x_t))
            x_t = mean + variance.sqrt() * randn_like(x_t) if i > 0 else mean
            yield SamplerStep(t, x_t, x0)


class DDIM(Sampler):
    """Denoising diffusion implicit models (Song et al. 2021, equations 12 and 16).

    Args:
        eta: 0 is deterministic; 1 over all steps is the ancestral chain of small variance.
    """

    def __init__(self, steps: int | None = None, eta: float = 0.0, spacing: Spacing = "uniform"):
        super().__init__(steps, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM's eta lies between 0 and 1, not {eta}.")
        self.eta = eta

    @torch.no_grad()
    def iterate(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = WHOLE,
    ) -> Iterator[SamplerStep]:
        timesteps = self.timesteps(diffusion)
        alpha_bars = diffusion.alpha_bars[timesteps]
        x_t = x_T
        for i, t in reversed(list(enumerate(timesteps.tolist()))[part]):
            output = network(x_t, _batch_of(t, x_t))
            x0, epsilon = diffusion.predict_x0_and_epsilon(output, x_t, _batch_of(t, x_t))
            alpha_bar, alpha_bar_prev = alpha_bars[i], alpha_bars[i - 1] if i > 0 else alpha_bars.new_ones(())
            variance = self.eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
            direction = (1 - alpha_bar_prev - variance).clamp(min=0)
            x_t = alpha_bar_prev.sqrt().item() * x0 + direction.sqrt().item() * epsilon
            if variance > 0:
                x_t = x_t + variance.sqrt().item() * randn_like(x_t)
            yield SamplerStep(t, x_t, x0)


class DPMSolverPP(Sampler):
    """DPM-Solver++ (Lu et al. 2022b, algorithm 2): the ODE of the marginals, solved in λ = log √ᾱ/√(1-ᾱ) by a
    multistep method of `order` 1 (DDIM), 2 or 3 from the x_0 predictions of the last steps, so that a step asks the
    network once.

    The first steps have less to look back on and are of lower order. So are the last ones, as x_0 lies at λ = ∞:
    the step to it is the predicted x_0 itself (order 1), and the one before is at most of order 2.
    """

    max_order = 3

    def __init__(self, steps: int | None = None, order: int = 2, spacing: Spacing = "uniform"):
        super().__init__(steps, spacing)
        if not 1 <= order <= self.max_order:
            raise ValueError(f"{type(self).__name__}'s order is 1 to {self.max_order}, not {order}.")
        self.order = order

    @torch.no_grad()
    def iterate(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        x_T: Images,
        randn_like: RandnLike = torch.randn_like,
        part: slice = WHOLE,
    ) -> Iterator[SamplerStep]:
        timesteps = self.timesteps(diffusion)
        alpha_bars = torch.cat([diffusion.betas.new_ones(1), diffusion.alpha_bars[timesteps]])  # of x_0, then x_t
        log_snr = (alpha_bars / (1 - alpha_bars)).log() / 2  # λ
        x_t, x0s = x_T, list[Images]()
        for i, t in reversed(list(enumerate(timesteps.tolist()))[part]):
            output = network(x_t, _batch_of(t, x_t))
            x0, _ = diffusion.predict_x0_and_epsilon(output, x_t, _batch_of(t, x_t))
            x0s = [x0, *x0s][: min(self.order, i + 1)]
            gaps = -log_snr[i : i + len(x0s) + 1].diff()
            x_t = self._step(x_t, x0s, gaps.tolist(), alpha_bars[i + 1].item(), alpha_bars[i].item(), randn_like)
            yield SamplerStep(t, x_t, x0)

    def _step(
        self, x_t: Images, x0s: Sequence[Images], gaps: Sequence[float], now: float, after: float, randn_like: RandnLike
    ) -> Images:
        """From ᾱ = `now` to `after`.

        Args:
            x0s: the predictions, the newest first.
            gaps: the step's length in λ, then what lies between one prediction and the next.
        """
        h, *between = gaps
        gain = -math.expm1(-h)
        # σ_t/σ_s x_s - α_t (e^-h - 1) D_0, then what the derivatives of the prediction in λ add.
        x = math.sqrt((1 - after) / (1 - now)) * x_t + math.sqrt(after) * gain * x0s[0]
        if len(x0s) == 2:
            return x + math.sqrt(after) * gain / 2 * _slope(x0s, h / between[0])
        if len(x0s) == 3:
            near, far = _slope(x0s, h / between[0]), _slope(x0s[1:], h / between[1])
            curvature = 2 * (near - far) * (h / (between[0] + between[1]))  # the authors' code lacks the 2
            slope = near + between[0] / h * curvature / 2
            return x + math.sqrt(after) * ((1 - gain / h) * slope - ((h - gain) / h**2 - 1 / 2) * curvature)
        return x


class SDEDPMSolverPP(DPMSolverPP):
    """SDE-DPM-Solver++ (Lu et al. 2022b, section 5): the same for the reverse SDE, with fresh noise in each step.

    Order 1 is DDIM with η = 1, the ancestral chain of small variance.
    """

    max_order = 2

    def _step(
        self, x_t: Images, x0s: Sequence[Images], gaps: Sequence[float], now: float, after: float, randn_like: RandnLike
    ) -> Images:
        h, *between = gaps
        gain = -math.expm1(-2 * h)
        x = math.sqrt((1 - after) / (1 - now)) * math.exp(-h) * x_t + math.sqrt(after) * gain * x0s[0]
        if len(x0s) == 2:
            x = x + math.sqrt(after) * gain / 2 * _slope(x0s, h / between[0])
        return x + math.sqrt((1 - after) * gain) * randn_like(x) if after < 1 else x


def _slope(x0s: Sequence[Images], ratio: float) -> Images:
    """The change of the prediction in a step that is `ratio` times as long as what lies between the newest two."""
    return (x0s[0] - x0s[1]) * ratio


def _batch_of(t: int, images: Images) -> Int64[Tensor, " B"]:
    return torch.full((len(images),), t, dtype=torch.int64, device=images.device)
