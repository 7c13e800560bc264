"""The selective scan on Triton's kernels: an operator of PyTorch that autograd and torch.compile know.

Importing this file needs triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from dinit.models.layers import scan_kernels

STATES = (
    256  # that one program keeps, N of each of its channels; with 512 the backward kernel runs out of registers
)

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D"
_GRADS = ", ".join(["Tensor"] * 6)
Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, reverse: bool) -> Tensor:
    """scan.selective_scan() on a device that Triton's kernels run on. Differentiable once.

    Keeps only its inputs for the backward pass, which computes the states again. Deterministic.
    """
    forward: Any = _forward
    return forward(u, delta, A, B, C, D, reverse)


@custom_op("dinit::selective_scan", mutates_args=(), schema=f"({_INPUTS}, bool reverse) -> Tensor")
def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, reverse: bool) -> Tensor:
    y = _by_position(u)
    if y.numel():
        rates, skip = _weights(u, A, D)
        inputs = [x.mT.contiguous() for x in (u, delta, B, C)]
        _launch(
            scan_kernels.forward_kernel,
            (inputs[0], inputs[1], rates, inputs[2], inputs[3], skip, y, *rates.shape, u.shape[-1]),
            len(u),
            rates,
            reverse,
        )
    return y.mT


@_forward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, reverse: bool) -> Tensor:
    return _by_position(u).mT


@custom_op(
    "dinit::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, {_INPUTS}, bool reverse) -> ({_GRADS})",
)
def _backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    reverse: bool,
) -> Grads:
    """Gradients for u, delta, A, B, C and D, in float32 at least; that for D also where there is none."""
    batch, channels, length = u.shape
    rates, skip = _weights(u, A, D)
    states = A.shape[1]
    grad_u, grad_delta = _by_position(u), _by_position(delta)
    grad_rates, grad_skip = rates.new_zeros(batch, channels, states), rates.new_zeros(batch, channels)
    parts = math.ceil(channels / _block(rates)[0])
    grad_B, grad_C = (rates.new_empty(batch, parts, length, states) for _ in range(2))
    if u.numel():
        inputs = [x.mT.contiguous() for x in (u, delta, B, C, grad_y)]
        chunk = math.isqrt(length - 1) + 1
        chunks = math.ceil(length / chunk)
        scratch = [rates.new_empty(batch, count, channels, states) for count in (chunks, chunk)]
        _launch(
            scan_kernels.backward_kernel,
            (
                *(inputs[0], inputs[1], rates, inputs[2], inputs[3], skip, inputs[4]),
                *(grad_u, grad_delta, grad_rates, grad_B, grad_C, grad_skip),
                *scratch,
                *(channels, states, length, chunk, chunks),
            ),
            batch,
            rates,
            reverse,
        )
    return (
        grad_u.mT,
        grad_delta.mT,
        (grad_rates.sum(0) / math.log(2)).to(A.dtype),
        grad_B.sum(1).to(B.dtype).mT,
        grad_C.sum(1).to(C.dtype).mT,
        grad_skip.sum(0),
    )


@_backward.register_fake
def _(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    reverse: bool,
) -> Grads:
    skip = u.new_empty(u.shape[1], dtype=_dtype(u))
    return (
        _by_position(u).mT,
        _by_position(delta).mT,
        A.new_empty(A.shape),
        _by_position(B).mT,
        _by_position(C).mT,
        skip,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, D = ctx.saved_tensors
    backward: Any = _backward
    *grads, grad_D = backward(grad_y, *tensors, D, ctx.reverse)
    return *grads, None if D is None else grad_D.to(D.dtype), None


_forward.register_autograd(_gradients, setup_context=_keep)


def _dtype(u: Tensor) -> torch.dtype:
    """Of states and sums."""
    return torch.promote_types(u.dtype, torch.float32)


def _by_position(x: Tensor) -> Tensor:
    """Uninitialised, (B, L, features) for x (B, features, L): what a program reads at once is together."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1])


def _weights(u: Tensor, A: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """A / log(2), since exp(delta A) = 2^(delta rates), and D or zeros."""
    rates = (A.to(_dtype(u)) / math.log(2)).contiguous()
    return rates, rates.new_zeros(len(A)) if D is None else D.to(rates).contiguous()


def _block(rates: Tensor) -> tuple[int, int]:
    """Channels and states of one program, powers of 2."""
    channels, states = (1 << max(0, size - 1).bit_length() for size in rates.shape)
    return max(1, min(channels, STATES // states)), states


def _launch(kernel: Any, arguments: tuple[Any, ...], batch: int, rates: Tensor, reverse: bool) -> None:
    channels, states = _block(rates)
    grid = (batch, math.ceil(len(rates) / channels))
    with torch.cuda.device_of(rates):  # triton launches on the current device
        # One warp: sums over a program's channels then need neither shared memory nor barriers.
        kernel[grid](*arguments, reverse=reverse, block_channels=channels, block_states=states, num_warps=1)
