"""Samplers: from noise x_T to images x_0.

    sampler(denoise, diffusion, x_T, noise) -> x_0
    denoise(x_t, t) -> the network's output;    noise(x) -> fresh noise of x's shape, once a stochastic step

Each may walk over a part of the timesteps; the network always receives the original t. A sampler of your own is
a subclass of `Sampler` with its `iterate`, and a YAML in `conf/sampler/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import Denoise, GaussianDiffusion, Noise, check_choice

Spacing = Literal["uniform", "trailing", "quadratic", "log_snr"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)


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
        self, denoise: Denoise, diffusion: GaussianDiffusion, x_T: Images, noise: Noise = torch.randn_like
    ) -> Iterator[SamplerStep]:
        """Walk from `x_T` to the image, step by step."""

    def __call__(
        self, denoise: Denoise, diffusion: GaussianDiffusion, x_T: Images, noise: Noise = torch.randn_like
    ) -> Images:
        """The images that the walk from `x_T` ends at, [B, C, H, W]."""
        x_t = x_T
        for step in self.iterate(denoise, diffusion, x_T, noise):
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
        self, denoise: Denoise, diffusion: GaussianDiffusion, x_T: Images, noise: Noise = torch.randn_like
    ) -> Iterator[SamplerStep]:
        timesteps = self.timesteps(diffusion)
        chain = diffusion.subsequence(timesteps)
        x_t = x_T
        for i, t in reversed(list(enumerate(timesteps.tolist()))):
            output = denoise(x_t, _batch_of(t, x_t))
            x0 = diffusion.to_x0(output, x_t, _batch_of(t, x_t))
            mean, variance, x0 = chain.p_mean_variance(x0, x_t, _batch_of(i, x_t))
            x_t = mean + variance.sqrt() * noise(x_t) if i > 0 else mean
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
        self, denoise: Denoise, diffusion: GaussianDiffusion, x_T: Images, noise: Noise = torch.randn_like
    ) -> Iterator[SamplerStep]:
        timesteps = self.timesteps(diffusion)
        alpha_bars = diffusion.alpha_bars[timesteps]
        x_t = x_T
        for i, t in reversed(list(enumerate(timesteps.tolist()))):
            output = denoise(x_t, _batch_of(t, x_t))
            x0, epsilon = diffusion.predict_x0_and_epsilon(output, x_t, _batch_of(t, x_t))
            alpha_bar, alpha_bar_prev = alpha_bars[i], alpha_bars[i - 1] if i > 0 else alpha_bars.new_ones(())
            variance = self.eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
            direction = (1 - alpha_bar_prev - variance).clamp(min=0)
            x_t = alpha_bar_prev.sqrt().item() * x0 + direction.sqrt().item() * epsilon
            if variance > 0:
                x_t = x_t + variance.sqrt().item() * noise(x_t)
            yield SamplerStep(t, x_t, x0)


def spaced_timesteps(
    alpha_bars: Float64[Tensor, " T"], steps: int, spacing: Spacing = "uniform"
) -> Int64[Tensor, " S"]:
    """`steps` of the T timesteps, ascending, T-1 among them (formulas: `Sampler`).

    Raises:
        ValueError: more steps than T, or so many that the spacing takes one twice.
    """
    last = len(alpha_bars) - 1
    if steps > last + 1:
        raise ValueError(f"{steps} steps were asked of a chain that has {last + 1}.")
    if steps == 1:
        return torch.tensor([last])
    fractions = torch.linspace(0, 1, steps, dtype=torch.float64)
    match spacing:
        case "uniform":
            timesteps = (last * fractions).round().long()
        case "trailing":
            timesteps = (torch.arange(1, steps + 1, dtype=torch.float64) * (last + 1) / steps).round().long() - 1
        case "quadratic":
            timesteps = (last * fractions**2).round().long()
        case "log_snr":
            log_snr = torch.log(alpha_bars) - torch.log1p(-alpha_bars)
            if log_snr.isinf().any():
                raise ValueError("spacing=log_snr needs a schedule whose last step keeps some signal (ᾱ_T > 0).")
            wanted = log_snr[0] + (log_snr[-1] - log_snr[0]) * fractions
            timesteps = (log_snr[None] - wanted[:, None]).abs().argmin(dim=1)
    if len(timesteps.unique()) < steps:
        raise ValueError(
            f"spacing={spacing} takes some of the {last + 1} timesteps twice at {steps} steps: "
            "use fewer steps or spacing=uniform."
        )
    return timesteps


def _batch_of(t: int, images: Images) -> Int64[Tensor, " B"]:
    return torch.full((len(images),), t, dtype=torch.int64, device=images.device)
