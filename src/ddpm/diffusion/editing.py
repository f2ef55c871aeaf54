"""Edits of given images: interpolation, inpainting, and SDEdit (noise and denoise in part).

Each edit combines the forward process with the steps of any sampler.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import GaussianDiffusion, Network, RandnLike, check_choice
from ddpm.diffusion.samplers import Sampler

REGIONS = ("left", "right", "top", "bottom", "center")


@torch.no_grad()
def encode(
    network: Network, diffusion: GaussianDiffusion, sampler: Sampler, x0: Images, randn_like: RandnLike
) -> Images:
    """Return the x_T from which a deterministic sampler ends near `x0` (Song et al. 2021, section 4.3); [B, C, H, W].

    This runs DDIM backwards over the sampler's S timesteps, with S - 1 network evaluations. More timesteps give a
    smaller error on the way back. The first latent, at the least noisy timestep, gets fresh noise: pixels that never
    vary, such as the background of a digit, have no other source of noise.

    Args:
        x0: images in [-1, 1], [B, C, H, W].

    Raises:
        ValueError: the sampler is not deterministic.
    """
    check_deterministic(diffusion, sampler)
    timesteps = sampler.timesteps(diffusion).to(x0.device)
    x_t = diffusion.q_sample(x0, timesteps[0].expand(len(x0)), randn_like(x0))
    for t, noisier in pairwise(timesteps):
        now = t.expand(len(x0))
        predicted_x0, epsilon = diffusion.predict_x0_and_epsilon(network(x_t, now), x_t, now)
        x_t = diffusion.q_sample(predicted_x0, noisier.expand(len(x0)), epsilon)
    return x_t


def check_deterministic(diffusion: GaussianDiffusion, sampler: Sampler) -> None:
    """Raise a ValueError if the sampler draws noise. One sampled pixel shows it."""

    def refuse(x: Images) -> Images:
        raise ValueError("an image is encoded for a deterministic sampler: take ddim with eta=0, or dpm_solver.")

    pixel = torch.zeros(1, 1, 1, 1, device=diffusion.get_buffer("_signal").device)
    sampler(lambda x_t, t: torch.zeros_like(x_t), diffusion, pixel, refuse)


def slerp(first: Images, second: Images, fraction: Float[Tensor, " B"]) -> Images:
    """Interpolate two encoded images on the great circle from `first` (fraction 0) to `second` (1); [B, C, H, W].

    Linear interpolation would lower the variance between them (Song et al. 2021, section 5.3; Shoemake 1985).
    """
    cosine = torch.cosine_similarity(first.flatten(1), second.flatten(1)).clamp(-1, 1)
    angle = torch.acos(cosine).clamp(min=1e-3)  # two equal images: slerp becomes linear, without 0/0
    weights = torch.stack([torch.sin((1 - fraction) * angle), torch.sin(fraction * angle)]) / torch.sin(angle)
    first_weight, second_weight = weights.view(2, -1, 1, 1, 1)
    return first_weight * first + second_weight * second


@torch.no_grad()
def inpaint(
    network: Network,
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    x0: Images,
    missing: Bool[Tensor, "H W"],
    randn_like: RandnLike,
    jump: int,
    repeats: int,
) -> Images:
    """Sample the `missing` pixels of `x0` given the other pixels, which do not change (RePaint, Lugmayr et al. 2022).

    The network sees the known pixels with the noise of each timestep; `repaint_parts` gives the order of the steps.
    A sampler step works on each pixel separately after the network's call. So it is enough to replace the known
    pixels in the network's input, and to copy them into the result.

    Args:
        x0: images in [-1, 1], [B, C, H, W].
        missing: True where a pixel is to be sampled, [H, W].
        jump: the number of steps after which the sampler goes back.
        repeats: how often each group of `jump` steps is run.

    Returns:
        Images, [B, C, H, W].

    Raises:
        ValueError: `jump` or `repeats` is not positive.
    """

    def network_with_known_pixels(x_t: Tensor, t: Tensor) -> Tensor:
        return network(torch.where(missing, x_t, diffusion.q_sample(x0, t, randn_like(x0))), t)

    timesteps = sampler.timesteps(diffusion)
    alpha_bars = torch.cat([diffusion.alpha_bars.new_ones(1), diffusion.alpha_bars[timesteps]]).tolist()
    x = randn_like(x0)
    previous = None
    for part in repaint_parts(len(timesteps), jump, repeats):
        if part == previous:  # go back: add the noise of the part's steps
            alpha_bar = alpha_bars[part.stop] / alpha_bars[part.start]
            x = math.sqrt(alpha_bar) * x + math.sqrt(1 - alpha_bar) * randn_like(x)
        x = sampler(network_with_known_pixels, diffusion, x, randn_like, part)
        previous = part
    return torch.where(missing, x, x0)


def repaint_parts(steps: int, jump: int, repeats: int) -> Iterator[slice]:
    """Yield the slices of `steps` sampler steps in RePaint's order, the noisiest first.

    Each slice has `jump` steps (the noisiest may have fewer) and comes `repeats` times in a row. Between two
    repetitions `inpaint` adds the noise of the slice's steps again, so that the new pixels can adapt to the known ones.

    Raises:
        ValueError: `jump` or `repeats` is not positive.
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"inpainting: jump and repeats must be at least 1, not {jump=}, {repeats=}.")
    for low in reversed(range(0, steps, jump)):
        for _ in range(repeats):
            yield slice(low, min(low + jump, steps))


@torch.no_grad()
def sdedit(
    network: Network, diffusion: GaussianDiffusion, sampler: Sampler, x0: Images, strength: float, randn_like: RandnLike
) -> Images:
    """Noise `x0` up to the fraction `strength` of the chain, then sample back from there (SDEdit, Meng et al. 2022).

    A small strength changes details only; strength 1 keeps almost nothing.

    Args:
        x0: images in [-1, 1], [B, C, H, W].
        strength: a fraction of the T timesteps, in (0, 1].

    Returns:
        Images, [B, C, H, W].

    Raises:
        ValueError: `strength` is not in (0, 1], or is below the sampler's first timestep.
    """
    part = steps_within(diffusion, sampler, strength)
    t = sampler.timesteps(diffusion)[part][-1].to(x0.device)
    x_t = diffusion.q_sample(x0, t.expand(len(x0)), randn_like(x0))
    return sampler(network, diffusion, x_t, randn_like, part)


def steps_within(diffusion: GaussianDiffusion, sampler: Sampler, strength: float) -> slice:
    """Return the slice of the sampler's timesteps that lie in the least noisy fraction `strength` of the chain.

    Raises:
        ValueError: `strength` is not in (0, 1], or the slice is empty.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is above 0 and at most 1, not {strength}.")
    timesteps = sampler.timesteps(diffusion)
    steps = int((timesteps < round(strength * diffusion.num_steps)).sum())
    if steps == 0:
        raise ValueError(
            f"strength={strength} is too low for this sampler, whose first timestep is {timesteps[0]} of "
            f"{diffusion.num_steps}: use more strength or more steps."
        )
    return slice(steps)


def region(name: str, height: int, width: int) -> Bool[Tensor, "H W"]:
    """Return a mask [H, W] of the region `name`, one of `REGIONS`; "center" is the middle half of height and width.

    Raises:
        ValueError: the name is unknown.
    """
    check_choice("mask", name, REGIONS)
    y = ((torch.arange(height) + 0.5) / height).view(-1, 1).expand(height, width)
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    match name:
        case "left":
            return x < 0.5
        case "right":
            return x > 0.5
        case "top":
            return y < 0.5
        case "bottom":
            return y > 0.5
        case _:
            return ((x - 0.5).abs() < 0.25) & ((y - 0.5).abs() < 0.25)
