"""Training objectives: a weight on the squared error at each timestep, and how timesteps are drawn.

An objective of your own is a callable like `WeightedMSE.__call__`, and a YAML in `conf/objective/`.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ddpm.diffusion.parameterization import Images, x0_error_slope
from ddpm.diffusion.process import GaussianDiffusion, Timesteps


class WeightedMSE(ABC):
    """Loss of an image: the mean over C, H, W of w_t · (output - target)²."""

    @abstractmethod
    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        """w_t, on the squared error of the network's own output."""

    def __call__(
        self,
        diffusion: GaussianDiffusion,
        output: Images,
        x0: Images,
        x_t: Images,
        t: Timesteps,
        eps: Images,
    ) -> Float[Tensor, " B"]:
        """Losses of a batch, [B], for the network's `output` at x_t = `diffusion.q_sample(x0, t, eps)`."""
        squared_error = (output.float() - diffusion.target(x0, x_t, t, eps)).square().mean(dim=(1, 2, 3))
        weights = self.weights(diffusion).float().to(t.device)
        return weights[t] * squared_error


class Simple(WeightedMSE):
    """The plain mean squared error of what the network predicts (L_simple of Ho et al. 2020, equation 14)."""

    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        return torch.ones_like(diffusion.betas)


class WeightedX0MSE(WeightedMSE):
    """A weight on the x_0 error; the value does not depend on what the network predicts."""

    @abstractmethod
    def x0_weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        """The weight on the squared x_0 error."""

    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        slope = x0_error_slope(diffusion.prediction, diffusion.coefficients)
        return self.x0_weights(diffusion) * slope**2


class VLB(WeightedX0MSE):
    """The variational bound: one step's KL divergence in nats per dimension (Ho et al. 2020, equation 8).

    At t = 0 it is the Gaussian log-likelihood's term. Constants in the network are left out. T times its mean
    over t is the bound without the prior.
    """

    def x0_weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        return diffusion.coefficients.mean_x0**2 / (2 * diffusion.reverse_variance)


class MinSNR(WeightedX0MSE):
    """min(SNR_t, γ) on the squared x_0 error (Hang et al. 2023, equation 6)."""

    def __init__(self, gamma: float = 5.0):
        if gamma <= 0:
            raise ValueError(f"min_snr: gamma must be positive, not {gamma}.")
        self.gamma = gamma

    def x0_weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        snr = diffusion.alpha_bars / (1 - diffusion.alpha_bars)
        return snr.clamp(max=self.gamma)


def uniform(batch_size: int, num_steps: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Independent timesteps, uniform on 0 … T-1; [B] on the CPU."""
    return torch.randint(num_steps, (batch_size,), generator=generator)


def low_discrepancy(batch_size: int, num_steps: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Uniform timesteps spread evenly over the batch by one shared draw (Kingma et al. 2021, appendix I.1); [B].

    In random order, so that the slices of a batch that several devices take are spread as well.
    """
    shared = torch.rand(1, generator=generator, dtype=torch.float64)
    positions = (shared + torch.randperm(batch_size, generator=generator) / batch_size) % 1
    return (positions * num_steps).long().clamp(max=num_steps - 1)
