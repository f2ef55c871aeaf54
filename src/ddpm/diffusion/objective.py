"""Training objectives, and the distributions of training timesteps.

To add an objective, write a subclass of `Objective` and a YAML in `conf/objective/`.
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

    The caller draws t and ε. So they do not depend on the number of processes, and a resumed run draws the same ones.
    An objective with trainable weights is also an `nn.Module`: its weights are trained and saved with the network's.
    Keep weights that must be neither trained nor saved, such as a teacher's, in a plain object.
    """

    @abstractmethod
    def __call__(
        self, network: Network, diffusion: GaussianDiffusion, x0: Images, t: Timesteps, eps: Images, **condition: Any
    ) -> Float[Tensor, " B"]:
        """Return a loss for each image, [B].

        Args:
            network: network(x_t, t, **condition) -> output [B, C, H, W].
            x0: images in [-1, 1], [B, C, H, W].
            t: timesteps 0 … T-1, int64 [B].
            eps: standard normal noise, [B, C, H, W].
            condition: further arguments of the network, such as labels.
        """

    def check(self, model: Any) -> None:  # noqa: B027
        """Check before training that the objective fits the model, a `DDPM`. Does nothing by default.

        Raises:
            UserError: the objective does not fit it.
        """


class WeightedMSE(Objective):
    """The mean over C, H, W of w_t · (output - target)² for each image; the target is `diffusion.target`."""

    @abstractmethod
    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        """Return the weight w_t of the squared error of the network's output, float64, [T]."""

    def __call__(
        self, network: Network, diffusion: GaussianDiffusion, x0: Images, t: Timesteps, eps: Images, **condition: Any
    ) -> Float[Tensor, " B"]:
        x_t = diffusion.q_sample(x0, t, eps)
        output = network(x_t, t, **condition)
        squared_error = (output.float() - diffusion.target(x0, x_t, t, eps)).square().mean(dim=(1, 2, 3))
        weights = self.weights(diffusion).float()
        if t.is_cuda:  # the copy of pinned memory does not wait for the GPU
            weights = weights.pin_memory()
        return weights.to(t.device, non_blocking=t.is_cuda)[t] * squared_error


class Simple(WeightedMSE):
    """The mean squared error of the network's output (L_simple of Ho et al. 2020, equation 14)."""

    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        return torch.ones_like(diffusion.betas)


class WeightedX0MSE(WeightedMSE):
    """A weighted squared error of x_0. The same predicted x_0 gives the same loss under every prediction type."""

    @abstractmethod
    def x0_weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        """Return the weight of the squared x_0 error, float64, [T]."""

    def weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        slope = x0_error_slope(diffusion.prediction, diffusion.coefficients)
        return self.x0_weights(diffusion) * slope**2


class VLB(WeightedX0MSE):
    """The variational bound: the KL divergence of one step, in nats per dimension (Ho et al. 2020, equation 8).

    At t = 0 (the paper's t = 1) the loss is the squared error of the Gaussian -log p(x_0|x_1). Terms that do not depend
    on the network are left out. So T times the mean over t is the bound without the prior term, up to a constant.

    The weight at t = 0 is inversely proportional to the decoder's variance. If β_1 is much smaller than β_0, as with
    `log_snr_linear`, variance="small" gives t = 0 most of the weight, and training is unstable: use "large".
    """

    def x0_weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        return diffusion.coefficients.posterior_x0**2 / (2 * diffusion.reverse_variance)


class MinSNR(WeightedX0MSE):
    """The squared x_0 error with the weight min(SNR_t, γ) (Hang et al. 2023, equation 6).

    Args:
        gamma: γ, the largest weight.

    Raises:
        ValueError: `gamma` is not positive.
    """

    def __init__(self, gamma: float = 5.0):
        if gamma <= 0:
            raise ValueError(f"min_snr: gamma must be positive, not {gamma}.")
        self.gamma = gamma

    def x0_weights(self, diffusion: GaussianDiffusion) -> Float64[Tensor, " T"]:
        snr = diffusion.alpha_bars / (1 - diffusion.alpha_bars)
        return snr.clamp(max=self.gamma)


def uniform(batch_size: int, num_steps: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Draw independent timesteps, uniform on 0 … T-1; int64 [B] on the CPU."""
    return torch.randint(num_steps, (batch_size,), generator=generator)


def low_discrepancy(batch_size: int, num_steps: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Draw timesteps that are spread evenly over the batch (Kingma et al. 2021, appendix I.1); int64 [B] on the CPU.

    Each timestep is uniform on 0 … T-1; one random number shifts all of them. Their order is random, so that the
    slices of the batch on several devices are also spread.
    """
    shared = torch.rand(1, generator=generator, dtype=torch.float64)
    positions = (shared + torch.randperm(batch_size, generator=generator) / batch_size) % 1
    return (positions * num_steps).long().clamp(max=num_steps - 1)
