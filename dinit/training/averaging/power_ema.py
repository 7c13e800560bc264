"""Power-function EMAs, whose length is chosen after training. Karras et al. 2024 (EDM2), arXiv:2312.02696, Sec. 3.

A power-function EMA weighs the weights of step t by t^gamma, so that its length grows with the training. Its
relative width sigma_rel is the standard deviation of that profile, divided by the number of steps. Snapshots of two
such EMAs at intervals are enough to reconstruct the EMA of another width: to good accuracy it is a linear
combination of the snapshots, whose coefficients are found by least squares on the profiles alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinit.training.sharding import local, put, whole

WIDEST = 0.28
"""Widths go up to this: at 1 / sqrt(12), 0.2887, gamma is 0 and all steps weigh alike."""


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a profile of relative width sigma_rel. ValueError outside (0, 0.28].

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the variance of the profile. Karras et al. 2024.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must be above 0 and at most {WIDEST}, got {sigma_rel}")
    low, high = 0.0, 2 / sigma_rel
    for _ in range(200):  # the width falls as gamma rises
        middle = (low + high) / 2
        low, high = (middle, high) if width_of(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def width_of(gamma: float) -> float:
    """The relative width of the profile (gamma + 1) t^gamma on [0, 1]: its standard deviation."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


class PowerEMA:
    """A power-function average of a network's parameters, in float32, updated at every optimiser step.

    Args:
        network: Its parameters must stay the same tensors; they are never written to.
        sigma_rel: Relative width, above 0 and at most 0.28.

    Raises:
        ValueError: sigma_rel is out of its range.
    """

    def __init__(self, network: nn.Module, sigma_rel: float) -> None:
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)
        self._followed = dict(network.named_parameters())
        self.averages = {name: p.detach().float().clone() for name, p in self._followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """average = beta average + (1 - beta) weights, beta = (1 - 1 / step)^(gamma + 1). step: from 1."""
        share = 1 - (1 - 1 / step) ** (self.gamma + 1)
        weights = [local(p.detach()).float() for p in self._followed.values()]
        torch._foreach_lerp_([local(a) for a in self.averages.values()], weights, share)  # pyright: ignore

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Restore saved averages. KeyError where one is missing."""
        for name, average in self.averages.items():
            put(average, averages[name])

    def gathered(self) -> PowerEMA:
        """This average with whole tensors; itself where they are whole. Call it in all processes."""
        there = copy.copy(self)
        there.averages = {name: whole(average) for name, average in self.averages.items()}
        return there


@dataclass(frozen=True)
class Snapshot:
    """The step at which an average was saved, and its relative width."""

    step: int
    sigma_rel: float


def coefficients(snapshots: Sequence[Snapshot], step: int, sigma_rel: float) -> list[float]:
    """Coefficients of the snapshots in the EMA of width sigma_rel as it was after `step` steps.

    Their combined profile is the nearest in L2, in float64. Karras et al. 2024. ValueError for no snapshot, or none
    at or after half of `step`: such snapshots do not contain the weights of the last half.
    """
    if not snapshots or max(s.step for s in snapshots) < step / 2:
        raise ValueError(
            f"the averages at step {step} need a snapshot from step {math.ceil(step / 2)} or later; the snapshots "
            f"are of steps {[s.step for s in snapshots]}"
        )
    wanted = Snapshot(step, sigma_rel)
    gram = torch.tensor([[_product(a, b) for b in snapshots] for a in snapshots], dtype=torch.float64)
    against = torch.tensor([_product(a, wanted) for a in snapshots], dtype=torch.float64)
    # Neighbouring snapshots are nearly parallel; the least solution of least squares does not blow up on them.
    return torch.linalg.lstsq(gram, against[:, None], rcond=1e-12, driver="gelsd").solution[:, 0].tolist()


def combined(tensors: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The linear combination of state dicts of equal keys, summed in float64, float32."""
    total = {name: shares[0] * value.double() for name, value in tensors[0].items()}
    for share, given in zip(shares[1:], tensors[1:], strict=True):
        for name in total:
            total[name] += share * given[name].double()
    return {name: value.float() for name, value in total.items()}


def _product(a: Snapshot, b: Snapshot) -> float:
    """The inner product of two profiles (gamma + 1) t^gamma / step^(gamma + 1) on [0, step]."""
    g, h = gamma_of(a.sigma_rel), gamma_of(b.sigma_rel)
    first, last = sorted((a.step, b.step))
    later = h if a.step <= b.step else g
    return (g + 1) * (h + 1) / (g + h + 1) * (first / last) ** later / last
