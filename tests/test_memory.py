"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(
    ("arguments", "given", "seen"),
    [
        (("-m", "dinit", "generate", "--help"), None, ["None", "glibc.malloc.tcache_count=0"]),
        (("-m", "dinit.cli", "generate", "--help"), "glibc.malloc.check=0", ["glibc.malloc.check=0"]),
        (("-m", "dinit", "list", "--help"), None, ["None"]),
        (("-c", "import sys; from dinit.cli import main; main()", "generate", "--help"), None, ["None"]),
    ],
)
def test_the_command_generates_without_the_cache_of_small_blocks(
    arguments: tuple[str, ...], given: str | None, seen: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nwith open(os.environ['STARTS'], 'a') as file:\n"
        "    file.write(str(os.environ.get('GLIBC_TUNABLES')) + '\\n')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment |= {"STARTS": str(tmp_path / "starts")} | ({} if given is None else {"GLIBC_TUNABLES": given})
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert (tmp_path / "starts").read_text().split() == seen
