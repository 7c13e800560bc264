"""The Triton kernels of the selective scan: in Triton's interpreter, compiled for a GPU without one, and on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CASES = Path(__file__).with_name("scan_triton_cases.py")
triton = pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreter", "cuda"])
def test_cases(interpreted: bool) -> None:
    """Triton reads TRITON_INTERPRET when it is imported: a process of its own."""
    if not interpreted and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--noconftest", CASES],
        env={**os.environ, "TRITON_INTERPRET": str(int(interpreted))},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


def signature(kernel: Any, inputs: str) -> dict[str, str]:
    """Types of the arguments of a kernel, for sequences of one dtype; states and sums are float32."""
    sequences = {f"{grad}{name}_ptr" for grad in ("", "grad_") for name in ("u", "delta", "y")} | {"b_ptr", "c_ptr"}
    sizes = {"channels", "states", "length", "chunk", "chunks"}
    constants = {"reverse", "block_channels", "block_states"}

    def of(name: str) -> str:
        if name in constants:
            return "constexpr"
        return "i32" if name in sizes else f"*{inputs if name in sequences else 'fp32'}"

    return {name: of(name) for name in kernel.arg_names}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("states", [1, 16])
def test_kernels_compile_for_a_gpu(states: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the machine code of an A100, which Triton makes without one: what the interpreter takes but a GPU does not

    (a variable whose type changes in a loop, an operation without code) fails here.
    """
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    from dinit.models.layers import scan_kernels, scan_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"reverse": True, "block_channels": scan_triton.STATES // states, "block_states": states}
    for kernel in (scan_kernels.forward_kernel, scan_kernels.backward_kernel):
        source = ASTSource(kernel, signature(kernel, "bf16"), constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 1})
        assert len(compiled.asm["cubin"]) > 1000
