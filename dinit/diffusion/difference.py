"""The difference of noise and data, which networks of flow matching predict whatever clock their time runs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dinit.diffusion.parameterization import PARAMETERIZATIONS, Pair, Parameterization
from dinit.diffusion.process import Scales


@PARAMETERIZATIONS.register("difference")
@dataclass(frozen=True)
class Difference(Parameterization):
    """eps - x0: (-1, 1). Liu et al. 2023; Esser et al. 2024. Never singular.

    On the straight path it is dx / dsigma. 'velocity' is dx / dt, which is the same for a shift of 1 and differs
    by the factor dsigma / dt for any other.
    """

    def coefficients(self, k: Scales) -> Pair:
        return -torch.ones_like(k.alpha), torch.ones_like(k.alpha)
