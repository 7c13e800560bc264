"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource
import torch
from dinit.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4 * 2**20)  # 16 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), torch.ones(4 * 2**20).numel() and faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_blocks_are_used_again_without_page_faults() -> None:
    out = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=120)
    _, kept, after = out.stdout.split()
    assert kept == "True"
    assert int(after) < 20  # of 81,920 pages; a block that is mapped again faults at every one, or at 8 huge ones
