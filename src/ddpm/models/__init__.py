"""Networks that a diffusion model trains: each maps `(x [B, C, H, W], t [B])` to an output of x's shape."""

from ddpm.models.unet import UNet

__all__ = ["UNet"]
