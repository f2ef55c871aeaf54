"""The fixed forward chain q, its posterior, and the reverse chain p_θ with fixed variance."""

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
"""network(x_t [B, C, H, W], t [B], **condition) -> output [B, C, H, W]"""
RandnLike = Callable[[Tensor], Tensor]
"""randn_like(x) -> fresh standard normal noise of x's shape"""


class GaussianDiffusion(nn.Module):
    """The Gaussian diffusion of Ho et al. 2020 with a covariance σ_t² I that is not learned.

    A timestep t is an int64 in 0 … T-1; t = 0 is one noising step (the paper's t = 1), and ᾱ before it is 1.
    Tables are computed in float64 on the CPU and kept as float32 buffers that follow the device and stay out
    of the state dict.

    Args:
        betas: β_t, float64, [T]; see `ddpm.diffusion.schedules`.
        prediction: what the network outputs: "epsilon", "x0", "v" or "mean".
        variance: σ_t² of the reverse step. "small": the posterior's β̃_t, right for data that is one point;
            "large": β_t, right for white noise (Ho et al. 2020, section 3.2); "optimal": β̃_t + c_0² · `x0_mse`,
            the best for this network (after Bao et al. 2022, theorem 1).
        x0_mse: the network's mean squared x_0 error at each timestep, [T]; needed by "optimal" alone.
        clip_x0: clamp the predicted x_0 to [-1, 1] inside the reverse step. Losses never clip.

    Attributes:
        num_steps: T.
        betas, alpha_bars: float64 on the CPU, [T].

    Raises:
        ValueError: a β outside (0, 1), an unknown prediction or variance, "optimal" without `x0_mse`, or
            ε-prediction on a schedule whose last step has no signal left.
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

        alpha_bars_before = torch.cat([self.alpha_bars.new_ones(1), self.alpha_bars[:-1]])
        noise_variance, noise_variance_before = 1 - self.alpha_bars, 1 - alpha_bars_before
        posterior_variance = self.betas * noise_variance_before / noise_variance
        self.coefficients = Coefficients(
            signal=self.alpha_bars.sqrt(),
            sigma=noise_variance.sqrt(),
            mean_x0=alpha_bars_before.sqrt() * self.betas / noise_variance,
            mean_x_t=(1 - self.betas).sqrt() * noise_variance_before / noise_variance,
        )
        """Of the whole chain: float64 on the CPU, [T] each."""
        self.reverse_variance = self._reverse_variance_table(posterior_variance)
        """σ_t² of the reverse chain: float64 on the CPU, [T]."""
        self._register("signal", self.coefficients.signal)
        self._register("sigma", self.coefficients.sigma)
        self._register("mean_x0", self.coefficients.mean_x0)
        self._register("mean_x_t", self.coefficients.mean_x_t)
        self._register("posterior_variance", posterior_variance)
        self._register("reverse_variance", self.reverse_variance)

    def _check_terminal_signal(self) -> None:
        last = self.alpha_bars[-1].item()
        # Below this, float32's rounding of ε alone, amplified by 1/√ᾱ, is as large as the image.
        if self.prediction == "epsilon" and last < torch.finfo(torch.float32).eps ** 2:
            raise ValueError(
                f"ε-prediction cannot represent a zero terminal signal-to-noise ratio (ᾱ_T = {last:g}): x_T is pure "
                "noise, and ε says nothing of the image. Use prediction v or x0, or another schedule."
            )
        if last > 1e-2:
            warnings.warn(
                f"ᾱ_T = {last:.3g} leaves signal in x_T, and sampling starts from N(0, I), which has none: "
                "use more noise (more steps, or a larger last β).",
                stacklevel=3,
            )

    def _reverse_variance_table(self, posterior_variance: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
        match self.variance:
            case "small":
                # β̃_0 = 0 has no density, so the last step takes the next one (the code of Ho et al. 2020);
                # a chain of one step has only β.
                first = posterior_variance[1:2] if self.num_steps > 1 else self.betas
                return torch.cat([first, posterior_variance[1:]])
            case "large":
                return self.betas
            case "optimal":
                if self.x0_mse is None:
                    raise ValueError("variance=optimal needs x0_mse, the network's squared x0 error at each timestep.")
                if self.x0_mse.shape != self.betas.shape or (self.x0_mse < 0).any():
                    raise ValueError(f"x0_mse must be {self.num_steps} numbers, none negative: one for each timestep.")
                return posterior_variance + self.coefficients.mean_x0**2 * self.x0_mse

    def _register(self, name: str, table: Float64[Tensor, " T"]) -> None:
        self.register_buffer(f"_{name}", table.float(), persistent=False)

    def _table(self, name: str, t: Timesteps) -> PerImage:
        return self.get_buffer(f"_{name}")[t].view(-1, 1, 1, 1)

    def coefficients_at(self, t: Timesteps) -> Coefficients:
        """The coefficients of the images' timesteps, [B, 1, 1, 1] each."""
        names = ("signal", "sigma", "mean_x0", "mean_x_t")
        return Coefficients(**{name: self._table(name, t) for name in names})

    def q_sample(self, x0: Images, t: Timesteps, eps: Images) -> Images:
        """x_t ~ q(x_t|x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I) (Ho et al. 2020, equation 4); `eps` is standard normal.

        In float32 whatever came in: in bfloat16 the noise of the first timesteps would round away.
        """
        return self._table("signal", t) * x0.float() + self._table("sigma", t) * eps.float()

    def q_posterior(self, x0: Images, x_t: Images, t: Timesteps) -> tuple[Images, PerImage]:
        """Mean [B, C, H, W] and variance [B, 1, 1, 1] of q(x_{t-1}|x_t, x_0) (Ho et al. 2020, equations 6 and 7).

        At t = 0 it is x_0 itself, with variance 0.
        """
        mean = parameterization.from_x0("mean", x0, x_t, self.coefficients_at(t))
        return mean, self._table("posterior_variance", t)

    def target(self, x0: Images, x_t: Images, t: Timesteps, eps: Images) -> Images:
        """What the network should output at x_t = `q_sample(x0, t, eps)`."""
        if self.prediction == "epsilon":
            return eps  # exactly, instead of through a difference divided by a small √(1-ᾱ)
        if self.prediction == "v":
            at = self.coefficients_at(t)
            return at.signal * eps - at.sigma * x0
        return parameterization.from_x0(self.prediction, x0, x_t, self.coefficients_at(t))

    def to_x0(self, output: Images, x_t: Images, t: Timesteps) -> Images:
        """The x_0 that the network's output says; not clipped."""
        return parameterization.to_x0(self.prediction, output.float(), x_t, self.coefficients_at(t))

    def to_epsilon(self, output: Images, x_t: Images, t: Timesteps) -> Images:
        """The noise ε that the network's output says; not clipped."""
        if self.prediction == "epsilon":
            return output.float()
        if self.prediction == "v":  # stays exact where √(1-ᾱ) is small
            at = self.coefficients_at(t)
            return at.sigma * x_t + at.signal * output.float()
        return self.x0_to_epsilon(self.to_x0(output, x_t, t), x_t, t)

    def x0_to_epsilon(self, x0: Images, x_t: Images, t: Timesteps) -> Images:
        """The noise that leads from `x0` to `x_t`."""
        return parameterization.from_x0("epsilon", x0, x_t, self.coefficients_at(t))

    def predict_x0_and_epsilon(self, output: Images, x_t: Images, t: Timesteps) -> tuple[Images, Images]:
        """Both views of the network's output, with `clip_x0` heeded: ε then follows from the clamped x_0."""
        if not self.clip_x0:
            return self.to_x0(output, x_t, t), self.to_epsilon(output, x_t, t)
        x0 = self.to_x0(output, x_t, t).clamp(-1, 1)
        return x0, self.x0_to_epsilon(x0, x_t, t)

    def p_mean_variance(self, output: Images, x_t: Images, t: Timesteps) -> tuple[Images, PerImage, Images]:
        """Mean [B, C, H, W] and variance [B, 1, 1, 1] of p_θ(x_{t-1}|x_t), and the x_0 behind them [B, C, H, W].

        The mean is the posterior's with x_0 replaced by its prediction (Ho et al. 2020, equation 11; Luo 2022,
        equation 93). At t = 0 the variance is the decoder's: β̃ of index 1 ("small"), β_0 ("large") or the
        x_0 error ("optimal").
        """
        x0 = self.to_x0(output, x_t, t)
        if self.clip_x0:
            x0 = x0.clamp(-1, 1)
        if self.prediction == "mean" and not self.clip_x0:
            mean = output.float()  # what the network says, without the way to x_0 and back, ill-conditioned by 1/c_0
        else:
            mean, _ = self.q_posterior(x0, x_t, t)
        return mean, self._table("reverse_variance", t), x0

    def p_sample(self, output: Images, x_t: Images, t: Timesteps, eps: Images) -> Images:
        """x_{t-1} ~ p_θ(x_{t-1}|x_t) (Ho et al. 2020, algorithm 2); at t = 0 the mean itself, without noise."""
        mean, variance, _ = self.p_mean_variance(output, x_t, t)
        not_last = (t > 0).view(-1, 1, 1, 1)
        return mean + not_last * variance.sqrt() * eps

    def subsequence(self, timesteps: Int64[Tensor, " S"]) -> "GaussianDiffusion":
        """The chain over `timesteps` alone (ascending), each β recomputed from the ᾱ that are kept.

        Step i of it is the original step `timesteps[i]`, which the network must be told (Nichol & Dhariwal 2021,
        equation 19; Song et al. 2021, section 4.2). It takes x_0 (`prediction="x0"`), read from the network's
        output by the whole chain's `to_x0`: a mean that the network predicts is one of the whole chain.
        """
        kept = self.alpha_bars[timesteps]
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        x0_mse = None if self.x0_mse is None else self.x0_mse[timesteps]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say of the schedule was said of the whole chain
            chain = GaussianDiffusion(1 - kept / before, "x0", self.variance, x0_mse, self.clip_x0)
        return chain.to(self.get_buffer("_signal").device)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name}={value} is none of {', '.join(choices)}.")
