"""The forward selective scan as one Triton kernel, for CUDA devices: states stay in registers.

Importing this file needs triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

CHANNELS = 16  # that one program scans


@triton.jit
def _kernel(
    u_ptr,
    delta_ptr,
    rates_ptr,
    b_ptr,
    c_ptr,
    y_ptr,
    channels,
    states,
    length,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
):
    """u, delta, y: (B, L, channels); B, C: (B, L, N); rates: (channels, N), all contiguous."""
    item = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    state = tl.arange(0, block_states)
    channel_inside, state_inside = channel < channels, state < states
    inside = channel_inside[:, None] & state_inside[None, :]
    rates = tl.load(rates_ptr + channel[:, None] * states + state[None, :], mask=inside, other=0.0)
    wide = item * length * channels + channel  # of position 0
    narrow = item * length * states + state
    h = tl.zeros_like(rates)
    for _ in range(length):
        u = tl.load(u_ptr + wide, mask=channel_inside, other=0.0)
        delta = tl.load(delta_ptr + wide, mask=channel_inside, other=0.0)
        b = tl.load(b_ptr + narrow, mask=state_inside, other=0.0)
        c = tl.load(c_ptr + narrow, mask=state_inside, other=0.0)
        h = tl.exp2(delta[:, None] * rates) * h + (delta * u)[:, None] * b[None, :]
        tl.store(y_ptr + wide, tl.sum(h * c[None, :], axis=1), mask=channel_inside)
        wide += channels
        narrow += states


def scan_forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y without the D term. u, delta (B, channels, L), A (channels, N), B, C (B, N, L), all in one dtype."""
    batch, channels, length = u.shape
    states = A.shape[1]
    rates = (A / math.log(2)).contiguous()  # exp(delta A) = 2^(delta rates)
    by_position = [x.transpose(1, 2).contiguous() for x in (u, delta, B, C)]
    y = torch.empty_like(by_position[0])
    grid = (batch, triton.cdiv(channels, CHANNELS))
    kernel: Any = _kernel
    if y.numel():
        with torch.cuda.device(u.device):  # triton launches on the current device
            kernel[grid](
                by_position[0],
                by_position[1],
                rates,
                by_position[2],
                by_position[3],
                y,
                channels,
                states,
                length,
                block_channels=CHANNELS,
                block_states=triton.next_power_of_2(states),
                num_warps=4,
            )
    return y.transpose(1, 2)
