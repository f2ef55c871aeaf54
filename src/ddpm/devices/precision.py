"""The numeric precision that suits a device."""

import platform

import torch
from lightning.fabric.accelerators import CUDAAccelerator

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def resolve_precision(precision: str, accelerator: str) -> str:
    """Lightning's name of the precision that "auto" means on an accelerator; any other is returned as it is.

    bfloat16 autocast where the device computes convolutions faster in it: CUDA from Ampere on, CPUs with AMX or
    AVX-512 BF16.

    Raises:
        ValueError: a precision in which the chain's own arithmetic, float32, would not be.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision={precision} is none of auto, {', '.join(PRECISIONS)}.")
    if precision != "auto":
        return precision
    if accelerator == "auto":
        accelerator = "cuda" if CUDAAccelerator.is_available() else "cpu"
    if accelerator in ("cuda", "gpu"):
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = accelerator == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16-mixed" if fast else "32-true"


def device_name(device: torch.device) -> str:
    """The device in words, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
