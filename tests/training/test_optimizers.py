"""Optimisers against their update rules, and their state through a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinit.training.muon import Muon, orthogonalised
from dinit.training.optimizer import by_muon, make_optimizer, step_if_finite
from dinit.training.recipe.model import OptimizerSection
from dinit.training.run.checkpoint import optimizer_tensors, restore_optimizer


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 8))
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return made


def gradients(model: nn.Module, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_lion_follows_its_rule() -> None:
    """Chen et al. 2023, Algorithm 2, in plain numbers over three steps."""
    model = network()
    optimizer = make_optimizer(model, OptimizerSection(kind="lion", lr=0.01, betas=(0.9, 0.95), weight_decay=0.2))
    weights = [p.detach().clone().double() for p in model.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    for seed in range(3):
        for i, g in enumerate(gradients(model, seed)):
            move = (0.9 * momenta[i] + 0.1 * g).sign()
            weights[i] = weights[i] - 0.01 * (move + 0.2 * weights[i])
            momenta[i] = 0.95 * momenta[i] + 0.05 * g
        optimizer.step()
    for ours, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(
            ours.detach().double(), expected, rtol=0, atol=2e-6
        )  # float32, three steps: 3.2e-7


def test_muon_makes_steps_of_matrices_orthogonal_and_leaves_the_rest_to_adamw() -> None:
    model, same = network(), network()
    section = OptimizerSection(kind="muon", lr=0.01, betas=(0.9, 0.99))
    optimizer = make_optimizer(model, section)
    others = [p for p in same.parameters() if p.ndim != 2]
    adamw = make_optimizer(nn.ParameterList(others), OptimizerSection(lr=0.01, betas=(0.9, 0.99)))
    before = [p.detach().clone() for p in model.parameters()]
    gradients(model, 0)
    gradients(same, 0)
    optimizer.step()
    adamw.step()
    for old, ours, theirs in zip(before, model.parameters(), same.parameters(), strict=True):
        if ours.ndim == 2:
            # Newton-Schulz leaves singular values near 1; the rate is 0.2 sqrt(larger side) of them.
            move = (old - ours.detach()) / (0.01 * 0.2 * max(ours.shape) ** 0.5)
            values = torch.linalg.svdvals(move)
            assert float(values.min()) > 0.5
            assert float(values.max()) < 1.4
        else:
            assert torch.equal(ours, theirs)


def test_muon_moves_what_mixes_channels() -> None:
    """Not kernels at the image, depthwise kernels, tables of labels or frozen weights. Jordan et al. 2024."""
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "kernel": nn.Conv2d(8, 12, 3),
            "point": nn.Conv2d(12, 5, 1),
            "head": nn.Conv2d(8, 3, 3),
            "table": nn.Embedding(9, 8),
            "linear": nn.Linear(8, 6),
            "frozen": nn.Linear(8, 6).requires_grad_(False),
            "norm": nn.LayerNorm(8),
        }
    )
    moved = {id(p) for p in by_muon(model)}
    names = {name for name, p in model.named_parameters() if id(p) in moved}
    assert names == {"kernel.weight", "point.weight", "linear.weight"}


def test_muon_takes_a_kernel_as_a_matrix_of_output_channels() -> None:
    generator = torch.Generator().manual_seed(2)
    kernel, gradient = (torch.randn(6, 8, 3, 3, generator=generator) for _ in range(2))
    parameters = nn.Parameter(kernel.clone()), nn.Parameter(kernel.reshape(6, 72).clone())
    for p in parameters:
        p.grad = gradient.reshape(p.shape)
        Muon([p], lr=0.1).step()
    assert torch.equal(parameters[0].reshape(6, 72), parameters[1])
    move = (kernel - parameters[0].detach()).reshape(6, 72) / (0.1 * 0.2 * math.sqrt(72))
    assert float(torch.linalg.svdvals(move).min()) > 0.5


def test_muon_with_nothing_to_move_is_adamw() -> None:
    norm = nn.LayerNorm(4)
    assert type(make_optimizer(norm, OptimizerSection(kind="muon"))) is torch.optim.AdamW


@pytest.mark.parametrize("shape", [(6, 4), (3, 8)])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):  # Jordan et al. 2024
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalised(matrix), u * s @ v)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_torchs_own_but_for_its_bfloat16() -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(12, 20, generator=generator)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    pair = (Muon([ours], **settings), torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"))
    for _ in range(4):
        gradient = torch.randn(12, 20, generator=generator)
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    moved = float((theirs.detach() - start).norm())
    assert float((ours - theirs).detach().norm()) < 0.01 * moved
    torch.testing.assert_close(*(o.state_dict()["state"][0]["momentum_buffer"] for o in pair))


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_a_restored_optimizer_goes_on_with_the_same_steps(kind: str) -> None:
    section = OptimizerSection(kind=kind, lr=0.05, weight_decay=0.1)  # type: ignore[arg-type]
    model, again = network(), network()
    optimizer = make_optimizer(model, section)
    for seed in range(3):
        gradients(model, seed)
        optimizer.step()
    other = make_optimizer(again, section)
    again.load_state_dict(model.state_dict())
    restore_optimizer(other, {k: v.clone() for k, v in optimizer_tensors(optimizer).items()})
    for group in (*optimizer.param_groups, *other.param_groups):
        group["lr"] = 0.02  # as the schedule does: it must reach every part
    before = [p.detach().clone() for p in again.parameters()]
    for m, o in ((model, optimizer), (again, other)):
        gradients(m, 7)
        o.step()
        o.zero_grad()
    for ours, expected, old in zip(again.parameters(), model.parameters(), before, strict=True):
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, old)
        assert ours.grad is None


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(kind: str) -> None:
    """Weights, momenta and counts are those before it, and the next good step is the one it would have been."""

    def run(gradients: list[float]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = make_optimizer(network, OptimizerSection(kind=kind, lr=0.1, weight_decay=0.1))  # type: ignore[arg-type]
        for value in gradients:
            for k, p in enumerate(network.parameters()):
                p.grad = torch.sin(torch.arange(p.numel()) + k).reshape(p.shape) * value
            step_if_finite(optimizer, torch.tensor(value).isfinite())
        return [p.detach().clone() for p in network.parameters()], optimizer_tensors(optimizer)

    weights, state = run([1.0, math.nan, -2.0, math.inf])
    expected, expected_state = run([1.0, -2.0])
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[key], expected_state[key]) for key in state)
    moved, _ = run([1.0, -2.0, 0.5])
    assert not any(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))
