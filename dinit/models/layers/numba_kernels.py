"""Inner loops of the state-space layers on a CPU, compiled by numba: float32, the channels of one block in SIMD.

A block of channels keeps its states in the nearest cache while it runs along the sequence, so that every input is
read once and only the output is written. Every function works on items first .. last - 1, an item being one block
of one sequence, and lets other threads run: see scan_numba.py, which calls them. Importing this file needs numba.

Arrays: channels last. K directions, of which each takes the positions in its own order. The arithmetic may be
contracted to fused multiply-adds and sums of channels reordered, so the last digit depends on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import boolean, float32, int64, njit, types
from numba.extending import intrinsic

FORWARD_BLOCK = 128  # channels at once: 16 states of them are 8 KB, which with their rates fit the nearest cache
BACKWARD_BLOCK = 64
STRETCH = 32  # positions whose states the backward pass keeps: with 16 states 256 KB, for the second cache

_LOG2_E, _LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_SMALLEST = np.float32(-127)  # gives 0: its exponent's bits are none
# 2^f for |f| <= 1/2, interpolated at Chebyshev nodes with a relative error of 5e-9, and 1 exactly at 0.
_P1, _P2, _P3, _P4, _P5, _P6 = (
    np.float32(c)
    for c in (
        0.693147188, 0.2402265076, 0.05550357114, 0.009618082557, 0.001339086336, 0.0001545316294
    )
)  # fmt: skip
_L1, _L2, _L3, _L4, _L5, _L6 = (np.float32(2 / (2 * k + 1)) for k in range(1, 7))
_TWO = np.float32(2)

_row, _grid, _cube = float32[::1], float32[:, ::1], float32[:, :, ::1]
_four, _five = float32[:, :, :, ::1], types.Array(float32, 5, "C")
_strided = types.Array(float32, 4, "A")


def _compiled(*signature: Any) -> Callable[[Callable[..., None]], Callable[[], Callable[..., None]]]:
    """Makes of a function one that compiles it for these types when first called, seconds, and gives it."""

    def decorate(function: Callable[..., None]) -> Callable[[], Callable[..., None]]:
        maths = {"contract", "nsz", "reassoc", "arcp"}
        return cache(lambda: njit(signature, fastmath=maths, nogil=True, cache=True, error_model="numpy")(function))

    return decorate


@cast(Any, intrinsic)  # its caller's first parameter is filled in by numba
def _as_float32(typingctx: Any, bits: Any) -> Any:
    """The float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(inline="always")
def _exp2(x):  # 2^x for x <= 0, and 0 below about 2^-126
    x = _SMALLEST if x < _SMALLEST else x  # NaN stays NaN
    n = np.int32(x - _HALF)  # rounds, as x <= 0
    f = x - np.float32(n)
    p = ((((((_P6 * f + _P5) * f + _P4) * f + _P3) * f) + _P2) * f + _P1) * f + _ONE
    return p * _as_float32((n + np.int32(127)) << np.int32(23))


@njit(inline="always")
def _softplus(x):
    e = _exp2(-abs(x) * _LOG2_E)
    s = e / (_TWO + e)  # log(1 + e) = 2 artanh(s)
    z = s * s
    return (_ZERO if x < _ZERO else x) + s * (
        _TWO + z * (_L1 + z * (_L2 + z * (_L3 + z * (_L4 + z * (_L5 + z * _L6)))))
    )


@njit(inline="always")
def _sigmoid(x):
    e = _exp2(-abs(x) * _LOG2_E)
    return (_ONE if x >= _ZERO else e) / (_ONE + e)


@_compiled(_four, _four, _cube, _strided, _strided, _grid, int64[:, ::1], boolean, _cube, int64, int64)
def scan_forward(u, raw, rates, B, C, D, order, soft, y, first, last):
    """y (b, L, ch), the sum over the directions.

    u (K or 1, b, L, ch). raw (K, b, L, ch): step sizes, before their softplus if `soft`. rates (K, N, ch):
    A / ln 2. B, C (K, b, L, N). D (K, ch). order (K, L): positions.
    """
    directions, states, channels = rates.shape
    length = u.shape[2]
    blocks = (channels + FORWARD_BLOCK - 1) // FORWARD_BLOCK
    h = np.empty((states, FORWARD_BLOCK), np.float32)
    d, s = np.empty(FORWARD_BLOCK, np.float32), np.empty(FORWARD_BLOCK, np.float32)
    for item in range(first, last):
        b, low = item // blocks, item % blocks * FORWARD_BLOCK
        width = min(FORWARD_BLOCK, channels - low)
        high = low + width
        for k in range(directions):
            j = min(k, u.shape[0] - 1)
            h[:] = _ZERO
            skip = D[k, low:high]
            for i in range(length):
                t = order[k, i]
                given, driven, out = raw[k, b, t, low:high], u[j, b, t, low:high], y[b, t, low:high]
                if soft:
                    for c in range(width):
                        d[c] = _softplus(given[c])
                else:
                    for c in range(width):
                        d[c] = given[c]
                for c in range(width):
                    s[c] = d[c] * driven[c]
                if k == 0:
                    for c in range(width):
                        out[c] = skip[c] * driven[c]
                else:
                    for c in range(width):
                        out[c] += skip[c] * driven[c]
                for n in range(states):
                    into, from_, rate, state = B[k, b, t, n], C[k, b, t, n], rates[k, n, low:high], h[n]
                    for c in range(width):
                        new = _exp2(d[c] * rate[c]) * state[c] + s[c] * into
                        state[c] = new
                        out[c] += new * from_


@_compiled(
    _cube, _four, _four, _cube, _strided, _strided, _grid, int64[:, ::1], boolean,
    _four, _four, _four, _five, _five, _cube, int64, int64,
)  # fmt: skip
def scan_backward(
    grad_y, u, raw, rates, B, C, D, order, soft, grad_u, grad_raw, grad_A, grad_B, grad_C, grad_D, first, last
):
    """Gradients of scan_forward. With a_t = exp(delta_t A), g_t = C_t grad_y_t + a_{t+1} g_{t+1} is that for h_t.

    grad_y (b, L, ch). grad_u, zeros, and grad_raw are shaped as u and raw. By item, to be summed afterwards:
    grad_A (b, K, N, ch), grad_D (b, K, ch), both zeros; grad_B, grad_C (blocks, K, b, L, N).
    """
    directions, states, channels = rates.shape
    length = u.shape[2]
    blocks = (channels + BACKWARD_BLOCK - 1) // BACKWARD_BLOCK
    stretches = (length + STRETCH - 1) // STRETCH
    starts = np.empty((stretches, states, BACKWARD_BLOCK), np.float32)
    decay = np.empty((STRETCH, states, BACKWARD_BLOCK), np.float32)
    kept = np.empty((STRETCH, states, BACKWARD_BLOCK), np.float32)  # exp(delta_t A) h_{t-1}
    steps = np.empty((STRETCH, BACKWARD_BLOCK), np.float32)
    h, g = np.empty((states, BACKWARD_BLOCK), np.float32), np.empty((states, BACKWARD_BLOCK), np.float32)
    s, for_s = np.empty(BACKWARD_BLOCK, np.float32), np.empty(BACKWARD_BLOCK, np.float32)
    for_d, d = np.empty(BACKWARD_BLOCK, np.float32), np.empty(BACKWARD_BLOCK, np.float32)
    # Of one stretch: long sums of small terms lose digits.
    for_A, for_D = np.empty((states, BACKWARD_BLOCK), np.float32), np.empty(BACKWARD_BLOCK, np.float32)
    for item in range(first, last):
        b, block = item // blocks, item % blocks
        low = block * BACKWARD_BLOCK
        width = min(BACKWARD_BLOCK, channels - low)
        high = low + width
        for k in range(directions):
            j = min(k, u.shape[0] - 1)
            h[:] = _ZERO
            for i in range(length):
                if i % STRETCH == 0:
                    starts[i // STRETCH] = h
                t = order[k, i]
                given, driven = raw[k, b, t, low:high], u[j, b, t, low:high]
                for c in range(width):
                    d[c] = _softplus(given[c]) if soft else given[c]
                for c in range(width):
                    s[c] = d[c] * driven[c]
                for n in range(states):
                    into, rate, state = B[k, b, t, n], rates[k, n, low:high], h[n]
                    for c in range(width):
                        state[c] = _exp2(d[c] * rate[c]) * state[c] + s[c] * into
            g[:] = _ZERO
            for stretch in range(stretches - 1, -1, -1):
                h[:] = starts[stretch]
                begin = stretch * STRETCH
                count = min(STRETCH, length - begin)
                for i in range(count):
                    t = order[k, begin + i]
                    given, driven, step = raw[k, b, t, low:high], u[j, b, t, low:high], steps[i]
                    for c in range(width):
                        step[c] = _softplus(given[c]) if soft else given[c]
                    for c in range(width):
                        s[c] = step[c] * driven[c]
                    for n in range(states):
                        into, rate, state = B[k, b, t, n], rates[k, n, low:high], h[n]
                        here, keep = decay[i, n], kept[i, n]
                        for c in range(width):
                            a = _exp2(step[c] * rate[c])
                            here[c] = a
                            keep[c] = a * state[c]
                            state[c] = keep[c] + s[c] * into
                for_A[:] = _ZERO
                for_D[:] = _ZERO
                for i in range(count - 1, -1, -1):
                    t = order[k, begin + i]
                    driven, step, gy = u[j, b, t, low:high], steps[i], grad_y[b, t, low:high]
                    for c in range(width):
                        s[c] = step[c] * driven[c]
                        for_s[c] = _ZERO
                        for_d[c] = _ZERO
                    for n in range(states):
                        into, out = B[k, b, t, n], C[k, b, t, n]
                        rate, here, keep, carried = rates[k, n, low:high], decay[i, n], kept[i, n], g[n]
                        for_rate = for_A[n]
                        for_into, for_out = _ZERO, _ZERO
                        # Three loops: one alone would have more arrays than the compiler checks for overlap.
                        for c in range(width):
                            now = carried[c] + gy[c] * out
                            for_into += now * s[c]
                            for_s[c] += now * into
                            carried[c] = now
                        for c in range(width):
                            for_out += (keep[c] + s[c] * into) * gy[c]
                            keep[c] *= carried[c]  # the gradient for delta_t A
                            carried[c] *= here[c]
                        for c in range(width):
                            for_d[c] += keep[c] * rate[c]
                            for_rate[c] += keep[c] * step[c]
                        grad_B[block, k, b, t, n] = for_into
                        grad_C[block, k, b, t, n] = for_out
                    given, skip = raw[k, b, t, low:high], D[k, low:high]
                    for_u, for_raw = grad_u[j, b, t, low:high], grad_raw[k, b, t, low:high]
                    for c in range(width):
                        for_u[c] += for_s[c] * step[c] + skip[c] * gy[c]
                        for_D[c] += driven[c] * gy[c]
                        for_step = for_d[c] * _LN_2 + for_s[c] * driven[c]
                        for_raw[c] = for_step * _sigmoid(given[c]) if soft else for_step
                for n in range(states):
                    for c in range(width):
                        grad_A[b, k, n, low + c] += for_A[n, c]
                for c in range(width):
                    grad_D[b, k, low + c] += for_D[c]


@_compiled(_cube, _grid, _row, boolean, _cube, int64, int64)
def conv_silu(x, weight, bias, reverse, out, first, last):
    """out (b, L, ch): SiLU of the causal convolution of the first channels of x (b, L, ch or more).

    weight (taps, ch), the last tap on the position itself. An item is one position of one sequence.
    """
    length, (taps, channels) = x.shape[1], weight.shape
    for item in range(first, last):
        b, t = item // length, item % length
        row = out[b, t]
        for c in range(channels):
            row[c] = bias[c]
        for tap in range(taps):
            back = taps - 1 - tap
            at = t + back if reverse else t - back
            if 0 <= at < length:
                seen, weights = x[b, at], weight[tap]
                for c in range(channels):
                    row[c] += seen[c] * weights[c]
        for c in range(channels):
            row[c] *= _sigmoid(row[c])


@_compiled(_grid, _grid, int64, int64)
def gate_silu(y, x, first, last):
    """y (items, ch) times SiLU of the last channels of x (items, ch or more), in place."""
    channels = y.shape[1]
    for item in range(first, last):
        row, gate = y[item], x[item, x.shape[1] - channels :]
        for c in range(channels):
            row[c] *= gate[c] * _sigmoid(gate[c])
