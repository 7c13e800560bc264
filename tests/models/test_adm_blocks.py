"""ADM's layers against plain definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dinit.models.adm_classifier import AttentionPool
from dinit.models.layers.adm_blocks import Double, Halve, ResBlock, SpatialAttention


def randomized(module: nn.Module, std: float = 0.1) -> Any:
    """The module in float64 and evaluation mode with noise on every parameter: zeros would hide faults."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().eval().parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return module


@torch.no_grad()
@pytest.mark.parametrize("order", ["head-first", "qkv-first"])
def test_attention_is_softmax_of_scaled_products_per_head(order: Any) -> None:
    heads, dim, side = 4, 16, 3
    layer = randomized(SpatialAttention(heads * dim, heads, order), std=0.3)
    x = torch.randn(2, heads * dim, side, side).double()
    features = layer.qkv(F.group_norm(x, 32, layer.norm.weight, layer.norm.bias, 1e-5).flatten(2).mT)
    expected = []
    for head in range(heads):
        if order == "head-first":
            q, k, v = features[..., 3 * dim * head : 3 * dim * (head + 1)].split(dim, dim=-1)
        else:
            starts = [part * heads * dim + head * dim for part in range(3)]
            q, k, v = (features[..., start : start + dim] for start in starts)
        expected.append((q @ k.mT * dim**-0.5).softmax(-1) @ v)
    out = x + layer.proj(torch.cat(expected, dim=-1)).mT.unflatten(2, (side, side))
    torch.testing.assert_close(layer(x), out, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_pool_is_attention_of_the_mean_to_all_tokens() -> None:
    pool = randomized(AttentionPool(32, 3, 4, 7), std=0.3)
    x = torch.randn(2, 32, 3, 3).double()
    tokens = torch.cat([x.mean((2, 3))[:, None], x.flatten(2).mT], dim=1) + pool.positions
    q, k, v = pool.qkv(tokens).chunk(3, dim=-1)
    heads = [slice(8 * head, 8 * (head + 1)) for head in range(4)]
    mixed = torch.cat([(q[..., h] @ k[..., h].mT * 8**-0.5).softmax(-1) @ v[..., h] for h in heads], dim=-1)
    torch.testing.assert_close(pool(x), pool.proj(mixed)[:, 0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_position_table_of_another_size_is_interpolated() -> None:
    pool = AttentionPool(8, 2, 2, 3)
    rows = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 8)  # the pixels' table: the row's number
    pool.positions.copy_(torch.cat([torch.full((1, 8), 9.0), rows]))
    table = pool._positions(4, 2)
    assert table.shape == (9, 8)
    assert (table[0] == 9).all()
    torch.testing.assert_close(table[1:, 0].unflatten(0, (4, 2))[:, 0], torch.tensor([0, 0.25, 0.75, 1]))
    assert pool(torch.randn(2, 8, 4, 6)).shape == (2, 3)


@torch.no_grad()
@pytest.mark.parametrize("resample", [Halve(32, with_conv=False), Double(32, with_conv=False), None])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_fresh_block_only_resamples(scale_shift: bool, resample: Halve | Double | None) -> None:
    x, c = torch.randn(2, 32, 4, 4), torch.randn(2, 12)
    block = ResBlock(32, 32, 12, scale_shift, 0.0, resample)
    assert torch.equal(block(x, c), x if resample is None else resample(x, c))


@torch.no_grad()
@pytest.mark.parametrize("scale_shift", [False, True])
def test_block_by_its_definition(scale_shift: bool) -> None:
    block = randomized(ResBlock(64, 96, 12, scale_shift, 0.0, Double(64, with_conv=False)), std=0.2)
    x, c = torch.randn(2, 64, 3, 3).double(), torch.randn(2, 12).double()
    larger = lambda image: image.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    normed = F.group_norm(x, 32, block.norm_1.weight, block.norm_1.bias, 1e-5)
    h = block.conv_1(larger(F.silu(normed)))
    told = block.condition(c)[:, :, None, None]
    weight, bias = block.norm_2.weight, block.norm_2.bias
    if scale_shift:
        h = F.group_norm(h, 32, weight, bias, 1e-5) * (1 + told[:, :96]) + told[:, 96:]
    else:
        h = F.group_norm(h + told, 32, weight, bias, 1e-5)
    expected = block.shortcut(larger(x)) + block.conv_2(F.silu(h))
    torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-10)
