"""The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752) and its causal convolution.

Notation of the paper: u input, delta step sizes, A, B, C, D the state-space parameters, h the state;
L positions, N states a channel. For every channel, with h_0 = 0,

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t . h_t + D u_t.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinit.devices import without_autocast
from dinit.models.layers.scan_chunked import Chunks, Grads, chunk_starts, scan_backward, scan_forward

_HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
_HAS_NUMBA = find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"

# Of the states that the backward pass keeps at once on a CPU: 16 MB. More is slower, not faster.
CPU_STATES = 2**22


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False) -> Tensor:
    """Depthwise convolution in which position t depends on t - K + 1 .. t; reverse: t .. t + K - 1.

    x (B, channels, L), weight (channels, K), bias (channels,) -> (B, channels, L). As with selective_scan,
    reverse is the same as flipping x and the result along L.
    """
    reach = weight.shape[-1] - 1
    padded = F.pad(x, (0, reach) if reverse else (reach, 0))
    kernel = weight.flip(-1) if reverse else weight
    return F.conv1d(padded, kernel[:, None], bias, groups=len(weight))


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    reverse: bool = False,
    softplus: bool = False,
) -> Tensor:
    """Output y of the recurrence above. u, delta (B, channels, L), A (channels, N), B, C (B, N, L), D (channels,).

    delta: at least 0, or, where `softplus` is set, any number before its softplus. A: negative. reverse: from
    the last position to the first. Returns (B, channels, L) in u's dtype; the state is float32 at least.
    Differentiable once. ValueError for shapes that do not fit. scan_backend() is the name of the code that runs.
    """
    _check(u, delta, A, B, C, D)
    backend = scan_backend(u)
    if backend == "numba":
        from dinit.models.layers import scan_numba  # only here: importing numba takes a while

        return scan_numba.selective_scan(u, delta, A, B, C, D, reverse, softplus)
    delta = F.softplus(delta) if softplus else delta
    if backend == "triton":
        from dinit.models.layers import scan_triton  # only here: importing triton takes a while

        return scan_triton.scan(u, delta, A, B, C, D, reverse)
    dtype = torch.promote_types(u.dtype, torch.float32)
    sequences = [x.to(dtype) for x in (u, delta, B, C)]
    if reverse:
        sequences = [x.flip(-1) for x in sequences]
    y: Any = _SelectiveScan.apply(sequences[0], sequences[1], A.to(dtype), sequences[2], sequences[3])
    if reverse:
        y = y.flip(-1)
    return (y if D is None else torch.addcmul(y, u.to(dtype), D.to(dtype)[:, None])).to(u.dtype)


def scan_backend(u: Tensor) -> str:
    """Code of the scan, forward and backward, on u's device.

    Args:
        u: the scan's input.

    Returns:
        "triton" on CUDA where triton is installed, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1 when
        dinit is imported); "numba" on a CPU where numba is installed, for float32 and shorter outside of
        torch.compile, unless NUMBA_DISABLE_JIT=1 when dinit is imported; else "torch".
    """
    if (u.is_cuda and _HAS_TRITON) or (u.is_cpu and _INTERPRETED):
        return "triton"
    # Subclasses of Tensor, such as those that stand for one without its numbers, have no memory to work on.
    plain = type(u) in (Tensor, torch.nn.Parameter) and u.is_cpu and u.dtype.itemsize <= 4
    return "numba" if _HAS_NUMBA and plain and not torch.compiler.is_compiling() else "torch"


def runs_compiled_loops(x: Tensor) -> bool:
    """Whether numba's loops that have no gradients may take the place of operators on x.

    Args:
        x: their input.

    Returns:
        Whether scan_backend is "numba" and nothing is differentiated.
    """
    return not torch.is_grad_enabled() and scan_backend(x) == "numba"


class _SelectiveScan(torch.autograd.Function):
    """The scan without D, in one dtype. Keeps only its inputs and recomputes states in the backward pass."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        # Autocast would compute the products with B and C in half precision.
        with without_autocast(u.device):
            ctx.save_for_backward(u, delta, A, B, C)
            x = Chunks.of(u, delta, A, B, C)
            return scan_forward(x, chunk_starts(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Grads:  # pyright: ignore[reportIncompatibleMethodOverride]
        u, delta, A, B, C = ctx.saved_tensors
        with without_autocast(u.device):
            given = [x.split(_items_at_once(u, A.shape[-1])) for x in (grad_y, u, delta, B, C)]
            parts = [
                scan_backward(grad, u, A, Chunks.of(u, delta, A, B, C))
                for grad, u, delta, B, C in zip(*given, strict=True)
            ]
        for_u, for_delta, for_A, for_B, for_C = zip(*parts, strict=True)
        return torch.cat(for_u), torch.cat(for_delta), torch.stack(for_A).sum(0), torch.cat(for_B), torch.cat(for_C)


def _items_at_once(u: Tensor, states: int) -> int:
    """Items of a batch that the backward pass computes together: on a CPU, CPU_STATES values."""
    if u.device.type != "cpu" or torch.compiler.is_compiling():
        return max(1, len(u))
    return max(1, CPU_STATES // (max(1, u[0].numel()) * states)) if len(u) else 1


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
