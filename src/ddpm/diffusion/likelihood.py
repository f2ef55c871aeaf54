"""The variational bound on -log p(x_0), term by term, in bits per dimension.

L = L_T + Σ_{t≥1} L_t + L_0 (Ho et al. 2020, equation 5), with t counted from 0. L_T is the prior term. L_t is the
Kullback-Leibler divergence of reverse step t. L_0 is the reconstruction term: the negative log-probability of the
256-level image given the latent with the least noise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ddpm.diffusion.parameterization import Images, PerImage
from ddpm.diffusion.process import GaussianDiffusion, Network, RandnLike


class VLBTerms(NamedTuple):
    """The terms of the bound for each image, in bits per dimension."""

    prior: Float[Tensor, " B"]
    """KL(q(x_T|x_0) ‖ N(0, I)), [B]"""
    kl: Float[Tensor, "B K"]
    """KL(q(x_{t-1}|x_t, x_0) ‖ p_θ(x_{t-1}|x_t)) at K timesteps t ≥ 1, [B, K]"""
    reconstruction: Float[Tensor, " B"]
    """-log-probability of x_0 under the discretised Gaussian of the reverse step t = 0 (the paper's x_1 → x_0), [B]"""

    def total(self, num_steps: int) -> Float[Tensor, " B"]:
        """Return the bound of a chain of T = `num_steps` steps, in bits per dimension, [B].

        The sum over t is estimated from the K timesteps. The estimate is unbiased if each timestep in 1 … T-1 is
        selected with equal probability.
        """
        per_timestep = (num_steps - 1) / max(self.kl.shape[1], 1)
        return self.prior + per_timestep * self.kl.sum(dim=1) + self.reconstruction


def vlb_terms(
    network: Network,
    diffusion: GaussianDiffusion,
    x0: Images,
    timesteps: Int64[Tensor, " K"] | Int64[Tensor, "B K"] | None = None,
    randn_like: RandnLike = torch.randn_like,
) -> VLBTerms:
    """Return the terms of the bound for images `x0`, in bits per dimension.

    Args:
        x0: images of 256 levels in [-1, 1], [B, C, H, W].
        timesteps: timesteps of the divergences, in 1 … T-1: [K] for all images, or [B, K] with one row for each image.
            None means every timestep.
        randn_like: called once for the reconstruction term, then once for each of the K timesteps.

    Raises:
        ValueError: a timestep is outside 1 … T-1.
    """
    (terms,) = vlb_terms_under(network, [diffusion], x0, timesteps, randn_like)
    return terms


def vlb_terms_under(
    network: Network,
    diffusions: Sequence[GaussianDiffusion],
    x0: Images,
    timesteps: Int64[Tensor, " K"] | Int64[Tensor, "B K"] | None = None,
    randn_like: RandnLike = torch.randn_like,
) -> list[VLBTerms]:
    """Return `vlb_terms` for each of `diffusions`, which may differ only in their variance.

    The network's output does not depend on the variance, so the diffusions share the K + 1 calls of the network.

    Raises:
        ValueError: a timestep is outside 1 … T-1.
    """
    chain = diffusions[0]
    if timesteps is None:
        timesteps = torch.arange(1, chain.num_steps, device=x0.device)
    if ((timesteps < 1) | (timesteps >= chain.num_steps)).any():
        raise ValueError(f"the divergences need timesteps in 1 … {chain.num_steps - 1}; t = 0 is the reconstruction.")
    prior = _prior(chain, x0)
    first = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    x_t = chain.q_sample(x0, first, randn_like(x0))
    output = network(x_t, first)
    reconstructions = [_reconstruction(diffusion, x0, x_t, first, output) for diffusion in diffusions]
    divergences: list[list[Tensor]] = [[] for _ in diffusions]
    for t in timesteps.to(x0.device).expand(len(x0), -1).unbind(dim=1):
        x_t = chain.q_sample(x0, t, randn_like(x0))
        output = network(x_t, t)
        for kl, diffusion in zip(divergences, diffusions, strict=True):
            kl.append(_kl(diffusion, x0, x_t, t, output))
    return [
        VLBTerms(prior, torch.stack(kl, dim=1) if kl else x0.new_zeros(len(x0), 0), reconstruction)
        for kl, reconstruction in zip(divergences, reconstructions, strict=True)
    ]


def _prior(diffusion: GaussianDiffusion, x0: Images) -> Float[Tensor, " B"]:
    alpha_bar = diffusion.alpha_bars[-1].item()
    return _bits_per_dim((alpha_bar * x0.square() - alpha_bar - math.log1p(-alpha_bar)) / 2)


def _kl(
    diffusion: GaussianDiffusion, x0: Images, x_t: Images, t: Int64[Tensor, " B"], output: Images
) -> Float[Tensor, " B"]:
    mean, variance, _ = diffusion.p_mean_variance(output, x_t, t)
    true_mean, true_variance = diffusion.q_posterior(x0, x_t, t)
    ratio = true_variance / variance
    return _bits_per_dim(((mean - true_mean).square() / variance + ratio - 1 - ratio.log()) / 2)


def _reconstruction(
    diffusion: GaussianDiffusion, x0: Images, x_t: Images, t: Int64[Tensor, " B"], output: Images
) -> Float[Tensor, " B"]:
    mean, variance, _ = diffusion.p_mean_variance(output, x_t, t)
    return _bits_per_dim(-discretized_gaussian_log_prob(x0, mean, variance))


def discretized_gaussian_log_prob(x0: Images, mean: Images, variance: PerImage) -> Images:
    """Return the log-probability of each 256-level value under N(mean, variance), in nats, [B, C, H, W].

    This is equation 13 of Ho et al. 2020. A value's bin extends half a level (1/255) to each side. The bins of -1
    and 1 extend to infinity, so the 256 probabilities sum to one. The computation is in log space, so no probability
    underflows.

    Args:
        x0: values of 256 levels in [-1, 1], [B, C, H, W].
        mean: [B, C, H, W].
        variance: [B, 1, 1, 1].
    """
    std = variance.sqrt()
    level = ((x0 + 1) * 127.5).round()  # compute edges from levels, so that neighbouring bins have equal edges
    upper = torch.where(level < 255, ((2 * level + 1) / 255 - 1 - mean) / std, math.inf)
    lower = torch.where(level > 0, ((2 * level - 1) / 255 - 1 - mean) / std, -math.inf)
    # Φ(b) - Φ(a) = Φ(-a) - Φ(-b). Use the side with the smaller values: a difference of values near 1 loses digits.
    reflect = lower + upper > 0
    upper, lower = torch.where(reflect, -lower, upper), torch.where(reflect, -upper, lower)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log1p(-torch.exp(torch.special.log_ndtr(lower) - log_upper))


def _bits_per_dim(nats: Images) -> Float[Tensor, " B"]:
    """Convert nats per pixel and channel, [B, C, H, W], to bits per dimension of each image, [B]."""
    return nats.mean(dim=(1, 2, 3)) / math.log(2)
