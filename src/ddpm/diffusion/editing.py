"""What a trained chain makes of images that are there: interpolation, inpainting, and editing by partial noise.

Each is put together from the forward process and the walk of a sampler, whichever it is.
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
    """The x_T from which a deterministic sampler ends near `x0` (Song et al. 2021, section 4.3); [B, C, H, W].

    DDIM backwards over the sampler's timesteps, with one network evaluation less than they are; the more they are,
    the nearer the way back ends. It starts with fresh noise at the least noisy of them: pixels that never vary,
    such as the ground behind a digit, have no other place to take their noise from.

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
    """Raise a ValueError if the sampler draws noise; found out by walking one pixel."""

    def refuse(x: Images) -> Images:
        raise ValueError("an image is encoded for a deterministic sampler: take ddim with eta=0, or dpm_solver.")

    pixel = torch.zeros(1, 1, 1, 1, device=diffusion.get_buffer("_signal").device)
    sampler(lambda x_t, t: torch.zeros_like(x_t), diffusion, pixel, refuse)


def slerp(first: Images, second: Images, fraction: Float[Tensor, " B"]) -> Images:
    """What lies between two encoded images, on the great circle from `first` (0) to `second` (1); [B, C, H, W].

    On the straight line the noise would be too weak in between (Song et al. 2021, section 5.3; Shoemake 1985).
    """
    cosine = torch.cosine_similarity(first.flatten(1), second.flatten(1)).clamp(-1, 1)
    angle = torch.acos(cosine).clamp(min=1e-3)  # where both are the same the circle is a line
    weights = torch.stack([torch.sin((1 - fraction) * angle), torch.sin(fraction * angle)]) / torch.sin(angle)
    of_first, of_second = weights.view(2, -1, 1, 1, 1)
    return of_first * first + of_second * second


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
    """`x0` with its `missing` pixels made anew to go with the others, which stay (RePaint, Lugmayr et al. 2022).

    The network sees the known pixels with the noise of each step, and the walk is that of `repaint_walk`. A sampler
    works on each pixel by itself once the network has answered; so it is enough to replace what the network sees,
    and to leave out at the end what the walk made of the known pixels.

    Raises:
        ValueError: `jump` or `repeats` is not positive.
    """

    def network_with_known_pixels(x_t: Tensor, t: Tensor) -> Tensor:
        return network(torch.where(missing, x_t, diffusion.q_sample(x0, t, randn_like(x0))), t)

    timesteps = sampler.timesteps(diffusion)
    alpha_bars = torch.cat([diffusion.alpha_bars.new_ones(1), diffusion.alpha_bars[timesteps]]).tolist()
    x = randn_like(x0)
    before = None
    for part in repaint_walk(len(timesteps), jump, repeats):
        if part == before:
            kept = alpha_bars[part.stop] / alpha_bars[part.start]
            x = math.sqrt(kept) * x + math.sqrt(1 - kept) * randn_like(x)
        x = sampler(network_with_known_pixels, diffusion, x, randn_like, part)
        before = part
    return torch.where(missing, x, x0)


def repaint_walk(steps: int, jump: int, repeats: int) -> Iterator[slice]:
    """The parts of a walk of `steps` steps: `jump` steps down, and each part `repeats` times, with the noise of as
    many steps added in between, so that the new pixels and the known ones come to fit each other.

    Raises:
        ValueError: `jump` or `repeats` is not positive.
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"inpainting needs a jump and repeats of at least 1, not {jump=}, {repeats=}.")
    for low in reversed(range(0, steps, jump)):
        for _ in range(repeats):
            yield slice(low, min(low + jump, steps))


@torch.no_grad()
def sdedit(
    network: Network, diffusion: GaussianDiffusion, sampler: Sampler, x0: Images, strength: float, randn_like: RandnLike
) -> Images:
    """Images that keep of `x0` what outlives the noise of the share `strength` of the chain (Meng et al. 2022).

    Raises:
        ValueError: `strength` is not in (0, 1], or leaves none of the sampler's timesteps.
    """
    part = steps_within(diffusion, sampler, strength)
    t = sampler.timesteps(diffusion)[part][-1].to(x0.device)
    x_t = diffusion.q_sample(x0, t.expand(len(x0)), randn_like(x0))
    return sampler(network, diffusion, x_t, randn_like, part)


def steps_within(diffusion: GaussianDiffusion, sampler: Sampler, strength: float) -> slice:
    """The sampler's timesteps within the share `strength` of the chain that is next to the image.

    Raises:
        ValueError: `strength` is not in (0, 1], or there are none.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is above 0 and at most 1, not {strength}.")
    timesteps = sampler.timesteps(diffusion)
    steps = int((timesteps < round(strength * diffusion.num_steps)).sum())
    if steps == 0:
        raise ValueError(
            f"strength={strength} leaves none of the sampler's timesteps, the first of which is {timesteps[0]} of "
            f"{diffusion.num_steps}: take more strength or more steps."
        )
    return slice(steps)


def region(name: str, height: int, width: int) -> Bool[Tensor, "H W"]:
    """The pixels in a region of an image, one of `REGIONS`; "center" is the middle half of both sides.

    Raises:
        ValueError: an unknown name.
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
