"""A conversion holds the mapped file, and no second copy of the weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dinit.models.layers.embedding import sincos_positions

MEASURED = """
import sys
from dinit.pipelines.weights.convert import convert

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

small, large = sys.argv[1:]
options = {"num_heads": 8}
convert(small, small + ".pipe", options=options)  # every module is imported
before = peak()
convert(large, large + ".pipe", options=options)
print(peak() - before)
"""


def published(width: int, depth: int) -> dict[str, Tensor]:
    """DiT's weights under their published names: noise in the head, and constants."""
    blocks = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    blocks["adaLN_modulation.1"] = (6, 1)
    shapes = {f"blocks.{i}.{name}": (rows * width, columns * width) for i in range(depth)
              for name, (rows, columns) in blocks.items()}  # fmt: skip
    shapes |= {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    shapes |= {"final_layer.adaLN_modulation.1": (2 * width, width), "final_layer.linear": (32, width)}
    state = {f"{name}.weight": torch.full(shape, 0.01) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.full(shape[:1], 0.01) for name, shape in shapes.items()}
    state |= {"x_embedder.proj.weight": torch.ones(width, 4, 2, 2), "x_embedder.proj.bias": torch.ones(width)}
    state |= {"y_embedder.embedding_table.weight": torch.ones(1001, width)}
    state["final_layer.linear.weight"] = torch.randn(32, width)
    state["pos_embed"] = sincos_positions(width, 16, 16)[None]
    return state


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_conversion_holds_the_file_once(tmp_path: Path) -> None:
    sizes = {"small.pt": (128, 1), "large.pt": (1152, 1)}
    for name, (width, depth) in sizes.items():
        torch.save(published(width, depth), tmp_path / name)
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    file = (tmp_path / "large.pt").stat().st_size
    assert int(done.stdout.splitlines()[-1]) <= 1.15 * file
