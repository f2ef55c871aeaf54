"""The variational bound on -log p(x_0), term by term, in bits per dimension.

L = L_T + Σ_{t≥1} L_t + L_0 (Ho et al. 2020, equation 5): the prior, the Kullback-Leibler divergences of the reverse
steps, and the reconstruction of the 256-level image from the least noisy latent.
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
    """The bound's terms for each image, in bits per dimension."""

    prior: Float[Tensor, " B"]
    """KL(q(x_T|x_0) ‖ N(0, I))"""
    kl: Float[Tensor, "B K"]
    """KL(q(x_{t-1}|x_t, x_0) ‖ p_θ(x_{t-1}|x_t)) at K timesteps t ≥ 1"""
    reconstruction: Float[Tensor, " B"]
    """-log p_θ(x_0|x_1), of the discretised Gaussian"""

    def total(self, num_steps: int) -> Float[Tensor, " B"]:
        """The bound of a chain of `num_steps` steps; unbiased where the K timesteps cover 1 … T-1 evenly."""
        per_timestep = (num_steps - 1) / max(self.kl.shape[1], 1)
        return self.prior + per_timestep * self.kl.sum(dim=1) + self.reconstruction


def vlb_terms(
    network: Network,
    diffusion: GaussianDiffusion,
    x0: Images,
    timesteps: Int64[Tensor, " K"] | Int64[Tensor, "B K"] | None = None,
    randn_like: RandnLike = torch.randn_like,
) -> VLBTerms:
    """The bound's terms for images `x0` of 256 levels in [-1, 1].

    Args:
        timesteps: where to evaluate the divergences, in 1 … T-1, the same for all images or a row each;
            all of them when None.
        randn_like: called once a timestep, first for the reconstruction.

    Raises:
        ValueError: a timestep outside 1 … T-1.
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
    """`vlb_terms` under each of `diffusions`, which differ in nothing but their variance.

    The mean of the reverse step does not depend on it, so the network is asked as often as for one of them.
    """
    chain = diffusions[0]
    if timesteps is None:
        timesteps = torch.arange(1, chain.num_steps, device=x0.device)
    if ((timesteps < 1) | (timesteps >= chain.num_steps)).any():
        raise ValueError(f"divergences are at timesteps 1 … {chain.num_steps - 1}; t = 0 is the reconstruction.")
    prior = _prior(chain, x0)
    first = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    x_t = chain.q_sample(x0, first, randn_like(x0))
    output = network(x_t, first)
    reconstructions = [_reconstruction(diffusion, x0, x_t, first, output) for diffusion in diffusions]
    divergences: list[list[Tensor]] = [[] for _ in diffusions]
    for t in timesteps.to(x0.device).expand(len(x0), -1).unbind(dim=1):
        x_t = chain.q_sample(x0, t, randn_like(x0))
        output = network(x_t, t)
        for of_one, diffusion in zip(divergences, diffusions, strict=True):
            of_one.append(_kl(diffusion, x0, x_t, t, output))
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
    """log-probability, in nats, of each 256-level value under N(mean, variance) (Ho et al. 2020, equation 13).

    A value's bin reaches half a level (1/255) to either side; the bins of -1 and 1 are open outwards, so that
    the 256 probabilities sum to one. In log space throughout: no bin's probability underflows.
    """
    std = variance.sqrt()
    level = ((x0 + 1) * 127.5).round()  # edges from the level, so that neighbouring bins share theirs to the bit
    upper = torch.where(level < 255, ((2 * level + 1) / 255 - 1 - mean) / std, math.inf)
    lower = torch.where(level > 0, ((2 * level - 1) / 255 - 1 - mean) / std, -math.inf)
    # Φ(b) - Φ(a) = Φ(-a) - Φ(-b): take the side where both are small and their difference keeps its digits.
    reflect = lower + upper > 0
    upper, lower = torch.where(reflect, -lower, upper), torch.where(reflect, -upper, lower)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log1p(-torch.exp(torch.special.log_ndtr(lower) - log_upper))


def _bits_per_dim(nats: Images) -> Float[Tensor, " B"]:
    """Nats of each pixel and channel to each image's bits per dimension."""
    return nats.mean(dim=(1, 2, 3)) / math.log(2)
