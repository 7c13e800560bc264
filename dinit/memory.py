"""Memory of this process: reuse of what is freed on CPUs, which makes a network a fifth faster, and its size."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_TUNABLES, _WITHOUT_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"
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


def restart_without_cache() -> None:
    """Starts the `dinit` command again in this process, once, with glibc's cache of small freed blocks disabled.

    An aligned block of glibc's malloc leaves up to 96 bytes over, the cache gives them to small objects, and the
    hole that the block leaves is then too short for the next tensor of its size: what a network takes grows to up
    to twice its tensors. The cache can be disabled by the environment alone, before a program starts.
    Nothing happens in a program of another name, on other systems, or where GLIBC_TUNABLES is set already.
    """
    if not sys.platform.startswith("linux") or _TUNABLES in os.environ or not _is_the_command():
        return
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except ValueError:
        return
    if library.startswith("glibc"):
        environment = {**os.environ, _TUNABLES: _WITHOUT_CACHE}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_the_command() -> bool:
    """Whether this program is `dinit`, `python -m dinit` or `python -m dinit.cli`."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return spec.name in ("dinit.__main__", "dinit.cli.__main__")
    return Path(getattr(main, "__file__", None) or "").name == "dinit"


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
