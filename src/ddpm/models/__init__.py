"""Networks: each maps `(x_t [B, C, H, W], t [B])` to an output in the shape of x_t."""

from ddpm.models.unet import UNet

__all__ = ["UNet"]
