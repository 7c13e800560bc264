"""The Mamba mixer on an image: selective scans in four directions. Liu et al. 2024 (VMamba), arXiv:2401.10166."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import xavier
from dinit.models.layers.scan import runs_compiled_loops, scan_backend, selective_scan


def serpentine(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(rows * columns,) int64: the tokens of an image row by row, every second row from its end.

    Each token of the path neighbours the one before it in the image.
    """
    index = torch.arange(rows * columns, device=device).unflatten(0, (rows, columns))
    index[1::2] = index[1::2].flip(1)
    return index.flatten()


class Mamba2d(nn.Module):
    """in_proj to (x | gate), 3x3 depthwise convolution and SiLU, four scans, norm, times SiLU(gate), out_proj.

    The scans go along the rows and along the columns, each there and back, every second row (column) the other
    way round; their results are summed. Every direction has its own weights, in the first axis of what is
    learned for the scans: step sizes, B and C are linear in x, as in Mamba (Gu & Dao 2023, arXiv:2312.00752).
    expand: inner channels per outer one. dt_rank is ceil(dim / 16), as in Mamba.
    """

    def __init__(self, dim: int, states: int = 1, expand: int = 2) -> None:
        super().__init__()
        inner, dt_rank = expand * dim, math.ceil(dim / 16)
        self.sizes = (dt_rank, states, states)
        self.in_proj = xavier(nn.Linear(dim, 2 * inner, bias=False))
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj = nn.Parameter(torch.empty(4, sum(self.sizes), inner).uniform_(-(inner**-0.5), inner**-0.5))
        self.dt_proj = nn.Parameter(torch.empty(4, inner, dt_rank).uniform_(-(dt_rank**-0.5), dt_rank**-0.5))
        # Step sizes log-uniform in [0.001, 0.1], through the inverse of softplus.
        delta = torch.empty(4, inner).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(delta + torch.log(-torch.expm1(-delta)))
        self.A_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(4, inner, 1))
        self.D = nn.Parameter(torch.ones(4, inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = xavier(nn.Linear(inner, dim, bias=False))

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """tokens (B, rows * columns, dim), row by row -> (B, rows * columns, dim)."""
        inner = self.in_proj(tokens)
        x, gate = inner.chunk(2, dim=-1)
        # Channels stay last in memory, as the convolution and the scan want them on a CPU.
        grid = x.contiguous().unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        u = F.silu(self.conv(grid)).flatten(2).transpose(1, 2)  # (B, L, inner)
        by_row = serpentine(rows, columns, u.device)
        tall = torch.arange(rows * columns, device=u.device).unflatten(0, (rows, columns)).t().flatten()
        by_column = tall[serpentine(columns, rows, u.device)]
        paths = torch.stack([by_row, by_row.flip(0), by_column, by_column.flip(0)])  # (4, L)
        y = self.norm(self._scan(u, paths).to(gate))
        if runs_compiled_loops(inner):
            from dinit.models.layers import scan_numba

            return self.out_proj(scan_numba.gate_silu(y, inner))
        return self.out_proj(y * F.silu(gate))

    def _scan(self, u: Tensor, paths: Tensor) -> Tensor:
        """Sum of the scans of u (B, L, inner) along paths (4, L) -> (B, L, inner)."""
        features = F.linear(u, self.x_proj.flatten(0, 1)).unflatten(-1, (4, -1)).permute(2, 0, 1, 3)
        dt, B, C = features.split(self.sizes, dim=-1)  # each (4, B, L, features)
        dtype = torch.promote_types(u.dtype, torch.float32)
        A_log = self.A_log.to(dtype)
        if scan_backend(u) == "numba":
            from dinit.models.layers import scan_numba

            steps = torch.bmm(dt.flatten(1, 2), self.dt_proj.mT).to(dtype) + self.dt_bias[:, None]
            A = -A_log.exp()
            return scan_numba.scan_paths(u[None], steps.view(4, *u.shape), A, B, C, self.D, paths, softplus=True)
        dt, B, C = (x.take_along_dim(paths[:, None, :, None], dim=2) for x in (dt, B, C))
        steps = torch.einsum("kblr,kcr->kbcl", dt, self.dt_proj).to(dtype) + self.dt_bias[:, None, :, None]
        delta = F.softplus(steps)
        y = self._one_scan(u[:, paths].permute(1, 0, 3, 2), delta, A_log, B, C)
        return y.take_along_dim(paths.argsort()[:, None, None], dim=-1).sum(0).transpose(1, 2)

    def _one_scan(self, u: Tensor, delta: Tensor, A_log: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """u, delta (4, B, inner, L), B, C (4, B, L, states) in the order of the paths -> (4, B, inner, L).

        All directions and states are one scan with a single state and A = -1, which is as fast as one direction's:
        a state of rate a = -A and step delta is one of rate 1 and step a delta, driven by u / a.
        """
        rate = A_log.exp().transpose(1, 2)[:, :, None, :, None]  # (4, states, 1, inner, 1)
        B, C = (part.permute(0, 3, 1, 2)[..., None, :] for part in (B, C))  # (4, states, B, 1, L)
        driven, steps = (u[:, None] / rate).flatten(0, 2), (delta[:, None] * rate).flatten(0, 2)
        A = -torch.ones(u.shape[2], 1, dtype=rate.dtype, device=u.device)
        y = selective_scan(driven, steps, A, B.flatten(0, 2), C.flatten(0, 2))
        return y.unflatten(0, (4, rate.shape[1], -1)).sum(1) + self.D[:, None, :, None] * u
