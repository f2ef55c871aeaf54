"""What went wrong on a device or between the processes, in errors that torch raises for many reasons."""

import os

import torch
import torch.distributed as dist


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory, or the machine's, was too small."""
    # Of the CPU's allocator, and of the libraries below it, torch knows no class of its own.
    texts = ("can't allocate memory", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in texts)


def is_lost_process(error: BaseException) -> bool:
    """Whether another of the processes that work together is gone."""
    return isinstance(error, dist.DistError) or "Connection closed by peer" in str(error) or "gloo" in str(error)


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory; of the machine's where the device is the CPU."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.accelerator.get_memory_info(device)[1]
