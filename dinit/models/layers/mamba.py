"""The Mamba mixer: a gated selective state-space model. Gu & Dao 2023, arXiv:2312.00752, Section 3.4.

Two directions make it the bidirectional mixer of Vision Mamba (Zhu et al. 2024, arXiv:2401.09417).
"""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.scan import causal_conv, selective_scan


class SelectiveSSM(nn.Module):
    """Causal convolution, SiLU, and a selective scan whose step sizes, B and C are Linear in its input.

    reverse: from the last position to the first. dt_rank: of the map to step sizes.
    """

    def __init__(self, channels: int, states: int, conv_width: int, dt_rank: int, reverse: bool) -> None:
        super().__init__()
        self.sizes = (dt_rank, states, states)
        self.reverse = reverse
        self.conv = nn.Conv1d(channels, channels, conv_width, groups=channels)
        self.x_proj = nn.Linear(channels, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, channels)
        # A starts at -1, -2, .. -N in every channel (the S4D-Real initialisation of Section 3.6).
        self.A_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self._spread_step_sizes(dt_rank)

    def _spread_step_sizes(self, dt_rank: int) -> None:
        """Starts softplus(bias) log-uniform in [0.001, 0.1], so that channels differ in how far they remember."""
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            low, high = math.log(1e-3), math.log(1e-1)
            delta = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus of this is delta

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, L) -> (B, channels, L)."""
        u = F.silu(causal_conv(x, self.conv.weight.squeeze(1), self.conv.bias, self.reverse))
        dt, B, C = self.x_proj(u.transpose(1, 2)).split(self.sizes, dim=-1)  # each (B, L, features)
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)  # of steps and decays
        delta = F.softplus(self.dt_proj(dt).to(dtype)).transpose(1, 2)
        A = -torch.exp(self.A_log.to(dtype))
        return selective_scan(u, delta, A, B.transpose(1, 2), C.transpose(1, 2), self.D, self.reverse)


class Mamba(nn.Module):
    """in_proj to (x | gate), the state-space model(s) over x, times SiLU(gate), out_proj.

    bidirectional: a second model from the last token to the first, with its own weights; the two are summed.
    expand: inner channels per outer one. dt_rank: None is ceil(dim / 16), as published.
    """

    def __init__(
        self,
        dim: int,
        states: int = 16,
        conv_width: int = 4,
        expand: int = 2,
        bidirectional: bool = True,
        dt_rank: int | None = None,
    ) -> None:
        super().__init__()
        inner, dt_rank = expand * dim, math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.directions = nn.ModuleList(
            SelectiveSSM(inner, states, conv_width, dt_rank, reverse)
            for reverse in ((False, True) if bidirectional else (False,))
        )
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, L, dim) -> (B, L, dim)."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        x = x.transpose(1, 2)
        y = reduce(torch.add, (direction(x) for direction in self.directions))
        return self.out_proj(y.transpose(1, 2) * F.silu(gate))
