"""Resampling by two against naive definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dinit.models.layers.fir import ConvDown, ConvUp, FIRConvDown, FIRDown, FIRUp

F64 = torch.float64


def randomized(module: nn.Module) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter)
    return module


def filtered(x: Tensor, before: int, after: int, gain: float) -> Tensor:
    """x (H, W) padded with zeros, then correlated with the taps 1, 3, 3, 1 along both sides, sum = gain."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    x = nn.functional.pad(x, (before, after, before, after))
    height, width = x.shape[0] - 3, x.shape[1] - 3
    out = torch.zeros(height, width, dtype=x.dtype)
    for i in range(4):
        for j in range(4):
            out += gain * taps[i] * taps[j] * x[i : i + height, j : j + width]
    return out


def test_fir_resampling_is_filtering_with_zeros_around() -> None:
    x = torch.randn(2, 3, 6, 10, dtype=F64)
    down, up, conv = FIRDown()(x), FIRUp()(x), randomized(FIRConvDown(3, 5))
    assert down.dtype == up.dtype == F64
    assert (down.shape, up.shape) == ((2, 3, 3, 5), (2, 3, 12, 20))
    smooth = torch.zeros(2, 3, 7, 11, dtype=F64)
    for b in range(2):
        for c in range(3):
            plane = x[b, c]
            torch.testing.assert_close(down[b, c], filtered(plane, 1, 1, 1.0)[::2, ::2], rtol=1e-12, atol=1e-12)
            spread = torch.zeros(12, 20, dtype=F64)
            spread[::2, ::2] = plane
            torch.testing.assert_close(up[b, c], filtered(spread, 2, 1, 4.0), rtol=1e-12, atol=1e-12)
            smooth[b, c] = filtered(plane, 2, 2, 1.0)
    expected = nn.functional.conv2d(smooth, conv.conv.weight, conv.conv.bias)[:, :, ::2, ::2]
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fir_keeps_constants_inside_and_layout(dtype: torch.dtype) -> None:
    x = torch.full((1, 4, 8, 8), 3.0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for resample in (FIRDown(), FIRUp()):
        out = resample.to(dtype)(x)
        assert (out[:, :, 1:-1, 1:-1] == 3).all()
        assert (out[:, :, 0] < 3).all(), "zeros outside"
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert list(resample.state_dict()) == []


@torch.no_grad()
def test_ddpm_resampling_pads_right_and_bottom_and_copies() -> None:
    x = torch.randn(1, 2, 4, 6, dtype=F64)
    down, up = randomized(ConvDown(2, 3)), randomized(ConvUp(2))
    patch = x[:, :, 2:4, 4:6]  # of the last output pixel: its third row and column lie outside
    expected = torch.einsum("ocij,bcij->bo", down.conv.weight[:, :, :2, :2], patch) + down.conv.bias
    torch.testing.assert_close(down(x)[:, :, 1, 2], expected)
    copied = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(x), nn.functional.conv2d(copied, up.conv.weight, up.conv.bias, padding=1))
