"""Closed forms in float64, written without ddpm.diffusion, that the tests compare it with.

The posterior is in precision form (Bayes' rule for two Gaussians), not in the usual formulas for c_0 and c_t.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import schedules
from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.process import GaussianDiffusion, Network, Variance
from ddpm.diffusion.samplers import Sampler

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "x0", "v", "mean")
VARIANCES: tuple[Variance, ...] = ("small", "large", "optimal")
Schedule = Callable[[int], Tensor]
SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "log_snr_linear": schedules.log_snr_linear,
}


@st.composite
def betas_of_any_schedule(draw: st.DrawFn, max_steps: int = 120) -> Tensor:
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    return SCHEDULES[name](draw(st.integers(21, max_steps)))


def column(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def seeded_randn_like(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


class Chain(NamedTuple):
    """A forward chain computed from ᾱ, with q(x_{t-1}|x_t, x_0) = N(c0·x_0 + ct·x_t, variance); float64, [T] each."""

    alpha_bars: Tensor
    betas: Tensor
    c0: Tensor
    ct: Tensor
    variance: Tensor

    @classmethod
    def of(cls, alpha_bars: Tensor) -> "Chain":
        ab = alpha_bars.double()
        previous = torch.cat([torch.ones(1, dtype=torch.float64), ab[:-1]])
        alphas = ab / previous
        betas = 1 - alphas
        # q(x_{t-1}|x_0) has the precision 1/(1-ᾱ_{t-1}), the likelihood of x_t the precision α/β; precisions add.
        prior_precision, step_precision = 1 / (1 - previous[1:]), alphas[1:] / betas[1:]
        variance = 1 / (prior_precision + step_precision)
        c0 = variance * prior_precision * previous[1:].sqrt()
        ct = variance * alphas[1:].sqrt() / betas[1:]
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return cls(ab, betas, torch.cat([one, c0]), torch.cat([zero, ct]), torch.cat([zero, variance]))

    @classmethod
    def of_betas(cls, betas: Tensor) -> "Chain":
        return cls.of(torch.cumprod(1 - betas.double(), 0))

    def reverse_variance(self, kind: str, x0_mse: Tensor | None = None) -> Tensor:
        """Return the variance of p(x_{t-1}|x_t) that the bound uses, t = 0 included, [T]."""
        if kind == "optimal":
            assert x0_mse is not None
            return self.variance + self.c0**2 * x0_mse
        if kind == "large":
            return self.betas
        return torch.cat([self.variance[1:2], self.variance[1:]])

    def as_output(self, prediction: str, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a predicted `x0` into the prediction type `prediction`, in float64."""
        ab, c0, ct = (column(table[t]) for table in (self.alpha_bars, self.c0, self.ct))
        x0, x_t = x0.double(), x_t.double()
        eps = (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()
        return {
            "x0": x0,
            "epsilon": eps,
            "v": ab.sqrt() * eps - (1 - ab).sqrt() * x0,
            "mean": c0 * x0 + ct * x_t,
        }[prediction]

    def network(self, prediction: str, x0_of: Callable[[Tensor, Tensor], Tensor]) -> Network:
        """Return a network whose predicted x_0 is x0_of(x_t, ᾱ_t [B, 1, 1, 1])."""

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            x0 = x0_of(x_t.double(), column(self.alpha_bars[t]))
            return self.as_output(prediction, x0, x_t, t).to(x_t.dtype)

        return network


class GaussianData(NamedTuple):
    """Independent pixels from N(mean, std²)."""

    mean: float
    std: float

    def gain(self, ab: Tensor) -> Tensor:
        return self.std**2 * ab.sqrt() / (ab * self.std**2 + 1 - ab)

    def best_x0(self, x_t: Tensor, ab: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        return self.mean + self.gain(ab) * (x_t - ab.sqrt() * self.mean)

    def x0_variance(self, ab: Tensor) -> Tensor:
        """Return Var[x_0 | x_t], the mean squared error of best_x0."""
        return self.std**2 * (1 - ab) / (ab * self.std**2 + 1 - ab)

    def marginal(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(x_t)."""
        return ab.sqrt() * self.mean, ab * self.std**2 + 1 - ab


class MixtureData(NamedTuple):
    """Images from Σ_k weights[k]·N(means[..., k], std² I); weights [K], means [C, H, W, K]."""

    weights: Tensor
    means: Tensor
    std: float

    def best_x0(self, x_t: Tensor, ab: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        ab = ab.unsqueeze(-1)
        spread = ab * self.std**2 + 1 - ab
        distance = x_t.unsqueeze(-1) - ab.sqrt() * self.means
        log_fit = -(distance**2 / (2 * spread)).sum(dim=(1, 2, 3), keepdim=True)
        chosen = torch.softmax(self.weights.log() + log_fit, dim=-1)
        return (chosen * (self.means + self.std**2 * ab.sqrt() / spread * distance)).sum(-1)


def gaussian_kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    """Return KL(N(mean_q, var_q) ‖ N(mean_p, var_p)) in nats."""
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


class Response(NamedTuple):
    """The coefficients of a sampler that is affine in x_T and in the noise of each step."""

    offset: float
    of_x_T: float
    of_eps: Tensor

    def mean(self, mean_T: float) -> float:
        return self.offset + self.of_x_T * mean_T

    def variance(self, variance_T: float) -> float:
        return self.of_x_T**2 * variance_T + float((self.of_eps**2).sum())


def response(sampler: Sampler, diffusion: GaussianDiffusion, network: Network) -> list[Response]:
    """Return the coefficients after each step, without sampling error.

    All inputs are 0 in row 0; x_T is 1 in row 1; the k-th noise is 1 in row 2+k.
    """
    rows = diffusion.num_steps + 3
    x_T = torch.zeros(rows, 1, 1, 1)
    x_T[1] = 1
    calls = 0

    def randn_like(x: Tensor) -> Tensor:
        nonlocal calls
        z = torch.zeros_like(x)
        z[2 + calls] = 1
        calls += 1
        return z

    answers = []
    for step in sampler.iterate(network, diffusion, x_T, randn_like):
        x = step.x_prev.flatten().double()
        answers.append(Response(x[0].item(), (x[1] - x[0]).item(), x[2:] - x[0]))
    return answers


def called_timesteps(sampler: Sampler, diffusion: GaussianDiffusion) -> list[int]:
    """Return the timesteps at which the sampler calls the network, in order."""
    called: list[int] = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (len(x_t),)
        assert (t == t[0]).all()
        called.append(int(t[0]))
        return torch.zeros_like(x_t)

    sampler(network, diffusion, torch.zeros(2, 1, 1, 1))
    return called


def network_that_returns(output: Tensor) -> Network:
    return lambda x_t, t: output
