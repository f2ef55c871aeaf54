"""The timesteps of a sampler that makes fewer steps than the chain has."""

from typing import Literal, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Spacing = Literal["uniform", "trailing", "quadratic", "log_snr"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)


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
    if len(timesteps.unique()) < steps:
        raise ValueError(
            f"spacing={spacing} selects some of the {last + 1} timesteps twice at {steps} steps: "
            "use fewer steps or spacing=uniform."
        )
    return timesteps
