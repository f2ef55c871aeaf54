"""Prediction types: the noise ε, the image x_0, the velocity v, or the posterior mean μ.

Given x_t, each determines the others:

    x_t = √ᾱ x_0 + √(1-ᾱ) ε          Ho et al. 2020, equation 4
    v   = √ᾱ ε - √(1-ᾱ) x_0          Salimans & Ho 2022, appendix D
    μ   = c_0 x_0 + c_t x_t           Ho et al. 2020, equation 7

Each is linear in x_0. The slope converts an error of the output into an error of x_0, and so a weight on x_0's error
into a weight on the output's error.
"""

from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

Prediction = Literal["epsilon", "x0", "v", "mean"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)

Images = Float[Tensor, "B C H W"]
"""images, or noise of their shape"""
PerImage = Float[Tensor, "B 1 1 1"]
"""a number for each image"""


class Coefficients(NamedTuple):
    """Coefficients of the timesteps of a batch, [B, 1, 1, 1], or of all T timesteps, [T]."""

    signal: Tensor
    """√ᾱ_t"""
    sigma: Tensor
    """√(1-ᾱ_t)"""
    posterior_x0: Tensor
    """c_0 = √ᾱ_{t-1} β_t/(1-ᾱ_t), the weight of x_0 in the posterior mean"""
    posterior_x_t: Tensor
    """c_t = √α_t (1-ᾱ_{t-1})/(1-ᾱ_t), the weight of x_t in the posterior mean"""


def from_x0(prediction: Prediction, x0: Images, x_t: Images, at: Coefficients) -> Images:
    """Convert `x0` into the prediction type `prediction`, given `x_t`; all [B, C, H, W]."""
    match prediction:
        case "epsilon":
            return (x_t - at.signal * x0) / at.sigma
        case "x0":
            return x0
        case "v":
            return (at.signal * x_t - x0) / at.sigma
        case "mean":
            return at.posterior_x0 * x0 + at.posterior_x_t * x_t


def to_x0(prediction: Prediction, output: Images, x_t: Images, at: Coefficients) -> Images:
    """Convert a network's `output` of type `prediction` into x_0, given `x_t`; all [B, C, H, W]."""
    match prediction:
        case "epsilon":
            return (x_t - at.sigma * output) / at.signal
        case "x0":
            return output
        case "v":
            return at.signal * x_t - at.sigma * output
        case "mean":
            return (output - at.posterior_x_t * x_t) / at.posterior_x0


def x0_error_slope(prediction: Prediction, at: Coefficients) -> Tensor:
    """Return |∂x_0/∂output|: the error of x_0 that an error of 1 in the output causes; in the shape of `at`."""
    match prediction:
        case "epsilon":
            return at.sigma / at.signal
        case "x0":
            return at.signal.new_ones(at.signal.shape)
        case "v":
            return at.sigma
        case "mean":
            return 1 / at.posterior_x0
