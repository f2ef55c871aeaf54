import ctypes
import platform
import resource

import pytest
import torch

from ddpm.devices import reuse_freed_memory
from ddpm.devices.allocator import M_MMAP_MAX

M_MMAP_THRESHOLD = -3


def page_faults() -> int:
    """Return how many pages the system gave out while a tensor of 16,384 pages was made, after ten that were freed."""
    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_a_large_tensor_gets_the_memory_of_one_that_was_freed():
    libc = ctypes.CDLL(None)
    for setting, value in ((M_MMAP_MAX, 2**16), (M_MMAP_THRESHOLD, 2**17)):  # as a process starts
        assert libc.mallopt(setting, value)
    assert page_faults() > 10_000
    reuse_freed_memory()
    assert page_faults() < 1_000
