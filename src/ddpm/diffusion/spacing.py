"""The timesteps of a sampler that makes fewer steps than the chain has."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Spacing = Literal["uniform", "trailing", "quadratic", "log_snr", "karras"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
RHO = 7
"""exponent of "karras", from Karras et al. 2022"""
SIGMA_MAX = 20.0
"""of "karras": the first step goes from T-1 to a σ = √(1-ᾱ)/√ᾱ of at least this. At T-1 the network predicts nearly
the same x_0 for every image. If the step went further, strong components of the images would lose variance; the
strongest of MNIST has a standard deviation of 4.5."""


def spaced_timesteps(
    alpha_bars: Float64[Tensor, " T"], steps: int, spacing: Spacing = "uniform"
) -> Int64[Tensor, " S"]:
    """Return S = `steps` of the T timesteps, ascending, T-1 included; int64 [S].

    `ddpm.diffusion.samplers.Sampler` gives the formula of each spacing.

    Raises:
        ValueError: more steps than T, so many steps that the spacing selects a timestep twice, or "log_snr" on a
            schedule with ᾱ_T = 0.
    """
    last = len(alpha_bars) - 1
    if steps > last + 1:
        raise ValueError(f"steps={steps} is more than the {last + 1} steps of the diffusion.")
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
                raise ValueError("spacing=log_snr needs a schedule with ᾱ_T > 0: use another spacing or schedule.")
            target = log_snr[0] + (log_snr[-1] - log_snr[0]) * fractions
            timesteps = (log_snr[None] - target[:, None]).abs().argmin(dim=1)
        case "karras":
            timesteps = _karras(alpha_bars, steps)
    if len(timesteps.unique()) < steps:
        raise ValueError(
            f"spacing={spacing} selects some of the {last + 1} timesteps twice at {steps} steps: "
            "use fewer steps or spacing=uniform."
        )
    return timesteps


def _karras(alpha_bars: Float64[Tensor, " T"], steps: int) -> Int64[Tensor, " S"]:
    """Return timesteps that are evenly spaced in σ^(1/ρ) (Karras et al. 2022, equation 5), T-1 included; int64 [S].

    The lowest is that of "trailing". The highest below T-1 has at least the σ of "trailing" and `SIGMA_MAX`, if there
    is such a timestep; otherwise T-1 is the highest of the evenly spaced ones. If a timestep is the nearest of two, the
    next free timestep is taken.
    """
    last = len(alpha_bars) - 1
    log_sigma = (torch.log1p(-alpha_bars) - torch.log(alpha_bars)) / 2  # infinite where ᾱ = 0
    lowest, second = (log_sigma[round(k * (last + 1) / steps) - 1].item() for k in (1, steps - 1))
    highest, number = max(second, math.log(SIGMA_MAX)), steps - 1
    if log_sigma[-1] <= highest:
        highest, number = log_sigma[-1].item(), steps
    roots = torch.linspace(math.exp(lowest / RHO), math.exp(highest / RHO), number, dtype=torch.float64)
    nearest = (log_sigma[None] - RHO * roots.log()[:, None]).abs().argmin(dim=1)
    timesteps = torch.cat([nearest, torch.full((steps - number,), last)])
    position = torch.arange(steps)
    return (timesteps - position).cummax(dim=0).values.clamp(max=last + 1 - steps) + position
