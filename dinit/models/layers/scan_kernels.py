"""Triton kernels of the selective scan; scan_triton launches them. Importing this file needs triton.

A program scans some channels of one item of the batch, position after position, all their states in registers.
The sequences u, delta, y are (B, L, channels) and B, C (B, L, N); rates, A / log(2), are (channels, N); D is
(channels,); all are contiguous. Whatever their dtypes, the arithmetic is in that of the rates. Offsets are 64-bit.
`first` is the position at which the scan begins, and `step` is 1, or -1 for a scan from the end.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def forward_kernel(
    u_ptr,
    delta_ptr,
    rates_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    y_ptr,
    channels,
    states,
    length,
    reverse: tl.constexpr,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
):
    """y of the recurrence, with the D term."""
    item = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    state = tl.arange(0, block_states)
    channel_inside, state_inside = channel < channels, state < states
    inside = channel_inside[:, None] & state_inside[None, :]
    rates = tl.load(rates_ptr + channel[:, None] * states + state[None, :], mask=inside, other=0.0)
    skip = tl.load(d_ptr + channel, mask=channel_inside, other=0.0)

    first = length - 1 if reverse else 0
    step = -1 if reverse else 1
    wide = (item * length + first) * channels + channel
    narrow = (item * length + first) * states + state
    h = tl.zeros_like(rates)
    for _ in range(length):
        u = tl.load(u_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
        delta = tl.load(delta_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
        b = tl.load(b_ptr + narrow, mask=state_inside, other=0.0).to(rates.dtype)
        c = tl.load(c_ptr + narrow, mask=state_inside, other=0.0).to(rates.dtype)
        h = tl.exp2(delta[:, None] * rates) * h + (delta * u)[:, None] * b[None, :]
        tl.store(y_ptr + wide, tl.sum(h * c[None, :], axis=1) + skip * u, mask=channel_inside)
        wide += step * channels
        narrow += step * states


@triton.jit
def backward_kernel(
    u_ptr,
    delta_ptr,
    rates_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    grad_y_ptr,
    grad_u_ptr,
    grad_delta_ptr,
    grad_rates_ptr,
    grad_b_ptr,
    grad_c_ptr,
    grad_d_ptr,
    starts_ptr,
    kept_ptr,
    channels,
    states,
    length,
    chunk,
    chunks,
    reverse: tl.constexpr,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
):
    """Gradients of sum(grad_y * y). With a_t = exp(delta_t A) and g_t the gradient for h_t,

    g_t = C_t grad_y_t + a_{t+1} g_{t+1}.

    The first pass goes forward and writes the state in which each chunk of positions starts to `starts`,
    (B, chunks, channels, N). The second takes the chunks from the last to the first: forward through one, writing
    the state before each position to `kept`, (B, chunk, channels, N), and back. Sums over channels are of this
    program's alone, (B, programs, L, N), and those over positions of this item, (B, channels, N) and (B, channels):
    added up afterwards, they are the same at every run.
    """
    item = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    channel = part * block_channels + tl.arange(0, block_channels)
    state = tl.arange(0, block_states)
    channel_inside, state_inside = channel < channels, state < states
    inside = channel_inside[:, None] & state_inside[None, :]
    matrix = channel[:, None] * states + state[None, :]
    rates = tl.load(rates_ptr + matrix, mask=inside, other=0.0)
    skip = tl.load(d_ptr + channel, mask=channel_inside, other=0.0)

    first = length - 1 if reverse else 0
    step = -1 if reverse else 1
    wide = (item * length + first) * channels + channel
    narrow = (item * length + first) * states + state
    # How much further the sums over this program's channels are than B and C.
    partial = (item * (tl.num_programs(1) - 1) + part) * length * states
    area = channels * states
    start = item * chunks * area + matrix
    h = tl.zeros_like(rates)
    for i in range(chunks):
        tl.store(starts_ptr + start, h, mask=inside)
        start += area
        for _ in range(tl.minimum(chunk, length - i * chunk)):
            u = tl.load(u_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            delta = tl.load(delta_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            b = tl.load(b_ptr + narrow, mask=state_inside, other=0.0).to(rates.dtype)
            h = tl.exp2(delta[:, None] * rates) * h + (delta * u)[:, None] * b[None, :]
            wide += step * channels
            narrow += step * states

    g = tl.zeros_like(rates)
    grad_rates = tl.zeros_like(rates)
    grad_d = tl.zeros_like(skip)
    for i in range(chunks):
        positions = tl.minimum(chunk, length - (chunks - 1 - i) * chunk)
        wide -= step * positions * channels
        narrow -= step * positions * states
        start -= area
        kept = item * chunk * area + matrix
        # A thread may read what another has written: one barrier before, one after it is written over.
        tl.debug_barrier()
        h = tl.load(starts_ptr + start, mask=inside, other=0.0)
        for _ in range(positions):
            tl.store(kept_ptr + kept, h, mask=inside)
            u = tl.load(u_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            delta = tl.load(delta_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            b = tl.load(b_ptr + narrow, mask=state_inside, other=0.0).to(rates.dtype)
            h = tl.exp2(delta[:, None] * rates) * h + (delta * u)[:, None] * b[None, :]
            wide += step * channels
            narrow += step * states
            kept += area
        tl.debug_barrier()
        for _ in range(positions):
            wide -= step * channels
            narrow -= step * states
            kept -= area
            u = tl.load(u_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            delta = tl.load(delta_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            grad_y = tl.load(grad_y_ptr + wide, mask=channel_inside, other=0.0).to(rates.dtype)
            b = tl.load(b_ptr + narrow, mask=state_inside, other=0.0).to(rates.dtype)
            c = tl.load(c_ptr + narrow, mask=state_inside, other=0.0).to(rates.dtype)
            decay = tl.exp2(delta[:, None] * rates)
            decayed = decay * tl.load(kept_ptr + kept, mask=inside, other=0.0)
            driven = (delta * u)[:, None]
            g += grad_y[:, None] * c[None, :]
            grad_driven = tl.sum(g * b[None, :], axis=1)
            exponent = g * decayed * 0.6931471805599453  # log(2): the gradient for delta_t rates
            grad_rates += exponent * delta[:, None]
            grad_d += grad_y * u
            grad_delta = grad_driven * u + tl.sum(exponent * rates, axis=1)
            grad_u = grad_driven * delta + grad_y * skip
            grad_b = tl.sum(g * driven, axis=0)
            grad_c = tl.sum((decayed + driven * b[None, :]) * grad_y[:, None], axis=0)
            tl.store(grad_u_ptr + wide, grad_u, mask=channel_inside)
            tl.store(grad_delta_ptr + wide, grad_delta, mask=channel_inside)
            tl.store(grad_b_ptr + partial + narrow, grad_b, mask=state_inside)
            tl.store(grad_c_ptr + partial + narrow, grad_c, mask=state_inside)
            g *= decay
    tl.store(grad_rates_ptr + item * area + matrix, grad_rates, mask=inside)
    tl.store(grad_d_ptr + item * channels + channel, grad_d, mask=channel_inside)
