"""Adaptive normalisation: the condition sets shift, scale and gate of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.devices import autocasts
from dinit.models.layers.init import zeroed


class Modulation(nn.Module):
    """SiLU and one Linear from the condition to `chunks` vectors; zero at the start.

    With all chunks zero, shift and scale do nothing and a gate closes its branch, so that a fresh block is
    the identity: adaLN-Zero, Peebles & Xie 2023. gates: which of the chunks are gates; by default the third of
    every three, the second of every two where there are four (no shifts), and none of two.
    """

    def __init__(self, cond_dim: int, dim: int, chunks: int, gates: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.chunks = chunks
        a_branch = 3 if chunks % 3 == 0 else 2 if chunks == 4 else chunks + 1
        self.gates = tuple(range(a_branch - 1, chunks, a_branch)) if gates is None else gates
        self.linear = zeroed(nn.Linear(cond_dim, chunks * dim))

    def forward(self, c: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """c (B, cond_dim) -> `chunks` tensors that broadcast to x.

        x (B, N, dim), tokens: each is (B, 1, dim). x (B, dim, H, W), a feature map: each is (B, dim, 1, 1).
        """
        vectors = self.linear(F.silu(c))
        if x.ndim == 3:
            return vectors[:, None, :].chunk(self.chunks, dim=-1)
        return vectors[:, :, None, None].chunk(self.chunks, dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, so that scale = 0 leaves x as it is; one pass over x, as is `gated`."""
    return torch.addcmul(shift, x, 1 + scale)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of x, without affine weights."""
    width = x.shape[-1:]
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.layer_norm(x, width, eps=eps)
    # PyTorch's CPU kernel is vectorised only where it is given weights; these change no number.
    return F.layer_norm(x, width, x.new_ones(width), x.new_zeros(width), eps)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`modulate` of the LayerNorm of x (B, N, dim), written over the norm where no gradient needs that."""
    normed = layer_norm(x, eps)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or autocasts(x.device):
        return modulate(normed, shift, scale)
    return torch.addcmul(shift, normed, 1 + scale, out=normed)


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch, so that gate = 0 leaves x as it is."""
    return torch.addcmul(x, gate, branch)


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of a feature map (B, C, H, W), without affine weights."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # A view where x is channels-last; the result is channels-last in any case.
        normed = layer_norm(x.permute(0, 2, 3, 1), self.eps)
        return normed.permute(0, 3, 1, 2)
