"""Gradient clipping as numbers: what the optimiser gets of a known gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dinit.pipelines.launch import make_accelerator
from dinit.training import parse_recipe
from dinit.training.state import TrainState


class Two(nn.Module):
    """Two parameters, so that a norm of each would differ from the norm of both."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ParameterDict({"a": torch.zeros(2), "b": torch.zeros(1, 1)})


@pytest.mark.parametrize(
    ("gradient", "limit", "norm", "applied"),
    [
        ((2.0, 3.0, 6.0), 3.5, 7.0, (1.0, 1.5, 3.0)),  # sqrt(4 + 9 + 36) = 7
        ((2.0, -3.0, 6.0), 0.7, 7.0, (0.2, -0.3, 0.6)),
        ((2.0, 3.0, 6.0), 7.5, 7.0, (2.0, 3.0, 6.0)),
        ((2.0, 3.0, 6.0), 8.0, 7.0, (2.0, 3.0, 6.0)),  # the largest entry is below, the sum of all above
        ((2.0, 3.0, 6.0), None, 7.0, (2.0, 3.0, 6.0)),
    ],
)
def test_a_gradient_is_scaled_to_the_l2_norm(
    gradient: tuple[float, ...], limit: float | None, norm: float, applied: tuple[float, ...], tmp_path: Path
) -> None:
    recipe = parse_recipe("data: digits\nbackbone: dit\ntraining: {steps: 1}\ntracker: null\n")
    accelerator = make_accelerator(recipe, tmp_path)
    seen: list[Tensor] = []
    try:
        state = TrainState(recipe, Two(), accelerator)
        state.optimizer.optimizer.register_step_pre_hook(
            lambda *_: seen.append(torch.cat([p.grad.flatten() for p in state.parameters if p.grad is not None]))
        )
        for parameter, part in zip(state.parameters, (gradient[:2], gradient[2:]), strict=True):
            parameter.grad = torch.tensor(part).view_as(parameter)
        found, finite = state.step(0.1, limit)
    finally:
        type(accelerator.state)._reset_state(reset_partial_state=True)
    assert (float(found), bool(finite)) == (pytest.approx(norm), True)
    assert seen[0].tolist() == pytest.approx(applied, rel=1e-5)  # torch divides by norm + 1e-6
