"""LiT: linear attention against its N x N matrix, sizes beside DiT's, weights that DiT and LiT share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dinit.models.dit import DiT
from dinit.models.lit import LinearAttention, LiT, LiTBlock

# The paper keeps DiT's sizes, counted in test_backbones_families; what attention adds is the convolution.
DIT_COUNTS = {"S/2": 32_865_056, "B/2": 130_315_808, "L/2": 457_840_672, "XL/2": 674_834_720}


def randomized(module: nn.Module) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def linear_attention(layer: LinearAttention, x: Tensor, rows: int, columns: int) -> Tensor:
    """Written out: the N x N matrix of ReLU kernels, rows summing to one, and 25 shifted products."""
    dim, tokens = x.shape[-1], x.shape[1]
    q, k, v = layer.qkv(x).split(dim, -1)
    parts = []
    for head in range(layer.num_heads):
        d = dim // layer.num_heads
        part = slice(head * d, (head + 1) * d)
        weights = q[..., part].clamp(min=0) @ k[..., part].clamp(min=0).transpose(1, 2)  # (B, N, N)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6 * tokens)
        parts.append(weights @ v[..., part])
    size = layer.conv.kernel_size[0]
    image = v.transpose(1, 2).reshape(len(x), dim, rows, columns)
    padded = nn.functional.pad(image, [size // 2] * 4)
    kernel = layer.conv.weight[:, 0, :, :, None, None]
    local = layer.conv.bias[:, None, None]
    for i in range(size):
        for j in range(size):
            local = local + kernel[:, i, j] * padded[:, :, i : i + rows, j : j + columns]
    return layer.proj(torch.cat(parts, -1) + local.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("rows", "columns", "kernel_size"), [(4, 3, 5), (2, 7, 3), (1, 1, 5)])
@torch.no_grad()
def test_linear_attention_is_the_normalised_relu_kernel(rows: int, columns: int, kernel_size: int) -> None:
    layer = randomized(LinearAttention(8, 2, kernel_size))
    x = torch.randn(3, rows * columns, 8, dtype=torch.float64)
    expected = linear_attention(layer, x, rows, columns)
    torch.testing.assert_close(layer(x, rows, columns), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_query_that_sees_nothing_gets_zero_from_attention() -> None:
    """All features of q closed by ReLU: 0 / eps and no NaN."""
    layer = randomized(LinearAttention(4, 1, 3))
    layer.qkv.weight[:4] = 0
    layer.qkv.bias[:4] = -1
    layer.conv.weight.zero_()
    layer.conv.bias.zero_()
    out = layer(torch.randn(1, 6, 4, dtype=torch.float64), 2, 3)
    assert torch.equal(out, layer.proj.bias.expand_as(out))


@torch.no_grad()
def test_half_precision_sums_do_not_overflow() -> None:
    """4096 tokens of size 16: a sum over the keys would leave float16's range (65504), the mean does not."""
    layer = randomized(LinearAttention(4, 1, 3)).float()
    for part in (layer.qkv, layer.proj):
        part.weight.copy_(torch.eye(4).repeat(part.out_features // 4, 1))
        part.bias.zero_()
    x = 16 * torch.rand(1, 4096, 4)
    exact = layer(x, 64, 64)
    half = layer.half()(x.half(), 64, 64).float()
    torch.testing.assert_close(half, exact, rtol=2e-2, atol=0.5)


@torch.no_grad()
def test_attention_reaches_across_the_image() -> None:
    """Beyond the convolution's reach: the first token hears the last and the last the first."""
    layer = randomized(LinearAttention(8, 2, 5))
    layer.qkv.bias[:16] += 5  # queries and keys are open
    x = torch.randn(1, 100, 8, dtype=torch.float64)
    out = layer(x, 10, 10)
    for source, target in [(-1, 0), (0, -1)]:
        changed = x.clone()
        changed[:, source] += 1
        assert (layer(changed, 10, 10)[:, target] - out[:, target]).abs().max() > 1e-4


@torch.no_grad()
def test_block_is_its_formula() -> None:
    block = randomized(LiTBlock(8, 2, 3, 2.0, 0.0))
    x, c = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)

    def normed(h: Tensor) -> Tensor:
        centered = h - h.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    chunks = block.modulation.linear(c * c.sigmoid())[:, None].split(8, -1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks
    h = x + gate_a * linear_attention(block.attention, normed(x) * (1 + scale_a) + shift_a, 2, 3)
    expected = h + gate_m * block.mlp(normed(h) * (1 + scale_m) + shift_m)
    torch.testing.assert_close(block(x, c, 2, 3), expected, rtol=1e-10, atol=1e-12)


def test_fresh_block_is_the_identity() -> None:
    x, c = torch.randn(2, 6, 16), torch.randn(2, 16)
    assert torch.equal(LiTBlock(16, 2, 5, 4.0, 0.0)(x, c, 2, 3), x)


@pytest.mark.parametrize("name", sorted(DIT_COUNTS))
def test_presets_are_dit_and_a_convolution(name: str) -> None:
    with torch.device("meta"):
        model = LiT.preset(name)
    count = sum(p.numel() for p in model.parameters())
    assert count == DIT_COUNTS[name] + len(model.blocks) * model.hidden_size * (25 + 1)
    assert model.blocks[0].attention.num_heads == {"S/2": 2, "B/2": 3, "L/2": 4, "XL/2": 4}[name]


def test_every_preset_is_counted() -> None:
    assert set(LiT.presets) - {"tiny"} == set(DIT_COUNTS)


def test_takes_the_weights_of_a_dit_but_those_of_attention() -> None:
    dit, lit = DiT.preset("tiny"), LiT.preset("tiny")
    inherited = {key: value for key, value in dit.state_dict().items() if ".attention." not in key}
    missing, unexpected = lit.load_state_dict(inherited, strict=False)
    assert unexpected == []
    assert all(".attention." in key for key in missing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide hidden_size, got num_heads = 3 and hidden_size = 32"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"hidden_size": 18}, "position table"),
        ({"kernel_size": 4}, "kernel_size must be odd .the paper: 5., got 4"),
        ({"kernel_size": -1}, "kernel_size must be at least 1, got -1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch_size": 3}, "image_size must be a multiple of 3, got 8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiT.preset("tiny", **options)
