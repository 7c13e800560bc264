"""The Mamba mixer on an image: selective scans in four directions. Liu et al. 2024 (VMamba), arXiv:2401.10166."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import xavier
from dinit.models.layers.scan import selective_scan


def serpentine(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(rows * columns,) int64: the tokens of an image row by row, every second row from its end.

    Each token of the path neighbours the one before it in the image.
    """
    index = torch.arange(rows * columns, device=device).unflatten(0, (rows, columns))
    odd = torch.arange(rows, device=device)[:, None] % 2 == 1
    return torch.where(odd, index.flip(1), index).flatten()


class DirectedScan(nn.Module):
    """A selective scan whose step sizes, B and C are Linear in its input. Gu & Dao 2023, arXiv:2312.00752."""

    def __init__(self, channels: int, states: int, dt_rank: int) -> None:
        super().__init__()
        self.sizes = (dt_rank, states, states)
        self.x_proj = nn.Linear(channels, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, channels)
        self.A_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():  # step sizes log-uniform in [0.001, 0.1], through the inverse of softplus
            delta = torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))

    def forward(self, u: Tensor, reverse: bool) -> Tensor:
        """u (B, L, channels) -> (B, channels, L)."""
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)  # each (B, L, features)
        delta = F.softplus(self.dt_proj(dt)).transpose(1, 2)
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        u, B, C = (part.transpose(1, 2) for part in (u, B, C))
        return selective_scan(u, delta, A, B.to(u), C.to(u), self.D, reverse)


class Mamba2d(nn.Module):
    """in_proj to (x | gate), 3x3 depthwise convolution and SiLU, four scans, norm, times SiLU(gate), out_proj.

    The scans go along the rows and along the columns, each there and back, every second row (column) the other
    way round; their results are summed. Every direction has its own weights. expand: inner channels per outer
    one. dt_rank is ceil(dim / 16), as in Mamba.
    """

    def __init__(self, dim: int, states: int = 1, expand: int = 2) -> None:
        super().__init__()
        inner, dt_rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = xavier(nn.Linear(dim, 2 * inner, bias=False))
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.scans = nn.ModuleList(DirectedScan(inner, states, dt_rank) for _ in range(4))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = xavier(nn.Linear(inner, dim, bias=False))

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """tokens (B, rows * columns, dim), row by row -> (B, rows * columns, dim)."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        grid = x.transpose(1, 2).unflatten(-1, (rows, columns))
        u = F.silu(self.conv(grid).flatten(2)).transpose(1, 2)  # (B, L, inner)
        tall = torch.arange(rows * columns, device=u.device).unflatten(0, (rows, columns)).t().flatten()
        paths = serpentine(rows, columns, u.device), tall[serpentine(columns, rows, u.device)]
        y = torch.zeros_like(u)
        for i, path in enumerate(paths):
            along = u[:, path]
            there, back = self.scans[2 * i](along, False), self.scans[2 * i + 1](along, True)
            y = y + (there + back).transpose(1, 2)[:, path.argsort()]
        return self.out_proj(self.norm(y) * F.silu(gate))
