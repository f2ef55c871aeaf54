"""The memory allocator of the C library, from which torch takes the memory of tensors on a CPU."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
"""numbers of settings, from glibc's malloc.h"""


def reuse_freed_memory() -> None:
    """Keep freed memory in this process for the next tensors. Does nothing if the C library is not glibc.

    By default, glibc returns large blocks to the system. The system gives out memory page by page and fills it with
    zeros, which took a third of the time of sampling with `unet_small` in batches of 256.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
