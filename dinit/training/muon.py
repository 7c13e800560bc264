"""Muon optimiser for matrices and convolutions, whose step a tensor on the device can switch off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of s, s³ and s⁵ in a polynomial that moves singular values in (0, 1] near 1. Jordan et al. 2024."""
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """m <- mu m + (1 - mu) g; W <- W (1 - lr decay) - 0.2 lr sqrt(larger side) NS(mu m + (1 - mu) g).

    A kernel (out, in, ...) of a convolution is the matrix (out, in * ...).

    Jordan et al. 2024; the factor 0.2 sqrt(larger side), which gives a step AdamW's size, is from Liu et al. 2025
    (Moonlight, arXiv:2502.16982). This equals torch.optim.Muon with Nesterov momentum and 'match_rms_adamw', which
    refuses convolutions and has no `found_inf`. On CPUs it iterates in float32: those without bfloat16 instructions
    multiply bfloat16 matrices 9 times slower. Where an attribute `found_inf` is set, a tensor of 0 or 1, a step
    changes nothing at 1, without a wait for the device.

    Args:
        parameters: Weights of two or more dimensions.
        lr: Learning rate, as of AdamW.
        momentum: mu, in [0, 1).
        weight_decay: Decoupled from the gradient, as of AdamW.

    Raises:
        ValueError: a parameter has fewer than two dimensions.
    """

    _step_supports_amp_scaling = True  # torch's name for an optimiser that reads found_inf

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if wrong := next((p for group in self.param_groups for p in group["params"] if p.ndim < 2), None):
            raise ValueError(f"Muon is for matrices and kernels, got a parameter of shape {tuple(wrong.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = {}  # many small products cost more than one of all
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(tuple(p.flatten(1).shape), []).append(p)
            for parameters in alike.values():
                self._move(parameters, group)
        return loss

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """The step of parameters whose matrices have one shape."""
        rate, mu, found = group["lr"], group["momentum"], getattr(self, "found_inf", None)
        bad = None if found is None else found.bool()
        directions = []
        for p in parameters:
            assert p.grad is not None, "step has skipped those without"
            state = self.state[p]
            if "momentum_buffer" not in state:  # torch's name, so that checkpoints go from one to the other
                state["momentum_buffer"] = torch.zeros_like(p)
            momentum = state["momentum_buffer"]
            gradient = p.grad if bad is None else torch.where(bad, momentum, p.grad)  # which leaves the momentum
            momentum.lerp_(gradient, 1 - mu)
            directions.append(gradient.lerp(momentum, mu).flatten(1))
        matrices = torch.stack(directions)
        moves = orthogonalised(matrices if matrices.device.type == "cpu" else matrices.bfloat16()).to(matrices)
        kept: float | Tensor = 1 - rate * group["weight_decay"]
        if bad is not None:
            moves, kept = torch.where(bad, 0.0, moves), torch.where(bad, 1.0, kept)
        for p, move in zip(parameters, moves, strict=True):
            p.mul_(kept)
            p.add_(move.view_as(p), alpha=-0.2 * rate * math.sqrt(max(move.shape)))


def orthogonalised(matrices: Tensor) -> Tensor:
    """U S' V^T of matrices U S V^T, (..., n, m), in their dtype, with S' near 1, by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # singular values are at most 1
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
