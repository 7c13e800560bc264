"""Layers as inference runs them: the numbers of the plain layer, and the plain layer wherever it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.linear import conv1x1, conv1x1_gelu, linear_gelu
from dinit.models.layers.modulation import layer_norm, modulate, modulated_norm


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("grad", [False, True])
def test_gelu_of_a_linear(grad: bool, approximate: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), 3 * torch.randn(2, 5, 24)
    kept = x.clone()
    exact = F.gelu(layer.double()(x.double()), approximate=approximate).float()
    with torch.set_grad_enabled(grad):
        out = linear_gelu(layer.float(), x, approximate)  # pyright: ignore
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)
    assert out.requires_grad == grad


@torch.no_grad()
def test_1x1_convolutions() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(6, 4, 1)
    out = conv1x1(layer, x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conv1x1(layer, x.contiguous()), layer(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conv1x1_gelu(layer, x), F.gelu(layer(x)), rtol=1e-5, atol=1e-6)
    for other in (nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1, stride=2), nn.Conv2d(6, 4, 1, groups=2), nn.Identity()):
        assert torch.equal(conv1x1(other, x), other(x))


def test_what_others_hold_is_not_written_over() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.no_grad():
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda *arguments: kept.append(arguments[2]))
        linear_gelu(layer, x)
        handle.remove()
        assert torch.equal(kept[0], layer(x))
        before = x.clone()
        assert torch.equal(linear_gelu(nn.Identity(), x), F.gelu(x, approximate="tanh"))
        assert torch.equal(x, before)
    linear_gelu(layer, x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_gelu(layer, x).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_under_the_compiler(approximate: str) -> None:
    layer, x = nn.Linear(4, 6), 5 * torch.randn(64, 4)
    compiled = torch.compile(
        lambda x: linear_gelu(layer, x, approximate),  # pyright: ignore
        fullgraph=True,
        backend="aot_eager",
    )
    expected = F.gelu(layer(x), approximate=approximate)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_modulated_norm(grad: bool, samples: int, dtype: torch.dtype) -> None:
    """Against mean and variance written out; the input and the condition stay as they are, gradients flow."""
    torch.manual_seed(0)
    x = (2 * torch.randn(3, 7, 32) + 1).to(dtype).requires_grad_(grad)
    shift, scale = torch.randn(2, samples, 1, 32).to(dtype).requires_grad_(grad)
    kept = x.detach().clone()
    with torch.set_grad_enabled(grad):
        out = modulated_norm(x, shift, scale, 0.1)
    wide = x.detach().double()
    normed = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, keepdim=True, correction=0) + 0.1).sqrt()
    expected = (normed * (1 + scale.detach().double()) + shift.detach().double()).to(dtype)
    tight: dict[str, Any] = {} if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 4e-2}
    torch.testing.assert_close(out.detach(), expected, **tight)
    assert torch.equal(x.detach(), kept)
    if grad:
        plain = modulate(F.layer_norm(x, (32,), eps=0.1), shift, scale)
        weight = torch.randn(out.shape).to(dtype)
        ours, theirs = (torch.autograd.grad((y * weight).sum(), (x, shift, scale)) for y in (out, plain))
        torch.testing.assert_close(ours, theirs, **tight)


def test_layer_norm_on_the_meta_device() -> None:
    assert layer_norm(torch.empty(2, 3, 4, device="meta"), 1e-6).shape == (2, 3, 4)
