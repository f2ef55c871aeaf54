"""Training objectives, and how timesteps are drawn.

An objective of your own is a subclass of `Objective` and a YAML in `conf/objective/`.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ddpm.diffusion.parameterization import Images, x0_error_slope
from ddpm.diffusion.process import GaussianDiffusion, Network, Timesteps


class Objective(ABC):
    """Computes the losses of a batch. It calls the network itself, as often as it needs.

    The timesteps and the noise are drawn by the caller, so that they do not depend on the number of processes and a
    resumed run draws the same ones. An objective with weights to be trained is also an `nn.Module`: its weights are
    trained and saved with the network's. Weights that must not be, such as a teacher's, are kept in a plain object.
    """

    @abstractmethod
    def __call__(
        self, network: Network, diffusion: GaussianDiffusion, x0: Images, t: Timesteps, eps: Images, **condition: Any
    ) -> Float[Tensor, " B"]:
        """Losses [B] of the images `x0`.

        Args:
            network: network(x_t, t, **condition) -> output [B, C, H, W].
            x0: images in [-1, 1], [B, C, H, W].
            t: timesteps 0 … T-1, int64 [B].
            eps: standard normal noise, [B, C, H, W].
            condition: what else the network takes, such as labels.
        """


class WeightedMSE(Objective):
    """Loss of an image: the mean over C, H, W of w_t · (output - target)²."""

    @abstractmethod
    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        """The weight w_t on the squared error of the network's output at each timestep."""

    def __call__(
        self, network: Network, diffusion: GaussianDiffusion, x0: Images, t: Timesteps, eps: Images, **condition: Any
    ) -> Float[Tensor, " B"]:
        x_t = diffusion.q_sample(x0, t, eps)
        output = network(x_t, t, **condition)
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
