"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinit.training.muon import Muon
from dinit.training.recipe.model import OptimizerSection, ScheduleSection
from dinit.training.sharding import local

FUSED = ("cpu", "cuda")
"""Devices on which AdamW takes its fused form, which can leave out a step without a wait."""


def make_optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    """The optimiser of `section.kind` for a network that is on its device already.

    adamw: Loshchilov & Hutter 2019, in its fused form where there is one, which speeds up small networks most.
    lion: Chen et al. 2023. muon: Muon (Jordan et al. 2024) for the weights that `by_muon` lists, its rate matched
    to AdamW's, and AdamW for all others. Frozen parameters are left out.
    """
    if section.kind == "muon":
        return _muon(network, section)
    parameters = [p for p in network.parameters() if p.requires_grad]
    return _lion(parameters, section) if section.kind == "lion" else _adamw(parameters, section)


def _adamw(parameters: list[nn.Parameter], section: OptimizerSection) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=parameters[0].device.type in FUSED,
    )


def _lion(parameters: list[nn.Parameter], section: OptimizerSection) -> torch.optim.Optimizer:
    return Lion(parameters, section.lr, section.betas, section.weight_decay)


def by_muon(network: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers and convolutions, which Muon moves.

    Not those that do not mix channels (embedding tables, depthwise kernels, a state-space layer's own), and not
    kernels to or from images, of up to 4 channels: Jordan et al. leave first and last convolutions to AdamW.
    """

    def mixes(module: nn.Module) -> bool:
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return module.groups == 1 and min(module.weight.shape[:2]) > 4
        return isinstance(module, nn.Linear)

    weights = [p for m in network.modules() if mixes(m) for p in m.parameters(recurse=False) if p.ndim >= 2]
    return list({id(p): p for p in weights if p.requires_grad}.values())


def _muon(network: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    moved = by_muon(network)
    ids = {id(p) for p in moved}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in ids]
    if not moved:
        return _adamw(others, section)
    settings: dict[str, Any] = {
        "lr": section.lr,
        "momentum": section.betas[0],
        "weight_decay": section.weight_decay,
    }
    return Joined([Muon(moved, **settings), *([_adamw(others, section)] if others else [])])


def step_if_finite(optimizer: Any, finite: Tensor) -> None:
    """One step of the optimiser if `finite`, a 0-dimensional tensor, is true; otherwise nothing changes.

    The device decides and the host does not wait, except for AdamW on a device without its fused form.
    """
    raw = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    if not getattr(raw, "_step_supports_amp_scaling", False):
        if bool(finite):
            optimizer.step()
        return
    raw.grad_scale, raw.found_inf = None, 1 - finite.float()
    try:
        optimizer.step()
    finally:
        del raw.grad_scale, raw.found_inf


class Lion(torch.optim.Optimizer):
    """w <- w - lr (sign(b1 m + (1 - b1) g) + decay w); m <- b2 m + (1 - b2) g. Chen et al. 2023, Algorithm 2.

    Source: arXiv:2302.06675. Where an attribute `found_inf` is set, a tensor of 0 or 1, a step changes nothing at
    1, without a wait for the device.

    Args:
        parameters: The trained weights.
        lr: Learning rate; AdamW's divided by 3 to 10.
        betas: (b1, b2), in [0, 1).
        weight_decay: Decoupled from the gradient.
    """

    _step_supports_amp_scaling = True  # torch's name for an optimiser that reads found_inf

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients: list[Tensor] = [local(p.grad) for p in weights]
            momenta = [local(self._momentum(p)) for p in weights]
            weights, rate = [local(p) for p in weights], group["lr"]
            first, second = group["betas"]
            bad = getattr(self, "found_inf", None)
            if bad is not None:  # then each gradient is its momentum, which so stays as it is
                keep = bad.bool()
                gradients = [torch.where(keep, m, g) for m, g in zip(momenta, gradients, strict=True)]
            moves = torch._foreach_sign(torch._foreach_lerp(momenta, gradients, 1 - first))  # pyright: ignore
            decay = rate * group["weight_decay"]
            if bad is not None:
                torch._foreach_mul_(moves, 1 - bad)  # pyright: ignore
            torch._foreach_mul_(weights, 1 - decay if bad is None else 1 - decay * (1 - bad))  # pyright: ignore
            torch._foreach_add_(weights, moves, alpha=-rate)  # pyright: ignore
            torch._foreach_lerp_(momenta, gradients, 1 - second)  # pyright: ignore
        return loss

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


class Joined(torch.optim.Optimizer):
    """Several optimisers, each of its own parameters, as one: one state, one list of groups."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts)

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        switches = {name: getattr(self, name) for name in ("grad_scale", "found_inf") if hasattr(self, name)}
        for part in self.parts:
            vars(part).update(switches)
            try:
                part.step()
            finally:
                for name in switches:
                    delattr(part, name)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def learning_rate(
    step: int, total: int, peak: float, schedule: ScheduleSection, extended: Sequence[tuple[int, int]] = ()
) -> float:
    """The learning rate of an optimiser step, whatever the number of processes.

    Linear from peak / (warmup_steps + 1) to peak over warmup_steps; then constant, or a half cosine that
    reaches peak * floor at the last step. A pure function: a resumed run needs the step number alone. After a
    change of the total each step has the rate that it has in a run of the new total from the beginning.

    Args:
        step: 1 .. total.
        total: Optimiser steps of the run.
        peak: The largest rate.
        schedule: Kind, warm-up and floor.
        extended: (last step, total) of each total that the run had before.

    Returns:
        The rate.
    """
    total = next((before for last, before in extended if step <= last), total)
    if step <= schedule.warmup_steps:
        return peak * step / (schedule.warmup_steps + 1)
    if schedule.kind == "constant":
        return peak
    done = (step - schedule.warmup_steps) / max(total - schedule.warmup_steps, 1)
    return peak * (schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * done)) / 2)
