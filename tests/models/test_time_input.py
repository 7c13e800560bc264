"""The time reaches a network in float32 or better, whatever its dtype: bf16 has no 999, nor 0.1234."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.dit import DiT
from dinit.pipelines.launch import make_accelerator
from dinit.training import parse_recipe
from dinit.training.build import make_objective
from dinit.training.network import TrainingNetwork
from dinit.training.state import TrainState

# process, parameterization, times -> the published programs' time inputs
CASES = [
    ("vp-discrete", "epsilon", [0.999, 1.0], [998.0, 999.0]),
    ("flow", "reversed-velocity", [0.8766, 0.25], [0.1234, 0.75]),  # SiT: 1 - t
    ("vp", "reversed-epsilon", [0.8766, 0.25], [0.1234, 0.75]),
    ("flow", "difference", [0.1234, 0.25], [123.4, 250.0]),
    ("edm", "edm", [1.0, 1.0], [1.0955066, 1.0955066]),  # ln(sigma) / 4, sigma = 80
    ("vp", "epsilon", [0.5, 1.0], [499.5, 999.0]),
]
NAMES = [f"{process}-{output}" for process, output, *_ in CASES]


def spied(dtype: torch.dtype) -> tuple[DiT, list[Tensor]]:
    """A network, and the time inputs that it gets."""
    seen: list[Tensor] = []
    network = DiT(image_size=8, in_channels=1, num_classes=3, patch_size=4, hidden_size=8, depth=1, num_heads=1)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    network.register_forward_pre_hook(lambda module, given: seen.append(given[1].detach().clone()))
    return network, seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("process", "output", "times", "labels"), CASES, ids=NAMES)
@torch.no_grad()
def test_in_sampling(process: str, output: str, times: list[float], labels: list[float], dtype: Any) -> None:
    network, seen = spied(dtype)
    denoiser = BackboneDenoiser(network, PROCESSES.create(process), PARAMETERIZATIONS.create(output))
    x = torch.zeros(2, 1, 8, 8, dtype=dtype)
    denoiser(x, torch.tensor(times, dtype=torch.float64), denoiser.condition([0, 1], 2))
    denoiser(x, times[0], denoiser.condition([0, 1], 2))  # one time for all
    assert all(one.dtype in (torch.float32, torch.float64) for one in seen)
    torch.testing.assert_close(seen[0].double(), torch.tensor(labels).double(), rtol=3e-6, atol=0)
    torch.testing.assert_close(seen[1].double(), torch.tensor(labels[:1]).double(), rtol=3e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("process", "output", "times", "labels"), CASES, ids=NAMES)
def test_in_training(
    process: str, output: str, times: list[float], labels: list[float], precision: str, tmp_path: Path
) -> None:
    network, seen = spied(torch.float32)
    recipe = parse_recipe(
        "data: digits\nbackbone: {name: dit, patch_size: 4}\ntracker: null\n"
        f"training: {{steps: 1, precision: {precision}}}\nprocess: {process}\nparameterization: {output}\n"
    )
    accelerator = make_accelerator(recipe, tmp_path)
    try:
        state, objective = TrainState(recipe, TrainingNetwork(network), accelerator), make_objective(recipe)
        x0, eps = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
        objective.losses(state, x0, torch.tensor([0, 1]), torch.tensor(times, dtype=torch.float64), eps)
    finally:
        type(accelerator.state)._reset_state(reset_partial_state=True)
    assert [one.dtype for one in seen] == [torch.float32]
    torch.testing.assert_close(seen[0], torch.tensor(labels), rtol=3e-6, atol=0)
