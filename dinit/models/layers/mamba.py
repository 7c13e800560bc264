"""The Mamba mixer: a gated selective state-space model. Gu & Dao 2023, arXiv:2312.00752, Section 3.4.

Two directions make it the bidirectional mixer of Vision Mamba (Zhu et al. 2024, arXiv:2401.09417).
"""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.scan import causal_conv, runs_compiled_loops, selective_scan


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
        """x (B, L, channels or more, of which the first are taken) -> (B, L, channels)."""
        weight, bias = self.conv.weight.squeeze(1), self.conv.bias
        if runs_compiled_loops(x):
            from dinit.models.layers import scan_numba

            u = scan_numba.conv_silu(x, weight, bias, self.reverse).transpose(1, 2)
        else:
            u = F.silu(causal_conv(x[..., : len(weight)].transpose(1, 2), weight, bias, self.reverse))
        dt, B, C = self.x_proj(u.transpose(1, 2)).split(self.sizes, dim=-1)  # each (B, L, features)
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)  # of steps and decays
        A = -torch.exp(self.A_log.to(dtype))
        steps, B, C = (x.transpose(1, 2) for x in (self.dt_proj(dt).to(dtype), B, C))
        return selective_scan(u, steps, A, B, C, self.D, self.reverse, softplus=True).transpose(1, 2)


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
        inner = self.in_proj(tokens)
        y = reduce(torch.add, (direction(inner) for direction in self.directions))
        if runs_compiled_loops(inner):
            from dinit.models.layers import scan_numba

            return self.out_proj(scan_numba.gate_silu(y, inner))
        return self.out_proj(y * F.silu(inner[..., inner.shape[-1] // 2 :]))
