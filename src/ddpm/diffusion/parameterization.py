"""What the network predicts: the noise ε, the image x_0, the velocity v or the posterior's mean.

At a given x_t each determines the others:

    x_t = √ᾱ x_0 + √(1-ᾱ) ε          Ho et al. 2020, equation 4
    v   = √ᾱ ε - √(1-ᾱ) x_0          Salimans & Ho 2022, appendix D
    μ   = c_0 x_0 + c_t x_t           Ho et al. 2020, equation 7

Each prediction is linear in x_0, with a slope that carries a weight on the x_0 error to its own error.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

Prediction = Literal["epsilon", "x0", "v", "mean"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B 1 1 1"]


@dataclass(frozen=True)
class Coefficients:
    """The numbers of one timestep: of a batch [B, 1, 1, 1], or of the whole chain [T]."""

    signal: Tensor
    """√ᾱ_t"""
    sigma: Tensor
    """√(1-ᾱ_t)"""
    mean_x0: Tensor
    """c_0 = √ᾱ_{t-1} β_t/(1-ᾱ_t), the weight of x_0 in the posterior's mean"""
    mean_x_t: Tensor
    """c_t = √α_t (1-ᾱ_{t-1})/(1-ᾱ_t), the weight of x_t in the posterior's mean"""


def from_x0(prediction: Prediction, x0: Images, x_t: Images, at: Coefficients) -> Images:
    """The value of `prediction` that says the same as `x0` at `x_t`; all [B, C, H, W]."""
    match prediction:
        case "epsilon":
            return (x_t - at.signal * x0) / at.sigma
        case "x0":
            return x0
        case "v":
            return (at.signal * x_t - x0) / at.sigma
        case "mean":
            return at.mean_x0 * x0 + at.mean_x_t * x_t


def to_x0(prediction: Prediction, output: Images, x_t: Images, at: Coefficients) -> Images:
    """The x_0 that a network's `output` of kind `prediction` says at `x_t`; all [B, C, H, W]."""
    match prediction:
        case "epsilon":
            return (x_t - at.sigma * output) / at.signal
        case "x0":
            return output
        case "v":
            return at.signal * x_t - at.sigma * output
        case "mean":
            return (output - at.mean_x_t * x_t) / at.mean_x0


def x0_error_slope(prediction: Prediction, at: Coefficients) -> Tensor:
    """|∂x_0/∂output|: the factor between an error of the output and the error of x_0 that it makes."""
    match prediction:
        case "epsilon":
            return at.sigma / at.signal
        case "x0":
            return at.signal.new_ones(at.signal.shape)
        case "v":
            return at.sigma
        case "mean":
            return 1 / at.mean_x0
