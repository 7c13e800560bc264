"""The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752) and its causal convolution.

Notation of the paper: u input, delta step sizes, A, B, C, D the state-space parameters, h the state;
L positions, N states a channel. For every channel, with h_0 = 0,

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t . h_t + D u_t.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False) -> Tensor:
    """Depthwise convolution in which position t sees t - K + 1 .. t; reverse: t .. t + K - 1.

    x (B, channels, L), weight (channels, K), bias (channels,) -> (B, channels, L). As with selective_scan,
    reverse is the same as flipping x and the result along L.
    """
    reach = weight.shape[-1] - 1
    padded = F.pad(x, (0, reach) if reverse else (reach, 0))
    kernel = weight.flip(-1) if reverse else weight
    return F.conv1d(padded, kernel[:, None], bias, groups=len(weight))


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """y of the recurrence above. u, delta (B, channels, L), A (channels, N), B, C (B, N, L), D (channels,).

    delta: at least 0 (after its softplus). A: negative. reverse: from the last position to the first. Returns
    (B, channels, L) in u's dtype; the state is float32 at least. ValueError for shapes that do not fit.
    """
    _check(u, delta, A, B, C, D)
    dtype = torch.promote_types(u.dtype, torch.float32)
    sequences = [x.to(dtype) for x in (u, delta, B, C)]
    if reverse:
        sequences = [x.flip(-1) for x in sequences]
    with torch.autocast(u.device.type, enabled=False):
        y = _scan(sequences[0], sequences[1], A.to(dtype), sequences[2], sequences[3])
    if reverse:
        y = y.flip(-1)
    return (y if D is None else torch.addcmul(y, u.to(dtype), D.to(dtype)[:, None])).to(u.dtype)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    batch, channels, length = u.shape
    states = A.shape[-1]
    wanted = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)),
        **({} if D is None else {"D": (D, (channels,))}),
    }
    for name, (x, shape) in wanted.items():
        if x.shape != shape:
            raise ValueError(
                f"selective_scan with u {tuple(u.shape)} and {states} states needs {name} of shape {shape}, "
                f"got {tuple(x.shape)}"
            )


def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """About 2 sqrt(L) steps instead of L, each on a state for every chunk.

    The sequence is cut into chunks. All chunks advance together from a zero state, which gives what each adds
    to the state; that is carried from chunk to chunk; and all advance again from the state they start with.
    Only decays are multiplied, never divided by, so nothing overflows.
    """
    length = u.shape[-1]
    steps = max(1, math.ceil(math.sqrt(length)))
    chunks = math.ceil(length / steps)
    # delta = 0 keeps the state as it is.
    deltas, driven, Bs, Cs = (_cut(x, steps, chunks) for x in (delta, delta * u, B, C))
    rates = A.t().contiguous()  # channels last: the longest axis
    decay = [torch.exp(d[..., None, :] * rates) for d in deltas]  # each (B, chunks, N, channels)
    drive = [x[..., None, :] * b[..., None] for x, b in zip(driven, Bs, strict=True)]
    h = drive[0]
    for a, b in zip(decay[1:], drive[1:], strict=True):
        h = torch.addcmul(b, a, h)
    h = _carry(torch.exp(torch.stack(deltas).sum(0)[..., None, :] * rates), h)
    y = []
    for a, b, c in zip(decay, drive, Cs, strict=True):
        h = torch.addcmul(b, a, h)
        y.append(torch.matmul(c[..., None, :], h).squeeze(-2))
    return torch.stack(y, dim=2).flatten(1, 2)[:, :length].transpose(1, 2)


def _cut(x: Tensor, steps: int, chunks: int) -> tuple[Tensor, ...]:
    """(B, F, L) -> `steps` tensors (B, chunks, F): position s of every chunk."""
    padded = F.pad(x, (0, steps * chunks - x.shape[-1]))
    return padded.unflatten(-1, (chunks, steps)).permute(3, 0, 2, 1).contiguous().unbind(0)


def _carry(decay: Tensor, added: Tensor) -> Tensor:
    """The state at the start of each chunk, from each chunk's decay and addition; all (B, chunks, N, channels)."""
    starts = [torch.zeros_like(added[:, 0])]
    for k in range(added.shape[1] - 1):
        starts.append(torch.addcmul(added[:, k], decay[:, k], starts[-1]))
    return torch.stack(starts, dim=1)
