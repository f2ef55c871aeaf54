"""Recognises errors of torch that mean: out of memory, or another process is gone."""

import os

import torch
import torch.distributed as dist


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the device or of the machine was too small."""
    # For the CPU's allocator and the libraries below it, torch has no exception class.
    texts = ("can't allocate memory", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in texts)


def is_lost_process(error: BaseException) -> bool:
    """Return whether another process of the job is gone."""
    return isinstance(error, dist.DistError) or "Connection closed by peer" in str(error) or "gloo" in str(error)


def total_memory(device: torch.device) -> int:
    """Return the bytes of the device's memory; for the CPU, of the machine's memory."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.accelerator.get_memory_info(device)[1]
