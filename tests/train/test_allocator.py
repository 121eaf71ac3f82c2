"""What is freed is used again."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_used_again_without_new_pages():
    code = """
import resource, torch
from paretune.train.allocator import keep_freed_memory
keep_freed_memory()
def use(): return len([torch.ones(megabytes * 2**18) for megabytes in (6, 12, 18, 24, 30) * 2])
for _ in range(6): use()  # until all of it has found a place
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # Without the call mostly 36,832 pages of 180 MB each time.
    assert int(subprocess.check_output([sys.executable, "-c", code])) < 5000
