"""Copies from the CPU to a device that do not wait for the device."""

import torch
from torch import Tensor


def copies_ahead(device: torch.device) -> bool:
    """Return whether the device copies from pinned memory by itself, while the CPU goes on."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device. On a GPU, the copy takes its turn behind the work that is queued."""
    if copies_ahead(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
