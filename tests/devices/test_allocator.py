import platform
import subprocess
import sys

import pytest

from ddpm.devices import allocator

# How many pages the system gives out for 16,384 pages of data, after ten such blocks were freed.
PROGRAM = """
import resource, runpy, sys

def page_faults():
    for _ in range(10):
        b"x" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(page_faults())
runpy.run_path(sys.argv[1])["reuse_freed_memory"]()
print(page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_used_again():
    before, after = map(int, subprocess.check_output([sys.executable, "-c", PROGRAM, allocator.__file__]).split())
    assert before > 10_000
    assert after < 1_000
