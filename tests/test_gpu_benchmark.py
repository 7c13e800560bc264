"""`benchmarks/gpu.py --smoke`: every part of the measurement on a GPU runs on a CPU, on tiny networks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(out: Path, *given: str) -> str:
    """The table that the script writes."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--out", str(out), *given],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_part_runs_and_every_check_holds(tmp_path: Path) -> None:
    text = run(tmp_path / "gpu.md")
    met = re.search(r"(\d+) of (\d+) checks and targets are met\. It took", text)
    assert met is not None, text
    assert met[1] == met[2]
    assert int(met[2]) >= 9
    for part in (
        "gradient of every backbone",
        "every sampler ×",
        "its gradients",
        "with CUDA graphs",
        "training step",
    ):
        assert part in text
    assert "Error" not in text


def test_no_gpu_is_an_error_that_names_the_smoke_run(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "--smoke" in done.stderr
