"""What holds for one family: published sizes, identities at the start, arguments that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dinit.models.base import Backbone
from dinit.models.dic import DiC, DiCBlock
from dinit.models.dico import DiCo, DiCoBlock
from dinit.models.dit import DiT, DiTBlock
from dinit.models.layers.embedding import sincos_positions, sinusoid
from dinit.models.layers.feature_maps import SpatialAttention
from dinit.models.layers.transformer import unpatchify
from dinit.models.lightningdit import LightningDiT, rotary_angles
from dinit.models.unet import ResBlock, UNet

# Counted from the reference implementations: trainable, and with the frozen position table.
DIT_COUNTS = {
    "XL/2": (674_834_720, 675_129_632),
    "XL/4": (675_000_704, 675_074_432),
    "XL/8": (675_664_640, 675_683_072),
    "L/2": (457_840_672, 458_102_816),
    "L/4": (457_988_224, 458_053_760),
    "L/8": (458_578_432, 458_594_816),
    "B/2": (130_315_808, 130_512_416),
    "B/4": (130_426_496, 130_475_648),
    "B/8": (130_869_248, 130_881_536),
    "S/2": (32_865_056, 32_963_360),
    "S/4": (32_920_448, 32_945_024),
    "S/8": (33_142_016, 33_148_160),
}
LIGHTNINGDIT_COUNTS = {
    "B/1": (130_359_584, 130_556_192),
    "B/2": (130_507_136, 130_556_288),
    "L/2": (458_087_520, 458_153_056),
    "XL/1": (674_961_824, 675_256_736),
    "XL/2": (675_183_104, 675_256_832),
    "1p0B/1": (1_029_007_904, 1_029_401_120),
    "1p0B/2": (1_029_302_912, 1_029_401_216),
    "1p6B/1": (1_631_308_368, 1_631_767_120),
    "1p6B/2": (1_631_652_528, 1_631_767_216),
}
DIC_COUNTS = {
    "S": 32_835_752,
    "B": 129_529_160,
    "XL": 702_266_120,
    "H": 1_034_516_744,
}
DICO_COUNTS = {
    "S": 33_137_672,
    "B": 129_992_712,
    "L": 463_897_992,
    "XL": 701_151_368,
    "H": 1_037_408_328,
}


@pytest.mark.parametrize("name", sorted(DIT_COUNTS))
def test_dit_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = DiT.preset(name)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (trainable, trainable + model.positions.table.numel()) == DIT_COUNTS[name]


@pytest.mark.parametrize("name", sorted(LIGHTNINGDIT_COUNTS))
def test_lightningdit_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = LightningDiT.preset(name)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (trainable, trainable + model.positions.table.numel()) == LIGHTNINGDIT_COUNTS[name]


@pytest.mark.parametrize(("cls", "counts"), [(DiC, DIC_COUNTS), (DiCo, DICO_COUNTS)])
def test_convolutional_presets_have_the_published_size(cls: type[Backbone], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        with torch.device("meta"):
            model = cls.preset(name)
        assert sum(p.numel() for p in model.parameters()) == count, name


def test_every_published_preset_is_counted() -> None:
    assert set(DiT.presets) - {"tiny"} == set(DIT_COUNTS)
    assert set(LightningDiT.presets) - {"tiny", "S/1", "S/2"} == set(LIGHTNINGDIT_COUNTS)  # S: never published
    assert set(DiC.presets) - {"tiny"} == set(DIC_COUNTS)
    assert set(DiCo.presets) - {"tiny"} == set(DICO_COUNTS)


def test_fresh_dit_block_is_the_identity() -> None:
    x, c = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(DiTBlock(16, 4, 4.0, 0.0)(x, c), x)


def test_fresh_dico_block_is_the_identity() -> None:
    x, c = torch.randn(2, 16, 4, 4), torch.randn(2, 16)
    assert torch.equal(DiCoBlock(16, 2.0, 0.0)(x, c), x)


def test_fresh_dic_block_is_the_identity() -> None:
    x, c = torch.randn(2, 16, 4, 4), torch.randn(2, 12)
    assert torch.equal(DiCBlock(16, 16, 12, 0.0)(x, c), x)


@pytest.mark.parametrize("wo_shift", [False, True])
def test_fresh_lightningdit_block_is_the_identity(wo_shift: bool) -> None:
    block = LightningDiT.preset("tiny", wo_shift=wo_shift).blocks[0]
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(block(x, c, rotary_angles(8, 4, 4)), x)


@torch.no_grad()
def test_dic_with_a_wider_last_stage_takes_the_condition_of_its_width() -> None:
    """The published class's default multipliers: the last stage and the head listen to the second level."""
    model = randomized(DiC.preset("tiny", channel_mult=(1, 2, 4, 2, 2)))
    assert model.decoder[1][0].conv_1.weight.shape == (32, 48, 3, 3)  # 32 from below and a skip of 16
    heard: list[Tensor] = []
    for module in (model.decoder[1][0], model.head):
        module.register_forward_pre_hook(lambda _, args: heard.append(args[1]))
    x, label, cond = (
        torch.randn(2, 1, 8, 8).double(),
        torch.tensor([3.0, 5.0]).double(),
        model.embed(torch.tensor([1, 4])),
    )
    assert model(x, label, cond).isfinite().all()
    for c in heard:
        assert torch.equal(c, model.time_embeddings[1](label, x.dtype) + cond[:, 16:48])
    assert len(heard) == 2


def test_dic_skips_pair_up_at_every_depth() -> None:
    """A decoder stage of a level joins as many skips as its encoder stage gives."""
    for depth in [(1, 2, 1, 2, 1), (4, 5, 2, 5, 4), (3, 7, 1, 9, 2), (3, 1, 3), (2,)]:
        model = DiC.preset(
            "tiny", depth=depth, channel_mult=(1, 2, 4, 2, 1) if len(depth) == 5 else (1, 2, 1)[: len(depth)]
        )
        joins = sum(isinstance(block.shortcut, nn.Conv2d) for blocks in model.decoder for block in blocks)
        assert joins == sum(math.ceil(blocks / 3) for blocks in depth[: len(depth) // 2])
        size = 2 * model.size_multiple
        x = torch.randn(1, 1, size, size)
        assert model(x, torch.tensor([3.0]), model.embed(torch.tensor([1]))).shape == x.shape


def randomized(module: nn.Module) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def normed(x: Tensor, dim: int) -> Tensor:
    """Zero mean and unit variance along dim; 1e-6 under the root."""
    centered = x - x.mean(dim, keepdim=True)
    return centered / (centered.square().mean(dim, keepdim=True) + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


@torch.no_grad()
def test_dit_block_is_its_formula() -> None:
    """Written out with softmax and tanh; small inputs, so that the norms' epsilon counts."""
    block = randomized(DiTBlock(8, 2, 2.0, 0.0))
    x, c = 1e-3 * torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation.linear(silu(c))[:, None].split(8, -1)
    h = block.attention.qkv(normed(x, -1) * (1 + scale_a) + shift_a)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = h[..., :8][..., head], h[..., 8:16][..., head], h[..., 16:][..., head]
        heads.append((q @ k.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v)
    expected = x + gate_a * block.attention.proj(torch.cat(heads, -1))
    h = block.mlp.fc1(normed(expected, -1) * (1 + scale_m) + shift_m)
    h = h / 2 * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    expected = expected + gate_m * block.mlp.fc2(h)
    torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_dico_block_is_its_formula() -> None:
    """Written out with the error function and nine shifted products; small inputs, as above."""
    block = randomized(DiCoBlock(6, 2.0, 0.0))
    x, c = 1e-3 * torch.randn(2, 6, 4, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def pointwise(conv: nn.Conv2d, h: Tensor) -> Tensor:
        return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], h) + conv.bias[:, None, None]

    def gelu(h: Tensor) -> Tensor:
        return h / 2 * (1 + (h / math.sqrt(2)).erf())

    chunks = block.modulation.linear(silu(c))[:, :, None, None].split(6, 1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks
    h = pointwise(block.conv_in, normed(x, 1) * (1 + scale_a) + shift_a)
    padded = nn.functional.pad(h, (1, 1, 1, 1))
    kernel = block.conv_depthwise.weight[:, 0, :, :, None, None]
    h = sum(kernel[:, i, j] * padded[:, :, i : i + 4, j : j + 5] for i in range(3) for j in range(3))
    h = gelu(h + block.conv_depthwise.bias[:, None, None])
    attention = pointwise(block.channel_attention.conv, h.mean((2, 3), keepdim=True))
    h = pointwise(block.conv_out, h / (1 + (-attention).exp()))
    expected = x + gate_a * h
    h = gelu(pointwise(block.mlp_in, normed(expected, 1) * (1 + scale_m) + shift_m))
    expected = expected + gate_m * pointwise(block.mlp_out, h)
    torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_unet_block_is_its_formula() -> None:
    block = randomized(ResBlock(6, 4, 5, 2, 0.0))
    x, c = torch.randn(2, 6, 4, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    def group_normed(norm: nn.GroupNorm, h: Tensor) -> Tensor:
        groups = h.unflatten(1, (2, -1))
        centered = groups - groups.mean((2, 3, 4), keepdim=True)
        unit = centered / (centered.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
        return unit.flatten(1, 2) * norm.weight[:, None, None] + norm.bias[:, None, None]

    shift, scale = block.condition(silu(c))[:, :, None, None].split(4, 1)
    h = block.conv_1(silu(group_normed(block.norm_1, x)))
    h = block.conv_2(silu(group_normed(block.norm_2, h) * (1 + scale) + shift))
    expected = block.shortcut(x) + h
    torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-12)


def test_position_table_encodes_column_then_row() -> None:
    table = sincos_positions(16, rows := 2, columns := 3).reshape(rows, columns, 16)
    frequency = torch.tensor([10000 ** (-i / 4) for i in range(4)])
    for row in range(rows):
        for column in range(columns):
            angles = [column * frequency, row * frequency]
            expected = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())])
            torch.testing.assert_close(table[row, column], expected, rtol=1e-6, atol=1e-7)
    model = DiT.preset("tiny")
    assert torch.equal(model.positions(2, 3), sincos_positions(32, 2, 3))


def test_fresh_unet_blocks_are_the_identity() -> None:
    x, c = torch.randn(2, 16, 4, 4), torch.randn(2, 12)
    assert torch.equal(ResBlock(16, 16, 12, 4, 0.0)(x, c), x)
    assert torch.equal(SpatialAttention(nn.GroupNorm(4, 16), 2)(x), x)


def test_sinusoid_is_cos_then_sin_of_geometric_frequencies() -> None:
    features = sinusoid(torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert features.shape == (2, 256)
    assert torch.equal(features[0], torch.cat([torch.ones(128), torch.zeros(128)]).double())
    for i in (0, 1, 64, 127):
        angle = torch.tensor(3.0 * 10000 ** (-i / 128), dtype=torch.float64)
        torch.testing.assert_close(features[1, i], angle.cos(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(features[1, 128 + i], angle.sin(), rtol=1e-12, atol=1e-12)


def test_unpatchify_puts_every_pixel_back() -> None:
    image = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = torch.stack(
        [
            image[:, :, 2 * r : 2 * r + 2, 2 * q : 2 * q + 2].permute(0, 2, 3, 1).flatten(1)
            for r in range(2)
            for q in range(3)
        ],
        dim=1,
    )
    assert torch.equal(unpatchify(tokens, 2, 3, 2), image)


def test_unet_attends_where_asked() -> None:
    def attending(**options: object) -> list[str]:
        model = UNet.preset("tiny", **options)
        return [name for name, module in model.named_modules() if isinstance(module, SpatialAttention)]

    assert attending(attention_resolutions=()) == []
    assert len(attending(attention_resolutions=(8,))) == 3  # one on the way down, two on the way up
    assert len(attending(attention_resolutions=(4,))) == 5  # and two at the bottom


def test_unet_attention_reaches_across_the_image() -> None:
    torch.manual_seed(0)
    attention = SpatialAttention(nn.GroupNorm(4, 8), 2)
    torch.nn.init.normal_(attention.attention.proj.weight)
    x = torch.randn(1, 8, 4, 6)
    permutation = torch.randperm(24)
    mixed = attention(x.flatten(2)[:, :, permutation].reshape(1, 8, 4, 6))
    torch.testing.assert_close(mixed.flatten(2), attention(x).flatten(2)[:, :, permutation])


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (
            DiT,
            {"hidden_size": 30},
            "num_heads must divide hidden_size, got num_heads = 4 and hidden_size = 30",
        ),
        (DiT, {"hidden_size": 18, "num_heads": 3}, "position table"),
        (DiT, {"depth": 0}, "depth must be at least 1, got 0"),
        (DiT, {"patch_size": 3}, "image_size must be a multiple of 3, got 8"),
        (DiT, {"patch_size": 0}, "patch_size must be at least 1, got 0"),
        (LightningDiT, {"num_heads": 3}, "num_heads must divide hidden_size"),
        (LightningDiT, {"num_heads": 16}, "4 .of the rotary positions. must divide a head's width"),
        (DiC, {"hidden_size": 15}, "4 .of the pixel shuffle. must divide"),
        (
            DiC,
            {"hidden_size": 132},
            "groups, min.32, channels // 4., must divide channels, got .* = 32 and channels = 132",
        ),
        (DiC, {"depth": (1, 1, 1)}, "channel_mult must be an odd number"),
        (DiC, {"depth": (1, 1, 1, 1)}, "depth must be an odd number"),
        (DiC, {"depth": (1, 1, 0, 1, 1)}, "depth must be an odd number of positive"),
        (DiC, {"depth": (1, 4, 1, 3, 1)}, "stages of 4 and 3 blocks"),
        (DiC, {"skip_stride": 0}, "skip_stride must be at least 1"),
        (DiC, {"channel_mult": (1, 2, 4, 4, 1)}, "same down and up"),
        (DiC, {"channel_mult": (1, 2, 4, 2, 3)}, "same down and up"),
        (DiCo, {"hidden_size": 15}, "hidden_size must be even"),
        (DiCo, {"depth": (1, 1, 1)}, "five positive numbers"),
        (DiCo, {"depth": (1, 1, 0, 1, 1)}, "five positive numbers"),
        (UNet, {"channels": 18}, "num_groups must divide channels, got num_groups = 4 and channels = 18"),
        (UNet, {"num_heads": 3}, "num_heads must divide"),
        (UNet, {"num_heads": 0}, "num_heads must be at least 1, got 0"),
        (UNet, {"channel_mult": ()}, "positive widths"),
        (UNet, {"channel_mult": (1, 0)}, "positive widths"),
        (UNet, {"attention_resolutions": (5,)}, r"sides \[8, 4\], got \[5\]"),
        (UNet, {"blocks_per_level": 0}, "blocks_per_level must be at least 1, got 0"),
        (UNet, {"channel_mult": (1, 1, 1, 1, 1), "attention_resolutions": ()}, "multiple of 16, got 8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(cls: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.preset("tiny", **options)
