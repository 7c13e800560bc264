"""Linear layers and 1x1 convolutions: the convolution as a Linear on CPUs, and in inference their GELU in place.

The GELU of an MLP's hidden features, written over them, spares the largest allocation of a transformer block: on
2 cores in float32 the page faults of fresh memory cost more than the arithmetic. (oneDNN's Linear with its GELU
fused took 1.2 times as long as these two calls, its tanh being slow.) With gradients the GELU is the plain one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Approximation = Literal["none", "tanh"]


def linear_gelu(layer: Any, x: Tensor, approximate: Approximation = "tanh") -> Tensor:
    """GELU of layer(x), its tanh approximation unless that is 'none'. x (..., in) -> (..., out).

    layer: an nn.Linear, or any module in its place, such as an adapter.
    """
    return _gelu(layer(x), approximate, is_plain(layer, nn.Linear))


def conv1x1(layer: Any, x: Tensor) -> Tensor:
    """A 1x1 convolution, as a Linear over the channels of a channels-last x (B, C, H, W); else layer(x).

    layer may be an nn.Identity, as shortcuts are where no width changes.
    """
    if _is_linear_over_channels(layer, x):
        out = F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias)
        return out.permute(0, 3, 1, 2)
    return layer(x)


def conv1x1_gelu(layer: Any, x: Tensor) -> Tensor:
    """The exact GELU of a 1x1 convolution of x (B, C, H, W)."""
    return _gelu(conv1x1(layer, x), "none", is_plain(layer, nn.Conv2d))


def module_gelu(module: nn.Module, x: Tensor) -> Tensor:
    """The exact GELU of module(x), which must be a tensor of its own."""
    return _gelu(module(x), "none", is_plain(module, type(module)))


def _gelu(hidden: Tensor, approximate: Approximation, fresh: bool) -> Tensor:
    """GELU. fresh: `hidden` has no other reference, so it may be overwritten."""
    if torch.is_grad_enabled() or not fresh:
        return F.gelu(hidden, approximate=approximate)
    if torch.compiler.is_compiling():
        # 1 + tanh(u) = 2 sigmoid(2u), and on CPUs a sigmoid is the cheaper of the two.
        if approximate == "tanh":
            return hidden * torch.sigmoid(hidden * (1.5957691216057308 + 0.0713548162726 * hidden * hidden))
        return F.gelu(hidden)
    return torch.ops.aten.gelu_(hidden, approximate=approximate)


def _is_linear_over_channels(layer: Any, x: Tensor) -> bool:
    """Whether a matrix product over the channels gives the same numbers faster."""
    return (
        is_plain(layer, nn.Conv2d)
        and (not torch.is_grad_enabled() or x.is_contiguous(memory_format=torch.channels_last))
        and x.device.type == "cpu"
        and layer.kernel_size == (1, 1) == layer.stride
        and layer.groups == 1
        and layer.padding == (0, 0)
    )


def is_plain(layer: Any, kind: type[nn.Module]) -> bool:
    """Whether it is that layer and no adapter, and no hook holds on to what it gives."""
    return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks)
