"""`benchmarks/gpu.py --smoke`: every part of the measurement on a GPU runs on a CPU, on tiny networks."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in this process: a new one would import torch, its compiler and diffusers a second time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_every_part_runs_and_every_check_holds(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--out", str(out)])
    script.main()
    text = out.read_text(encoding="utf-8")
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


def test_no_gpu_is_an_error_that_names_the_smoke_run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert "--smoke" in capsys.readouterr().err
