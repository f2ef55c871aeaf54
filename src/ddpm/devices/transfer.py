"""Copies from the CPU to a device that do not wait for the device."""

import torch
from torch import Tensor


def copies_asynchronously(device: torch.device) -> bool:
    """Return whether a copy from pinned memory runs on the device's queue without blocking the CPU."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU from pinned memory, without waiting for it."""
    if copies_asynchronously(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
