"""Runs the chains of `ddpm denoise` on one image, and records them."""

import math
from collections.abc import Collection

import torch
from rich.progress import track
from torch import Tensor

from ddpm.commands import display
from ddpm.diffusion import Ancestral, GaussianDiffusion
from ddpm.diffusion.process import Network, RandnLike
from ddpm.seeding import ImageNoise, Stream

NUM_SHOWN = 8  # timesteps in the picture and the table
NUM_FRAMES = 36  # of the animation
X0 = -1  # the timestep of the image itself, before the first noising step


class RecordedChain:
    """Records a chain: its RMSE to x_0 at each timestep, and its images at some timesteps.

    Args:
        x0: [1, C, H, W].
        num_steps: T; x_t is recorded for t = -1 (x_0 itself) to T-1.
        kept_timesteps: the timesteps whose images are kept.
    """

    def __init__(self, x0: Tensor, num_steps: int, kept_timesteps: Collection[int]):
        self.x0 = x0
        self.kept_timesteps = kept_timesteps
        self.rmse: list[float] = [math.nan] * (num_steps + 1)
        """for t = -1 … T-1; NaN if no image was recorded"""
        self.images: dict[int, Tensor] = {}
        """images at `kept_timesteps`, [C, H, W] on the CPU"""

    def record(self, t: int, image: Tensor) -> None:
        self.rmse[t + 1] = (image - self.x0).square().mean().sqrt().item()
        if t in self.kept_timesteps:
            self.images[t] = image[0].cpu()

    def rmse_at(self, t: int) -> float:
        return self.rmse[t + 1]


@torch.no_grad()
def run_chains(
    x0: Tensor, diffusion: GaussianDiffusion, network: Network | None, seed: int
) -> dict[str, RecordedChain]:
    """Run the forward chain from x0 [1, C, H, W], the reverse chain of the oracle, and the learned reverse chain.

    Both reverse chains start from the same x_T and use the same noise, so that only the prediction differs. The learned
    chain needs `network`.
    """
    num_steps = diffusion.num_steps
    timesteps = {X0, *evenly(num_steps, NUM_SHOWN), *evenly(num_steps, NUM_FRAMES)}
    names = ["forward", "oracle"] if network is None else ["forward", "oracle", "learned", "predicted_x0"]
    chains = {name: RecordedChain(x0, num_steps, timesteps) for name in names}

    x_T = run_forward(x0, diffusion, ImageNoise(Stream.SAMPLING, seed, 1, indices=[0]), chains["forward"])
    oracle = GaussianDiffusion(diffusion.betas, "x0", clip_x0=False).to(x0.device)
    run_reverse(x_T, oracle, lambda x_t, t: x0, seed, chains["oracle"])
    if network is not None:
        run_reverse(x_T, diffusion, network, seed, chains["learned"], chains["predicted_x0"])
    return chains


def evenly(num_steps: int, number: int) -> list[int]:
    """Return evenly spaced timesteps from 0 to T-1, ascending."""
    return sorted(set(torch.linspace(0, num_steps - 1, number).round().long().tolist()))


def run_forward(x0: Tensor, diffusion: GaussianDiffusion, randn_like: RandnLike, chain: RecordedChain) -> Tensor:
    """Return x_T of the forward chain, q(x_t|x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I) (Ho et al. 2020, equation 2)."""
    x_t = x0
    chain.record(X0, x_t)
    for t, beta in enumerate(diffusion.betas.tolist()):
        x_t = math.sqrt(1 - beta) * x_t + math.sqrt(beta) * randn_like(x_t)
        chain.record(t, x_t)
    return x_t


def run_reverse(
    x_T: Tensor,
    diffusion: GaussianDiffusion,
    network: Network,
    seed: int,
    chain: RecordedChain,
    predicted: RecordedChain | None = None,
) -> None:
    """Run the reverse chain from x_T; `predicted` records the predicted x_0 of each step."""
    steps = Ancestral().iterate(network, diffusion, x_T, ImageNoise(Stream.SAMPLING, seed, 2, indices=[0]))
    for step in track(steps, "reverse chain", diffusion.num_steps, console=display.console, transient=True):
        chain.record(step.t, step.x_t)
        if predicted is not None:
            predicted.record(step.t, step.x0)
    chain.record(X0, step.x_prev)
