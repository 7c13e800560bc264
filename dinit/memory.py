"""Reuse of freed memory on CPUs, which makes a network a fifth to a quarter faster."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed memory, for this process and those it forks. False where there is none.

    malloc maps every large block again and gives it back when freed, so each activation of each step costs a page
    fault for every 4 KiB: a quarter of a training step on a CPU. The process then holds its peak until it ends.
    It is for programs that are dinit's own (the `dinit` command, a training run), not for the import of a library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, as musl
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1
