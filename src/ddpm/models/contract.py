"""What a network must be: network(x_t [B, C, H, W], t [B]) returns one tensor in the shape of x_t."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def check_network(network: nn.Module, image_shape: Sequence[int]) -> None:
    """Call the network once, so that an image size that it cannot take shows before training.

    The call is made on the meta device, which computes only shapes, because a checkpoint may ask for huge images.

    Args:
        image_shape: (C, H, W).

    Raises:
        ValueError: the output is not one tensor in the shape of the images.
    """
    try:
        output = _call(network, image_shape, "meta")
    except (RuntimeError, NotImplementedError):  # the network makes tensors on the CPU, or reads their numbers
        output = _call(network, image_shape, "cpu")
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network returns a {type(output).__name__}, and one tensor [B, C, H, W] is needed: wrap it in a "
            "module whose forward returns that part (`.sample` of diffusers)."
        )
    if output.shape != (1, *image_shape):
        raise ValueError(
            f"the network turns images of shape {[1, *image_shape]} into {list(output.shape)}: both must be equal."
        )


@torch.no_grad()
def _call(network: nn.Module, image_shape: Sequence[int], device: str) -> object:
    tensors = {name: x.to(device) for name, x in (*network.named_parameters(), *network.named_buffers())}
    image = torch.zeros(1, *image_shape, device=device)
    return functional_call(network, tensors, (image, torch.zeros(1, dtype=torch.int64, device=device)))
