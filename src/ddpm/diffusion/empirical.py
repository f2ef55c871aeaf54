"""The optimal denoiser of a finite training set, in closed form."""

from collections.abc import Iterator

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ddpm.diffusion.parameterization import Images
from ddpm.diffusion.process import Timesteps


class EmpiricalDenoiser:
    """E[x_0|x_t] where x_0 is one of N equally likely training images; a network of `prediction="x0"`.

    The value is Σ_i w_i y_i with w = softmax_i(-‖x_t - √ᾱ_t y_i‖² / (2(1-ᾱ_t))), by Bayes' rule. It minimises the
    training loss over all functions of (x_t, t) (Karras et al. 2022, appendix B.3). So no network has a lower error
    on the training images. Its error on other images is that of a model that has memorised the training set.

    The squared distances are expanded into products in float64. At t = 0, where 1-ᾱ is 1e-4, float32 would be wrong
    by several nats: enough to confuse training images that differ by a few grey levels. The computation runs on
    the device of `images`, which must support float64; x_t may be on another device.

    Args:
        images: the training set, uint8 (256 levels), [N, C, H, W].
        alpha_bars: ᾱ_t, float64, [T].
        chunk_size: training images per product. 2048 images of 28 × 28 need less than 100 MB, whatever N is.
    """

    def __init__(self, images: UInt8[Tensor, "N C H W"], alpha_bars: Float64[Tensor, " T"], chunk_size: int = 2048):
        self.images = images.flatten(1)
        self.alpha_bars = alpha_bars.to(images.device)
        self.chunk_size = chunk_size
        self.squared_norms = torch.cat([chunk.square().sum(dim=1) for chunk in self._chunks()])

    def __call__(self, x_t: Images, t: Timesteps) -> Images:
        """Return E[x_0|x_t], float32, [B, C, H, W], on the device of `x_t`; `t` is int64 [B]."""
        flat_x_t = x_t.to(self.images.device).flatten(1).double()
        alpha_bar = self.alpha_bars[t.to(self.images.device)][:, None]
        # log w_i without the term -‖x_t‖²/(2(1-ᾱ_t)), which is the same for all i.
        product_factor, norm_factor = alpha_bar.sqrt() / (1 - alpha_bar), alpha_bar / (2 * (1 - alpha_bar))

        # A softmax over chunks: a new largest log-weight rescales the sums so far.
        largest = flat_x_t.new_full((len(flat_x_t), 1), -torch.inf)
        weight_sum = torch.zeros_like(largest)
        weighted_sum = torch.zeros_like(flat_x_t, dtype=torch.float32)
        for chunk, squared_norms in zip(self._chunks(), self.squared_norms.split(self.chunk_size), strict=True):
            log_weights = product_factor * (flat_x_t @ chunk.T) - norm_factor * squared_norms
            previous, largest = largest, torch.maximum(largest, log_weights.amax(dim=1, keepdim=True))
            weights = (log_weights - largest).exp()
            rescale = (previous - largest).exp()
            weight_sum = rescale * weight_sum + weights.sum(dim=1, keepdim=True)
            weighted_sum = rescale.float() * weighted_sum + weights.float() @ chunk.float()
        return (weighted_sum / weight_sum.float()).view(x_t.shape).to(x_t.device)

    def _chunks(self) -> Iterator[Float64[Tensor, "chunk CHW"]]:
        for chunk in self.images.split(self.chunk_size):
            yield chunk.double() / 127.5 - 1
