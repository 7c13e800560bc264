"""torchvision is usable beside a torch that its compiled operators do not fit, and untouched where they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinit import compat


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_diffusers_and_torch_fidelity_import_after_the_guard() -> None:
    code = (
        "from dinit.compat import ensure_torchvision as e\n"
        "e(); e()\n"
        "import torchvision, torch_fidelity\n"
        "from diffusers import DiffusionPipeline, AutoencoderKL\n"
        "print(AutoencoderKL.__name__)"
    )
    assert run(code) == "AutoencoderKL"


def test_working_operators_are_left_alone() -> None:
    code = (
        "import torch\n"
        "from dinit import compat\n"
        "own = torch.library.Library('torchvision', 'DEF')\n"
        "def load(path):\n"  # what the compiled library does when it loads
        "    own.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "torch.ops.load_library = load\n"
        "compat._compiled_file = lambda package: package\n"
        "print(compat.ensure_torchvision(), hasattr(torch.ops.torchvision, 'qnms'))"
    )
    assert run(code) == "False False"


def test_broken_operators_get_schemas_without_kernels() -> None:
    code = (
        "import torch\n"
        "from dinit import compat\n"
        "compat._compiled_file = lambda package: None\n"
        "print(compat.ensure_torchvision(), compat.ensure_torchvision())\n"
        "try: torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except NotImplementedError: print('no kernel')"
    )
    assert run(code) == "True False\nno kernel"


def test_a_file_that_is_no_library_does_not_load(tmp_path: Path) -> None:
    assert compat._compiled_file(tmp_path) is None
    (tmp_path / "_C.so").write_bytes(b"not a library")
    found = compat._compiled_file(tmp_path)
    assert found == tmp_path / "_C.so"
    with pytest.raises(OSError, match=r"_C\.so"):
        torch.ops.load_library(str(found))
