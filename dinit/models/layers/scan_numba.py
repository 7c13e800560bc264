"""The selective scan on a CPU by numba's kernels, on PyTorch's number of threads. Importing it needs numba."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinit.models.layers import numba_kernels as kernels

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, None, None]

_pools: dict[int, ThreadPoolExecutor] = {}
# A fork has none of its parent's threads: a pool would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def scan_paths(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, paths: Tensor, softplus: bool = False
) -> Tensor:
    """Sum of K selective scans, each of which visits the positions in its own order. Differentiable once.

    Args:
        u: (K, B, L, channels), or (1, B, L, channels) where all scan the same.
        delta: (K, B, L, channels), at least 0, or any number before its softplus.
        A: (K, channels, N), at most 0.
        B: (K, B, L, N).
        C: (K, B, L, N).
        D: (K, channels).
        paths: (K, L) int64, positions in the order in which they are visited.
        softplus: whether delta is before its softplus.

    Returns:
        (B, L, channels) in u's dtype. The arithmetic is float32.
    """
    given = [x.float() for x in (u, delta, A, B, C, D)]
    y: Any = _Scan.apply(*given, paths, softplus)
    return y.to(u.dtype)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, reverse: bool, softplus: bool
) -> Tensor:
    """The scan of dinit.models.layers.scan, in its shapes."""
    path = torch.arange(u.shape[-1])
    path = path.flip(0) if reverse else path
    D = u.new_zeros(u.shape[1]) if D is None else D
    rows = [x.transpose(1, 2)[None] for x in (u, delta, B, C)]
    return scan_paths(rows[0], rows[1], A[None], rows[2], rows[3], D[None], path[None], softplus).transpose(1, 2)


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """SiLU of the causal convolution of scan.py over the first channels of x. Not differentiable.

    Args:
        x: (B, L, channels or more).
        weight: (channels, taps).
        bias: (channels,).
        reverse: from the last position to the first.

    Returns:
        (B, L, channels) in x's dtype.
    """
    batch, length = x.shape[:2]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    out = x.new_empty(batch, length, len(weight), dtype=torch.float32)
    given = [y.detach().float().contiguous().numpy() for y in (x, weight.t(), bias)]
    run(kernels.conv_silu(), batch * length, *given, reverse, out.numpy())
    return out.to(x.dtype)


def gate_silu(y: Tensor, x: Tensor) -> Tensor:
    """y times SiLU of x's last channels; y is overwritten. Not differentiable.

    Args:
        y: (B, L, channels).
        x: (B, L, channels or more), of y's dtype.

    Returns:
        (B, L, channels).
    """
    rows, gates = (z.float().contiguous().flatten(0, 1) for z in (y, x))
    run(kernels.gate_silu(), len(rows), rows.numpy(), gates.numpy())
    return rows.view(y.shape).to(y.dtype)


class _Scan(torch.autograd.Function):
    """Keeps only its inputs; the backward pass computes the states again."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, paths: Tensor, soft: bool
    ) -> Tensor:
        ctx.save_for_backward(u, delta, A, B, C, D, paths)
        ctx.soft = soft
        y = u.new_empty(u.shape[1:])
        blocks = -(-u.shape[-1] // kernels.FORWARD_BLOCK)
        run(kernels.scan_forward(), len(y) * blocks, *_arrays(u, delta, A, B, C, D, paths), soft, y.numpy())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Grads:  # pyright: ignore[reportIncompatibleMethodOverride]
        u, delta, A, B, C, D, paths = ctx.saved_tensors
        directions, channels, states = A.shape
        batch, length = u.shape[1:3]
        blocks = -(-channels // kernels.BACKWARD_BLOCK)
        for_u, for_delta = u.new_zeros(u.shape), u.new_empty(delta.shape)
        for_A, for_D = u.new_zeros(batch, directions, states, channels), u.new_zeros(batch, directions, channels)
        for_B, for_C = (u.new_empty(blocks, directions, batch, length, states) for _ in range(2))
        grads = (for_u, for_delta, for_A, for_B, for_C, for_D)
        inputs = _arrays(u, delta, A, B, C, D, paths)
        wanted = (x.numpy() for x in grads)
        run(kernels.scan_backward(), batch * blocks, grad_y.contiguous().numpy(), *inputs, ctx.soft, *wanted)
        return for_u, for_delta, for_A.sum(0).mT, for_B.sum(0), for_C.sum(0), for_D.sum(0), None, None


def _arrays(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, paths: Tensor) -> list[Any]:
    """What both kernels take, in their layout."""
    rates = A.mT / math.log(2)
    tensors = (u.contiguous(), delta.contiguous(), rates.contiguous(), B, C, D.contiguous(), paths.contiguous())
    return [x.detach().numpy() for x in tensors]


def run(kernel: Callable[..., Any], items: int, *arrays: Any) -> None:
    """Runs a kernel over its items in as many threads as PyTorch uses; every item's numbers are its own.

    Args:
        kernel: called with `arrays`, the first item and the one after the last.
        items: how many there are.
        *arrays: passed on.
    """
    threads = min(torch.get_num_threads(), items)
    if threads <= 1:
        kernel(*arrays, 0, items)
        return
    pool = _pools.setdefault(threads, ThreadPoolExecutor(threads, "dinit-scan"))
    bounds = [items * i // threads for i in range(threads + 1)]
    for part in [pool.submit(kernel, *arrays, *pair) for pair in pairwise(bounds)]:
        part.result()
