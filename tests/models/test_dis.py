"""DiS: published sizes, what its tokens and streams do, and its mixer against a naive one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinit.checkpoints.layouts import LAYOUTS
from dinit.models.dis import DiS
from dinit.models.layers.mamba import Mamba

# Counted from the reference implementation; the learned position table is among them.
COUNTS = {
    "S/2": 29_132_752,
    "S/4": 29_115_184,
    "B/2": 121_163_552,
    "B/4": 121_126_784,
    "M/2": 231_414_560,
    "M/4": 231_377_792,
    "L/2": 407_249_952,
    "L/4": 407_200_896,
    "H/2": 906_966_560,
    "H/4": 906_892_928,
    "H/2-512": 908_146_208,
    "S/2-uncond-32": 28_488_008,
}


def randomized(model: DiS) -> DiS:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = DiS.preset(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_every_published_preset_is_counted() -> None:
    assert set(DiS.presets) - {"tiny"} == set(COUNTS)


@pytest.mark.parametrize(("depth", "pairs"), [(1, 0), (2, 1), (3, 1), (4, 2), (24, 12)])
def test_depth_counts_as_published(depth: int, pairs: int) -> None:
    with torch.device("meta"):
        model = DiS.preset("tiny", depth=depth)
    assert (len(model.encoder), len(model.decoder), len(model.merges)) == (pairs, pairs, pairs)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 5])
def test_odd_and_smallest_depths_run(depth: int) -> None:
    model = randomized(DiS.preset("tiny", depth=depth))
    out = model(torch.randn(2, 1, 8, 8), torch.zeros(2), model.embed(torch.tensor([0, 1])))
    assert out.shape == (2, 1, 8, 8)
    assert out.isfinite().all()


def test_unconditional_has_neither_label_token_nor_modulation() -> None:
    model = DiS.preset("tiny", num_classes=0)
    assert len(model.positions) == 1 + 16
    assert not any("label" in key or "modulation" in key for key in model.state_dict())
    assert torch.equal(model.embed(torch.tensor([0, 0])), torch.zeros(2, 32))


@torch.no_grad()
def naive_mixer(mixer: Mamba, tokens: Tensor) -> Tensor:
    """Bidirectional Mamba, each direction on flipped tokens, gated and projected by itself."""
    out = torch.zeros_like(tokens)
    for backward, ssm in enumerate(mixer.directions):
        x, gate = mixer.in_proj(tokens.flip(1) if backward else tokens).chunk(2, dim=-1)
        length, width = x.shape[1], ssm.conv.weight.shape[-1]
        padded = F.pad(x, (0, 0, width - 1, 0))
        taps = [padded[:, k : k + length] * ssm.conv.weight[:, 0, k] for k in range(width)]
        u = F.silu(torch.stack(taps).sum(0) + ssm.conv.bias)
        rank = ssm.dt_proj.in_features
        states = ssm.A_log.shape[1]
        dt, B, C = ssm.x_proj(u).split([rank, states, states], dim=-1)
        delta = torch.log1p(torch.exp(dt @ ssm.dt_proj.weight.T + ssm.dt_proj.bias))
        h, y = torch.zeros(len(x), x.shape[2], states, dtype=x.dtype), []
        for t in range(length):
            decay = torch.exp(-delta[:, t, :, None] * ssm.A_log.exp())
            h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            y.append((h * C[:, t, None, :]).sum(-1) + ssm.D * u[:, t])
        one = mixer.out_proj(torch.stack(y, 1) * F.silu(gate))
        out += one.flip(1) if backward else one
    return out


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_mixer_is_the_naive_one(bidirectional: bool) -> None:
    torch.manual_seed(0)
    mixer = Mamba(24, states=5, bidirectional=bidirectional).double()
    tokens = torch.randn(2, 11, 24, dtype=torch.float64)
    expected = naive_mixer(mixer, tokens)
    torch.testing.assert_close(mixer(tokens), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 4])
def test_mixer_without_gradients_gives_the_numbers_of_the_one_with(dtype: torch.dtype, width: int) -> None:
    """Where numba is installed, only the former runs loops of its own for the convolution and the gate."""
    torch.manual_seed(0)
    mixer = Mamba(24, states=5, conv_width=width)
    tokens = 2 * torch.randn(2, 11, 24, dtype=torch.float64)
    expected = naive_mixer(copy.deepcopy(mixer).double(), tokens)
    mixer = mixer.to(dtype)
    with torch.no_grad():
        plain = mixer(tokens.to(dtype))
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    for out in (plain, mixer(tokens.to(dtype))):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@torch.no_grad()
def test_one_direction_sees_no_later_token_and_two_see_all() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 9, 16)
    changed = tokens.clone()
    changed[:, 5] += 1
    for bidirectional in (False, True):
        mixer = Mamba(16, bidirectional=bidirectional)
        moved = (mixer(changed) - mixer(tokens)).abs().amax((0, 2)) > 0
        assert moved[5:].all()
        assert moved[:5].all() == bidirectional
        assert moved[:5].any() == bidirectional


def test_fresh_mixer_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    for ssm in Mamba(64).directions:
        delta = F.softplus(ssm.dt_proj.bias)
        assert 1e-3 * 0.999 <= delta.min() < 2e-3
        assert 5e-2 < delta.max() <= 0.1 * 1.001
        torch.testing.assert_close(ssm.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
        assert (ssm.D == 1).all()


@torch.no_grad()
def test_skips_carry_mixer_outputs_and_the_residual_runs_past_them() -> None:
    model = randomized(DiS.preset("tiny", depth=4)).double()
    hidden = torch.randn(2, 7, 32, dtype=torch.float64)
    expected, skips, x = hidden, [], hidden
    for block in model.encoder:
        x = block(expected)
        skips.append(x)
        expected = expected + x
    x = model.bottom(expected)
    for i in range(2):
        joined = torch.cat([x, skips[1 - i]], dim=-1)
        expected = expected + joined @ model.merges[i].weight.T + model.merges[i].bias
        x = model.decoder[i](expected)
    expected = expected + x
    expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.weight
    torch.testing.assert_close(model.mix(hidden), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [0, 10])
def test_position_table_of_another_size_is_interpolated(num_classes: int) -> None:
    model = randomized(DiS.preset("tiny", num_classes=num_classes))
    prefix = 2 if num_classes else 1
    assert model.position_table(4, 4) is model.positions
    table = model.position_table(6, 8)
    assert table.shape == (prefix + 48, 32)
    assert torch.equal(table[:prefix], model.positions[:prefix])
    # What is the same along every row stays so, and keeps its order and its mean.
    model.positions[prefix:] = torch.arange(4.0).repeat_interleave(4)[:, None]
    wide = model.position_table(12, 6)[prefix:].unflatten(0, (12, 6))
    torch.testing.assert_close(wide, wide[:, :1, :1].expand_as(wide))
    assert (wide[:, 0, 0].diff() > 0).all()
    torch.testing.assert_close(wide.mean(), torch.tensor(1.5))


@pytest.mark.parametrize(
    ("argument", "value"), [("embed_dim", 33), ("embed_dim", 0), ("depth", 0), ("patch_size", 0)]
)
def test_wrong_arguments_are_refused(argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=argument):
        DiS.preset("tiny", **{argument: value})


@torch.no_grad()
def test_residual_stream_is_float32_under_autocast() -> None:
    model = randomized(DiS.preset("tiny"))
    seen: list[torch.dtype] = []
    model.bottom.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 1, 8, 8), torch.zeros(1), model.embed(torch.tensor([1])))
    assert seen == [torch.float32]


def test_layout_reads_the_published_arguments() -> None:
    given = {"img_size": 64, "channels": 3, "patch_size": 4, "embed_dim": 16, "depth": 2}
    ours = {"image_size": 64, "in_channels": 3, "patch_size": 4, "embed_dim": 16, "depth": 2}
    layout = LAYOUTS["dis"]()
    assert layout.arguments(given) == {**ours, "num_classes": 0}
    assert layout.arguments({**given, "num_classes": -1})["num_classes"] == 0
    assert layout.arguments({**given, "num_classes": 1000})["num_classes"] == 1000
