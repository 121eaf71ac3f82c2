"""Settings of glibc's allocator for training, which makes and frees tensors of a few megabytes all the time."""

import ctypes
import resource

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, by glibc's malloc.h."""
_LARGEST_PART = 32 * 2**20
"""The largest threshold that glibc takes: what is larger than that is mapped, and given back, by itself."""
_MADV_HUGEPAGE = 14
_HUGE_PAGES = 4 * 2**30
"""Addresses that are set aside for huge pages; no memory before something is written there."""


def keep_freed_memory() -> None:
    """Keep this process's freed memory for its next allocations; does nothing where the allocator is not glibc's.

    glibc gives it back to the system, which clears each page anew: 5 to 8 % of a training step. And let the heap grow in pages
    of 2 MB where the system has them: the first touch of a page takes time, large or small.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(_MMAP_THRESHOLD, _LARGEST_PART)
    set_option(_TRIM_THRESHOLD, -1)  # never
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:  # addresses may be short
        return
    libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.sbrk(0)
    parts = [libc.malloc(_LARGEST_PART // 2) for _ in range(_HUGE_PAGES // (_LARGEST_PART // 2))]
    aligned = -(-start // 2**21) * 2**21
    libc.madvise(aligned, max(0, libc.sbrk(0) - aligned), _MADV_HUGEPAGE)
    for part in parts:
        libc.free(part)
