"""The U-Net of the diffusers library as a network of ddpm."""

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor


class DiffusersUNet(UNet2DModel):
    """diffusers' `UNet2DModel`, called as `network(x_t, t)`, or with labels. Its weights have the names of diffusers.

    Args:
        num_classes: number of classes of a conditional network; None for an unconditional one.
        others: the arguments of UNet2DModel.
    """

    def __init__(self, num_classes: int | None = None, **others: Any) -> None:
        # The last class stands for "no label".
        super().__init__(**others, num_class_embeds=None if num_classes is None else num_classes + 1)
        self.num_classes = num_classes

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the output for noisy images [B, C, H, W] at timesteps [B], in the shape of the images.

        Args:
            labels: the class of each image; `num_classes` means "no label", as None does for all.
        """
        if self.num_classes is not None and labels is None:
            labels = torch.full_like(t, self.num_classes)
        return super().forward(x_t, t, class_labels=labels).sample  # type: ignore[misc]  # mypy finds no forward
