"""DiffiT: published sizes and guidance, attention against its formula, windows, other sizes, image space."""

from __future__ import annotations

import math

import pytest
import torch
from reference import GOLDEN, Reference, null_labels, relative_error
from torch import Tensor, nn

from dinit.checkpoints.layouts import LAYOUTS
from dinit.models.diffit import DiffiT
from dinit.models.diffit_unet import DiffiTResBlock, DiffiTUNet, from_windows, to_windows
from dinit.models.layers.time_attention import DiffiTBlock, RelativeBias, TimeAttention, stretch

# Trainable, and with the frozen position table; counted from the reference implementation.
COUNTS = {"latent-256": (561_035_232, 561_330_144), "latent-512": (562_382_816, 563_562_464)}


def randomized(module: nn.Module) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def normed(x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_latent_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = DiffiT.preset(name)
    trainable = sum(p.numel() for p in model.parameters())
    assert (trainable, trainable + model.positions.table.numel()) == COUNTS[name]


def test_every_published_preset_is_counted() -> None:
    assert set(DiffiT.presets) - {"tiny"} == set(COUNTS)


@torch.no_grad()
def test_published_guidance_follows_a_power_of_cosine() -> None:
    """The 256 px sampler's scale at step n is 1 + (scale - 1) (1 - cos(pi (1 - n / 1000)^4)) / 2."""
    file = Reference(GOLDEN / "diffit_latent.safetensors")
    model, given = file.build(), file.tensors
    x, labels = given["in.cfg_x"][:1].repeat(2, 1, 1, 1), torch.cat([given["in.cfg_y"][:1], null_labels(model, 1)])
    out = model(x, given["in.cfg_t"], model.embed(labels))
    step = given["in.cfg_t"][0].item()
    ramp = (1 - math.cos(math.pi * (1 - step / 1000) ** 4)) / 2
    scale = 1 + (float(file.metadata["cfg_scale"]) - 1) * ramp
    assert 1.05 < scale < 1.1
    guided = torch.lerp(out[1:, :3], out[:1, :3], scale)
    combined = torch.cat([guided.expand(2, -1, -1, -1), out[:, 3:]], dim=1)
    assert relative_error(combined, given["out.cfg"]) <= file.tolerance


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 4), (3, 2), (1, 1)])
@torch.no_grad()
def test_relative_bias_is_looked_up_by_offset(rows: int, columns: int) -> None:
    """Against two loops; the table of another size is a linear function, which interpolation must keep."""
    bias = RelativeBias(2, 4).double()
    if (rows, columns) == (4, 4):
        nn.init.normal_(bias.table)
    else:
        down, right = torch.meshgrid(torch.arange(-3.0, 4.0), torch.arange(-3.0, 4.0), indexing="ij")
        bias.table.copy_(torch.stack([2 * down + 5 * right, 1 - right]))
    table, out = bias.table, bias(rows, columns)
    assert out.shape == (2, rows * columns, rows * columns)
    for query in range(rows * columns):
        for key in range(rows * columns):
            down, right = query // columns - key // columns, query % columns - key % columns
            if (rows, columns) == (4, 4):
                expected = table[:, 3 + down, 3 + right]
            else:
                down, right = down * 3 / max(rows - 1, 1), right * 3 / max(columns - 1, 1)
                expected = torch.tensor([2 * down + 5 * right, 1 - right], dtype=torch.float64)
            torch.testing.assert_close(out[:, query, key], expected, rtol=1e-12, atol=1e-12)


def test_stretching_to_the_same_size_changes_nothing() -> None:
    assert torch.equal(stretch(5, 5, torch.zeros(1)), torch.eye(9))


@torch.no_grad()
def test_block_is_its_formula() -> None:
    """Written out head by head and window by window; small inputs, so that the norms' epsilon counts."""
    block = randomized(DiffiTBlock(8, 6, 2, 2, 2.0, 0.0))
    x, c = 1e-3 * torch.randn(3, 5, 4, 8, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    attention, bias = block.attention, block.attention.bias(2, 2)
    attended = torch.empty_like(x)
    for image in range(3):
        for window in range(5):
            h = attention.qkv(normed(x[image, window])) + attention.qkv_time(c[image])
            heads = []
            for head in range(2):
                q, k, v = (h[:, 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
                heads.append((q @ k.T / math.sqrt(4) + bias[head]).softmax(-1) @ v)
            attended[image, window] = attention.proj(torch.cat(heads, -1))
    expected = x + attended
    h = block.mlp.fc1(normed(expected))
    h = h / 2 * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    expected = expected + block.mlp.fc2(h)
    torch.testing.assert_close(block(x, c, 2, 2), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_condition_moves_queries_and_values() -> None:
    """The same for every token, what it adds to the keys shifts a query's logits alike, and softmax forgets it."""
    attention = randomized(TimeAttention(8, 8, 2, 2, 0.0))
    x, c = torch.randn(1, 1, 4, 8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    out = attention(x, c, 2, 2)
    for part, moves in enumerate((True, False, True)):
        weight = attention.qkv_time.weight[8 * part : 8 * part + 8]
        kept = weight.clone()
        weight.zero_()
        assert ((attention(x, c, 2, 2) - out).abs().max() > 1e-3) == moves
        weight.copy_(kept)


@torch.no_grad()
def test_other_sizes_run_with_the_stretched_table() -> None:
    """A model of 8 px run at 12 px is the model of 12 px whose tables are the first one's, stretched."""
    small = randomized(DiffiT.preset("tiny"))
    large = DiffiT.preset("tiny", image_size=12).double()
    by_offset = stretch(4, 6, torch.zeros(1).double())
    state = {
        key: by_offset @ t @ by_offset.T if key.endswith("bias.table") else t
        for key, t in small.state_dict().items()
    }
    large.load_state_dict(state)
    x, step, cond = torch.randn(2, 1, 12, 12).double(), torch.tensor([7.0]), small.embed(torch.tensor([1, 10]))
    torch.testing.assert_close(small(x, step, cond), large(x, step, cond), rtol=1e-9, atol=1e-9)


def test_windows_are_squares_row_by_row() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    windows = to_windows(x, 2)
    assert windows.shape == (2, 6, 4, 3)
    for window in range(6):
        r, q = 2 * (window // 3), 2 * (window % 3)
        assert torch.equal(windows[:, window], x[:, :, r : r + 2, q : q + 2].flatten(2).transpose(1, 2))
    back = from_windows(windows, 2, rows=4)
    assert torch.equal(back, x)
    assert back.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_res_block_is_convolution_then_attention_in_windows() -> None:
    """Eq. 9 and 10 of the paper, one window at a time."""
    options = {"num_heads": 2, "window": 2, "num_groups": 4, "mlp_ratio": 2.0, "dropout": 0.0}
    block = randomized(DiffiTResBlock(8, 6, **options))
    x, c = torch.randn(2, 8, 4, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    groups = x.unflatten(1, (4, 2))
    centered = groups - groups.mean((2, 3, 4), keepdim=True)
    h = (centered / (centered.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)
    h = h * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    h = block.conv(h / (1 + (-h).exp()))
    expected = x.clone()
    for r in range(0, 4, 2):
        for q in range(0, 6, 2):
            tokens = h[:, :, r : r + 2, q : q + 2].flatten(2).transpose(1, 2)
            mixed = block.transformer(tokens[:, None], c, 2, 2)[:, 0]
            expected[:, :, r : r + 2, q : q + 2] += mixed.transpose(1, 2).unflatten(2, (2, 2))
    torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_unet_without_classes_has_no_label_table() -> None:
    model = DiffiTUNet.preset("tiny", num_classes=0)
    assert not any(isinstance(module, nn.Embedding) for module in model.modules())
    assert torch.equal(model.embed(null_labels(model, 3)), torch.zeros(3, 64))
    assert model.double().embed(null_labels(model, 1)).dtype == torch.float64


@torch.no_grad()
def test_unet_with_one_level_and_with_three() -> None:
    for mult in [(1,), (1, 2, 3)]:
        model = randomized(DiffiTUNet.preset("tiny", channel_mult=mult, image_size=4 * 2 ** (len(mult) - 1)))
        assert model.size_multiple == model.image_size
        x = torch.randn(1, 1, model.image_size, 2 * model.image_size).double()
        out = model(x, torch.tensor([3.0]), model.embed(torch.tensor([1])))
        assert out.shape == x.shape
        assert out.isfinite().all()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (DiffiT, {"num_heads": 3}, "num_heads must divide hidden_size, got num_heads = 3 and hidden_size = 32"),
        (DiffiT, {"hidden_size": 18, "num_heads": 3}, "position table"),
        (DiffiT, {"depth": 0}, "depth must be at least 1, got 0"),
        (DiffiT, {"patch_size": 3}, "image_size must be a multiple of 3, got 8"),
        (DiffiTUNet, {"window": 3}, "image_size must be a multiple of 6, got 8"),
        (DiffiTUNet, {"window": 0}, "window must be at least 1, got 0|size_multiple must be"),
        (DiffiTUNet, {"num_heads": 3}, "num_heads must divide every level's width, got num_heads = 3"),
        (DiffiTUNet, {"num_groups": 5}, "num_groups must divide every level's width"),
        (DiffiTUNet, {"channel_mult": ()}, "channel_mult must be one or more positive numbers"),
        (DiffiTUNet, {"channel_mult": (1, 0)}, "channel_mult must be one or more positive numbers"),
        (DiffiTUNet, {"blocks_per_level": 0}, "blocks_per_level must be at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(cls: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.preset("tiny", **options)


def test_reference_defaults_are_known() -> None:
    """What the published constructor assumes where its arguments are silent."""
    assert LAYOUTS["diffit"]().arguments({"input_size": 8}) == {"image_size": 8, "learn_sigma": True, "depth": 30}
