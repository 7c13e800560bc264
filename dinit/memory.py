"""Memory of this process: reuse of what is freed on CPUs, which makes a network a fifth faster, and its size."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

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


def resident(peak: bool = False) -> int | None:
    """Resident bytes of this process, now or at their highest; None where they are not known (other than Linux).

    Args:
        peak: The highest since the process began.
    """
    key = "VmHWM" if peak else "VmRSS"
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), None)


def available() -> int | None:
    """Free bytes of this machine's memory; None where they are not known (other than Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


_MALLINFO2 = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _Heap(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2)


def heap_size() -> int | None:
    """Bytes that glibc's malloc holds, free ones too; None for another C library or an older glibc than 2.33."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    mallinfo2.restype = _Heap
    held = mallinfo2()
    return held.arena + held.hblkhd


def in_units(count: int) -> str:
    """Bytes as '1.5 GiB'."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
