"""Noise schedules: each returns the variances β_t of the forward chain, float64, [T].

Index 0 is the first noising step (the papers' t = 1), so that β_0 … β_{T-1} and ᾱ_t = ∏_{s≤t} (1 - β_s).
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

Betas = Float64[Tensor, " T"]
MAX_STEPS = 10**6


def linear(num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02, rescale: bool = True) -> Betas:
    """Return β that rises linearly (Ho et al. 2020, section 4); float64, [T].

    `rescale` multiplies both ends by 1000/T, so that ᾱ_T hardly depends on the number of steps T.

    Raises:
        ValueError: `num_steps` is not positive, or a β leaves (0, 1].
    """
    _check_num_steps(num_steps)
    scale = 1000 / num_steps if rescale else 1.0
    if rescale and (largest := max(beta_start, beta_end) * scale) >= 1:
        raise ValueError(
            f"linear schedule: with num_steps={num_steps} the rescaled β reaches {largest:g}; it must stay below 1. "
            "Use more steps or rescale=False."
        )
    betas = torch.linspace(beta_start * scale, beta_end * scale, num_steps, dtype=torch.float64)
    return check_betas(betas)


def cosine(num_steps: int, s: float = 0.008, max_beta: float = 0.999) -> Betas:
    """Return β for an ᾱ that falls as a squared cosine (Nichol & Dhariwal 2021, equation 17); float64, [T].

    β is capped at `max_beta`; 1 gives a zero terminal signal-to-noise ratio. The offset `s` keeps the first β from
    being too small.

    Raises:
        ValueError: `num_steps` is not positive.
    """
    _check_num_steps(num_steps)
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    return betas_from_alpha_bars(torch.cos((time + s) / (1 + s) * math.pi / 2) ** 2, max_beta)


def sigmoid(num_steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999) -> Betas:
    """Return β for an ᾱ that falls as a sigmoid, shifted and scaled to run from 1 to 0; float64, [T].

    The sigmoid runs from `start` to `end` with the temperature `tau` (Jabri et al. 2022; Chen 2023); β is capped at
    `max_beta`.

    Raises:
        ValueError: `num_steps` or `tau` is not positive, or `end` is not above `start`.
    """
    _check_num_steps(num_steps)
    if not (end > start and tau > 0):
        raise ValueError(f"sigmoid schedule: end must be above start and tau positive, not {start=}, {end=}, {tau=}.")
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    curve = torch.sigmoid(-(time * (end - start) + start) / tau)
    alpha_bars = (curve - curve[-1]) / (curve[0] - curve[-1])
    return betas_from_alpha_bars(alpha_bars, max_beta)


def log_snr_linear(num_steps: int, log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> Betas:
    """Return β for a log SNR that falls linearly from `log_snr_max` at t = 0 to `log_snr_min` at t = T-1; float64, [T].

    log SNR_t = log ᾱ_t/(1-ᾱ_t), in nats. This is the learned linear schedule of Kingma et al. 2021 (section 3.2 and
    appendix H) with fixed ends.

    Raises:
        ValueError: `num_steps` is not positive, or `log_snr_max` is not above `log_snr_min`.
    """
    _check_num_steps(num_steps)
    if log_snr_max <= log_snr_min:
        raise ValueError(f"log_snr_linear schedule: {log_snr_max=} must be above {log_snr_min=}.")
    log_snr = torch.linspace(log_snr_max, log_snr_min, num_steps, dtype=torch.float64)
    alpha_bar_before = torch.ones(1, dtype=torch.float64)
    return betas_from_alpha_bars(torch.cat([alpha_bar_before, torch.sigmoid(log_snr)]), max_beta=1.0)


def betas_from_alpha_bars(alpha_bars: Float64[Tensor, " N"], max_beta: float) -> Betas:
    """Return β_t = 1 - ᾱ_t/ᾱ_{t-1}, capped at `max_beta`, [T].

    Args:
        alpha_bars: ᾱ before the first step, which is 1, then ᾱ_0 … ᾱ_{T-1}; [N] with N = T + 1.

    Raises:
        ValueError: a β outside (0, 1] (1 is valid at the last step alone).
    """
    return check_betas((1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=max_beta))


def check_betas(betas: Betas) -> Betas:
    """Return `betas`, or raise a ValueError if one lies outside (0, 1], or is 1 before the last step."""
    valid = (betas > 0) & (betas <= 1)
    valid[:-1] &= betas[:-1] < 1
    if not valid.all():
        t = int((~valid).nonzero()[0])
        raise ValueError(
            f"every β must lie in (0, 1); the last one may be 1. β is {betas[t].item():g} at t = {t} of {len(betas)}."
        )
    return betas


def _check_num_steps(num_steps: int) -> None:
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"schedule: num_steps must be at least 1 and at most {MAX_STEPS:,}, not {num_steps}.")
