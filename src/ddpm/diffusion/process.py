"""The forward chain q, its posterior, and the reverse chain p_θ with fixed variance."""

import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from ddpm.diffusion import parameterization
from ddpm.diffusion.parameterization import PREDICTIONS, Coefficients, Images, PerImage, Prediction
from ddpm.diffusion.schedules import check_betas

Variance = Literal["small", "large", "optimal"]
VARIANCES: tuple[Variance, ...] = get_args(Variance)

Timesteps = Int64[Tensor, " B"]
Network = Callable[..., Tensor]
"""network(x_t [B, C, H, W], t int64 [B], **condition) -> output [B, C, H, W]"""
RandnLike = Callable[[Tensor], Tensor]
"""randn_like(x) -> fresh standard normal noise in the shape of x"""


class GaussianDiffusion(nn.Module):
    """The Gaussian diffusion process of Ho et al. 2020, whose reverse steps have a fixed covariance σ_t² I.

    A timestep t is an int64 in 0 … T-1, one less than in the paper. So the forward step t = 0 adds the first noise to
    the image, and the reverse step t = 0 returns the image.

    The coefficients are computed in float64 on the CPU. Non-persistent float32 copies of them move with the
    module to its device.

    Args:
        betas: β_t, float64, [T]; see `ddpm.diffusion.schedules`.
        prediction: the type of the network's output: "epsilon", "x0", "v" or "mean".
        variance: σ_t² of the reverse step. "small" is β̃_t of the posterior, optimal if the data is a single point.
            "large" is β_t, optimal if the data is N(0, I) (Ho et al. 2020, section 3.2). "optimal" is
            β̃_t + c_0² · `x0_mse`, optimal for the KL of this network (after Bao et al. 2022, theorem 1); c_0 is the
            coefficient of x_0 in the posterior mean. It does not minimize the reconstruction term at t = 0.
        x0_mse: the network's mean squared x_0 error at each timestep, [T]; only "optimal" needs it.
        clip_x0: clamp the predicted x_0 to [-1, 1] inside the reverse step. Losses use the unclipped x_0.

    Attributes:
        num_steps: T.
        betas: β_t, float64, CPU, [T].
        alpha_bars: ᾱ_t, float64, CPU, [T].

    Raises:
        ValueError: a β is outside (0, 1) (the last β may be 1), the prediction or variance is unknown, `x0_mse` is
            missing or invalid for "optimal", or the prediction is "epsilon" and ᾱ_T is (almost) 0.

    Warns:
        UserWarning: ᾱ_T is above 1e-2, so x_T is not pure noise.
    """

    def __init__(
        self,
        betas: Float64[Tensor, " T"],
        prediction: Prediction = "epsilon",
        variance: Variance = "small",
        x0_mse: Float[Tensor, " T"] | None = None,
        clip_x0: bool = True,
    ):
        super().__init__()
        check_choice("prediction", prediction, PREDICTIONS)
        check_choice("variance", variance, VARIANCES)
        self.betas = check_betas(betas.detach().cpu().double())
        self.alpha_bars = torch.cumprod(1 - self.betas, dim=0)
        self.num_steps = len(betas)
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.x0_mse = None if x0_mse is None else x0_mse.detach().cpu().double()
        self.clip_x0 = clip_x0
        self._check_terminal_signal()

        alpha_bars_before = previous(self.alpha_bars)
        sigma2, sigma2_before = 1 - self.alpha_bars, 1 - alpha_bars_before
        posterior_variance = self.betas * sigma2_before / sigma2
        self.coefficients = Coefficients(
            signal=self.alpha_bars.sqrt(),
            sigma=sigma2.sqrt(),
            posterior_x0=alpha_bars_before.sqrt() * self.betas / sigma2,
            posterior_x_t=(1 - self.betas).sqrt() * sigma2_before / sigma2,
        )
        """coefficients of all T timesteps, float64, CPU, [T] each"""
        self.reverse_variance = self._reverse_variance_table(posterior_variance)
        """σ_t² of the reverse chain, float64, CPU, [T]"""
        tables = self.coefficients._asdict() | {
            "posterior_variance": posterior_variance,
            "reverse_variance": self.reverse_variance,
        }
        for name, table in tables.items():
            self.register_buffer(f"_{name}", table.float(), persistent=False)

    def _check_terminal_signal(self) -> None:
        last = self.alpha_bars[-1].item()
        # Below this limit, a float32 rounding error of ε becomes as large as the image after the division by √ᾱ.
        if self.prediction == "epsilon" and last < torch.finfo(torch.float32).eps ** 2:
            raise ValueError(
                f"ε-prediction cannot represent a zero terminal signal-to-noise ratio (ᾱ_T = {last:g}): x_T is pure "
                "noise, and ε does not determine the image. Use prediction v or x0, or another schedule."
            )
        if last > 1e-2:
            warnings.warn(
                f"ᾱ_T = {last:.3g} leaves signal in x_T, but sampling starts from pure noise, N(0, I). "
                "Use more noise: more steps, or a larger last β.",
                stacklevel=3,
            )

    def _reverse_variance_table(self, posterior_variance: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
        match self.variance:
            case "small":
                # A Gaussian of variance β̃_0 = 0 has no density, so t = 0 uses the variance of t = 1, as the code of
                # Ho et al. 2020 does. A chain of one step has no t = 1 and uses β.
                first = posterior_variance[1:2] if self.num_steps > 1 else self.betas
                return torch.cat([first, posterior_variance[1:]])
            case "large":
                return self.betas
            case "optimal":
                if self.x0_mse is None:
                    raise ValueError("variance=optimal needs x0_mse, the network's mean squared x0 error at each t.")
                if self.x0_mse.shape != self.betas.shape or (self.x0_mse < 0).any():
                    raise ValueError(f"x0_mse must hold {self.num_steps} non-negative numbers, one per timestep.")
                return posterior_variance + self.coefficients.posterior_x0**2 * self.x0_mse

    def _table(self, name: str, t: Timesteps) -> PerImage:
        return self.get_buffer(f"_{name}")[t].view(-1, 1, 1, 1)

    def coefficients_at(self, t: Timesteps) -> Coefficients:
        """Return the coefficients of timesteps `t` [B], float32, [B, 1, 1, 1] each."""
        return Coefficients(*(self._table(name, t) for name in Coefficients._fields))

    def q_sample(self, x0: Images, t: Timesteps, eps: Images) -> Images:
        """Return x_t ~ q(x_t|x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I), float32, [B, C, H, W] (Ho et al. 2020, equation 4).

        The result is float32 for every input dtype, also under autocast, because bfloat16 would round away the noise
        of the first timesteps.

        Args:
            x0: images in [-1, 1], [B, C, H, W].
            t: timesteps 0 … T-1, int64 [B].
            eps: standard normal noise, [B, C, H, W].
        """
        return self._table("signal", t) * x0.float() + self._table("sigma", t) * eps.float()

    def q_posterior(self, x0: Images, x_t: Images, t: Timesteps) -> tuple[Images, PerImage]:
        """Return mean [B, C, H, W] and variance [B, 1, 1, 1] of q(x_{t-1}|x_t, x_0) (Ho et al. 2020, equations 6, 7).

        At t = 0 the mean is x_0 and the variance is 0.
        """
        mean = parameterization.from_x0("mean", x0, x_t, self.coefficients_at(t))
        return mean, self._table("posterior_variance", t)

    def target(self, x0: Images, x_t: Images, t: Timesteps, eps: Images) -> Images:
        """Return the training target of the network at x_t = `q_sample(x0, t, eps)`, [B, C, H, W]."""
        if self.prediction == "epsilon":
            return eps  # exact, while (x_t - √ᾱ x_0)/√(1-ᾱ) loses precision if √(1-ᾱ) is small
        if self.prediction == "v":
            at = self.coefficients_at(t)
            return at.signal * eps - at.sigma * x0
        return parameterization.from_x0(self.prediction, x0, x_t, self.coefficients_at(t))

    def to_x0(self, output: Images, x_t: Images, t: Timesteps) -> Images:
        """Convert the network's output into x_0, [B, C, H, W], without clipping."""
        return parameterization.to_x0(self.prediction, output.float(), x_t, self.coefficients_at(t))

    def to_epsilon(self, output: Images, x_t: Images, t: Timesteps) -> Images:
        """Convert the network's output into ε, [B, C, H, W], without clipping."""
        if self.prediction == "epsilon":
            return output.float()
        if self.prediction == "v":  # avoids the division by √(1-ᾱ), which loses precision if √(1-ᾱ) is small
            at = self.coefficients_at(t)
            return at.sigma * x_t + at.signal * output.float()
        return self.x0_to_epsilon(self.to_x0(output, x_t, t), x_t, t)

    def x0_to_epsilon(self, x0: Images, x_t: Images, t: Timesteps) -> Images:
        """Return the ε for which x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, [B, C, H, W]."""
        return parameterization.from_x0("epsilon", x0, x_t, self.coefficients_at(t))

    def predict_x0_and_epsilon(self, output: Images, x_t: Images, t: Timesteps) -> tuple[Images, Images]:
        """Convert the network's output into x_0 and ε, [B, C, H, W] each.

        With `clip_x0`, x_0 is clamped to [-1, 1] and ε is computed from the clamped x_0.
        """
        if not self.clip_x0:
            return self.to_x0(output, x_t, t), self.to_epsilon(output, x_t, t)
        x0 = self.to_x0(output, x_t, t).clamp(-1, 1)
        return x0, self.x0_to_epsilon(x0, x_t, t)

    def p_mean_variance(self, output: Images, x_t: Images, t: Timesteps) -> tuple[Images, PerImage, Images]:
        """Return mean [B, C, H, W] and variance [B, 1, 1, 1] of p_θ(x_{t-1}|x_t), and the predicted x_0 [B, C, H, W].

        The mean is the posterior mean with the predicted x_0 in place of x_0 (Ho et al. 2020, equation 11; Luo 2022,
        equation 93). At t = 0, where β̃_0 = 0, the variance is β̃_1 for "small", β_0 for "large" and `x0_mse[0]` for
        "optimal". It is the variance of the decoder (the paper's p_θ(x_0|x_1)).
        """
        x0 = self.to_x0(output, x_t, t)
        if self.clip_x0:
            x0 = x0.clamp(-1, 1)
        if self.prediction == "mean" and not self.clip_x0:
            mean = output.float()  # converting to x_0 and back would amplify rounding errors by 1/c_0
        else:
            mean, _ = self.q_posterior(x0, x_t, t)
        return mean, self._table("reverse_variance", t), x0

    def p_sample(self, output: Images, x_t: Images, t: Timesteps, eps: Images) -> Images:
        """Return x_{t-1} ~ p_θ(x_{t-1}|x_t), [B, C, H, W] (Ho et al. 2020, algorithm 2).

        At t = 0 the result is the mean, without noise.

        Args:
            output: the network's output for x_t, [B, C, H, W].
            eps: standard normal noise, [B, C, H, W].
        """
        mean, variance, _ = self.p_mean_variance(output, x_t, t)
        not_last = (t > 0).view(-1, 1, 1, 1)
        return mean + not_last * variance.sqrt() * eps

    def subsequence(self, timesteps: Int64[Tensor, " S"]) -> "GaussianDiffusion":
        """Return the diffusion process over a subset of the timesteps, with the same ᾱ and with β computed from them.

        Step i of the result is timestep `timesteps[i]` of the full chain (Nichol & Dhariwal 2021, equation 19; Song et
        al. 2021, section 4.2). Call the network with the timestep of the full chain, and convert the network's output
        with `to_x0` of the full chain. The result therefore has `prediction="x0"`.

        Args:
            timesteps: ascending, int64 [S].
        """
        alpha_bars = self.alpha_bars[timesteps]
        x0_mse = None if self.x0_mse is None else self.x0_mse[timesteps]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the constructor of the full chain has already given the warning
            chain = GaussianDiffusion(1 - alpha_bars / previous(alpha_bars), "x0", self.variance, x0_mse, self.clip_x0)
        return chain.to(self.get_buffer("_signal").device)


def previous(alpha_bars: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """Return ᾱ one step earlier for each step, [T]; it is 1 before the first step."""
    return torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name}={value} is none of {', '.join(choices)}.")
