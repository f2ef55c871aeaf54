"""What a network must be: network(x_t [B, C, H, W], t [B]) returns one tensor in the shape of x_t.

A class-conditional network has an attribute `num_classes`, and takes `labels`, int64 [B], as a further argument. The
label `num_classes` means "no label".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def check_network(network: nn.Module, image_shape: Sequence[int], is_conditional: bool = False) -> None:
    """Call the network once, so that an image size that it cannot take shows before training.

    The call is made on the meta device, which computes only shapes, because a checkpoint may ask for huge images.

    Args:
        image_shape: (C, H, W).
        is_conditional: also give it labels.

    Raises:
        ValueError: the output is not one tensor in the shape of the images.
    """
    try:
        output = _call(network, image_shape, is_conditional, "meta")
    except (RuntimeError, NotImplementedError):  # the network makes tensors on the CPU, or reads their numbers
        output = _call(network, image_shape, is_conditional, "cpu")
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network returns a {type(output).__name__}, and one tensor [B, C, H, W] is needed: wrap it in a "
            "module whose forward returns that part (`.sample` of diffusers)."
        )
    if output.shape != (1, *image_shape):
        raise ValueError(
            f"the network turns images of shape {[1, *image_shape]} into {list(output.shape)}: both must be equal."
        )


def num_classes_of(network: nn.Module) -> int | None:
    """Return the number of classes of a class-conditional network, and None for another network.

    Raises:
        ValueError: its attribute `num_classes` is no number of classes.
    """
    number = getattr(network, "num_classes", None)
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"the network's num_classes must be a whole number, at least 1, or None; not {number!r}.")
    return number


@torch.no_grad()
def _call(network: nn.Module, image_shape: Sequence[int], is_conditional: bool, device: str) -> object:
    tensors = {name: x.to(device) for name, x in (*network.named_parameters(), *network.named_buffers())}
    image, zero = torch.zeros(1, *image_shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    condition: dict[str, Any] = {"labels": zero} if is_conditional else {}
    return functional_call(network, tensors, (image, zero), condition)
