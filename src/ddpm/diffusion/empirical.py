"""The exact optimal denoiser of a finite training set."""

from collections.abc import Iterator

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import Timesteps


class EmpiricalDenoiser:
    """E[x_0|x_t] where x_0 is one of N training images, each as likely as the others; a network of `prediction="x0"`.

    It is Σ_i w_i y_i with w = softmax_i(-‖x_t - √ᾱ_t y_i‖² / (2(1-ᾱ_t))), the minimum of the training loss over all
    functions of (x_t, t) (the closed form is Bayes' rule; Karras et al. 2022, appendix B.3). Its error on training
    images is a floor that no network can pass; on other images it is that of a model that knows its training set by
    heart and nothing else.

    The distances are expanded into products of float64: at t = 0, where 1-ᾱ is 1e-4, those of float32 would be off
    by several nats, enough to take one training image for another that is a few grey levels away. So it works
    on the images' device, which must have float64, and x_t comes and goes from wherever it is.

    Args:
        images: the training set of 256 levels, [N, C, H, W].
        alpha_bars: ᾱ_t, [T].
        chunk_size: training images at once; 2048 of 28 × 28 take less than 100 MB, however large the set.
    """

    def __init__(self, images: UInt8[Tensor, "N C H W"], alpha_bars: Float64[Tensor, " T"], chunk_size: int = 2048):
        self.images = images.flatten(1)
        self.alpha_bars = alpha_bars.to(images.device)
        self.chunk_size = chunk_size
        self.squared_norms = torch.cat([chunk.square().sum(dim=1) for chunk in self._chunks()])

    def __call__(self, x_t: Images, t: Timesteps) -> Images:
        """E[x_0|x_t], float32; each image has a timestep of its own."""
        noisy = x_t.to(self.images.device).flatten(1).double()
        alpha_bar = self.alpha_bars[t.to(self.images.device)][:, None]
        # log w_i to a constant of the image: -‖x_t‖² is the same for all i.
        along, across = alpha_bar.sqrt() / (1 - alpha_bar), alpha_bar / (2 * (1 - alpha_bar))

        # A running softmax: what was summed so far is rescaled whenever a larger log-weight turns up.
        largest = noisy.new_full((len(noisy), 1), -torch.inf)
        weight = torch.zeros_like(largest)
        weighted = torch.zeros_like(noisy, dtype=torch.float32)
        for chunk, squared_norms in zip(self._chunks(), self.squared_norms.split(self.chunk_size), strict=True):
            log_weights = along * (noisy @ chunk.T) - across * squared_norms
            before, largest = largest, torch.maximum(largest, log_weights.amax(dim=1, keepdim=True))
            weights = (log_weights - largest).exp()
            rescale = (before - largest).exp()
            weight = rescale * weight + weights.sum(dim=1, keepdim=True)
            weighted = rescale.float() * weighted + weights.float() @ chunk.float()
        return (weighted / weight.float()).view(x_t.shape).to(x_t.device)

    def _chunks(self) -> Iterator[Float64[Tensor, "chunk CHW"]]:
        for chunk in self.images.split(self.chunk_size):
            yield chunk.double() / 127.5 - 1
