"""NCSN++, DDPM++ and DDPM: published sizes, parts against naive definitions, conventions of sigma and range."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from reference import Reference, null_labels, references, relative_error
from torch import Tensor, nn

from dinit.checkpoints.keymap import map_keys
from dinit.checkpoints.layouts.score_sde import NCSNPP
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.base import Backbone
from dinit.models.ddpm import DDPM
from dinit.models.layers.feature_maps import SpatialAttention
from dinit.models.layers.fir import FIRDown, FIRUp
from dinit.models.layers.score_unet import FourierEmbedding, ScoreBlock
from dinit.models.ncsnpp import NCSNpp, _norm

F64 = torch.float64

# Counted from the reference implementations, frozen Fourier frequencies included.
COUNTS = {
    "cifar10-ve": 62_758_915,
    "cifar10-ve-deep": 107_587_075,
    "cifar10-ve-discrete": 62_693_251,
    "celeba-64-ve": 62_693_251,
    "256-ve": 65_574_549,
    "bedroom-256-ve": 65_574_549,
    "church-256-ve": 65_574_549,
    "1024-ve": 105_785_896,
    "cifar10-vp": 62_693_251,
    "cifar10-vp-deep": 107_521_411,
    "cifar10-ddpmpp": 61_804_419,
    "cifar10-ddpmpp-deep": 106_632_579,
}
DDPM_COUNTS = {"cifar10": 35_218_947, "256": 111_569_923}
FROZEN = {"1024-ve": 16, **dict.fromkeys(("cifar10-ve", "cifar10-ve-deep", "256-ve"), 128)}
FROZEN |= dict.fromkeys(("bedroom-256-ve", "church-256-ve"), 128)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = NCSNpp.preset(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == FROZEN.get(name, 0)


@pytest.mark.parametrize("name", sorted(DDPM_COUNTS))
def test_ddpm_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = DDPM.preset(name)
    assert sum(p.numel() for p in model.parameters()) == DDPM_COUNTS[name]


def test_every_published_preset_is_counted() -> None:
    assert set(NCSNpp.presets) - {"tiny"} == set(COUNTS)
    assert set(DDPM.presets) - {"tiny"} == set(DDPM_COUNTS)


@pytest.mark.parametrize("cls", [NCSNpp, DDPM])
def test_attention_of_the_presets_is_at_16_pixels(cls: type[Backbone]) -> None:
    for name, preset in cls.presets.items():
        if name != "tiny":
            assert [preset["image_size"] >> level for level in preset["attention_levels"]] == [16], name


def randomized(module: nn.Module, std: float = 0.5) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "block_file" in metafunc.fixturenames:
        files = references(metafunc.config.getoption("--parity"))
        files = [file for file in files if file.name == "ResnetBlockBigGANpp"]
        metafunc.parametrize("block_file", files, ids=lambda file: file.path.stem)


@torch.no_grad()
def test_one_block(block_file: Reference) -> None:
    """With many channels, 32 groups normalise more than four of them each."""
    options, given = block_file.arguments, block_file.tensors
    kind = next((name for name in ("down", "up") if options.get(name)), "")
    plain = {"down": lambda: nn.AvgPool2d(2), "up": lambda: nn.Upsample(scale_factor=2)}
    resampling = {"down": FIRDown, "up": FIRUp} if options.get("fir") else plain
    block = ScoreBlock(
        options["in_ch"],
        options["out_ch"],
        options["temb_dim"],
        0.0,
        norm=_norm,
        residual_scale=1 / math.sqrt(2) if options.get("skip_rescale") else 1.0,
        resample=resampling[kind]() if kind else None,
    )
    # The file holds one block; we give it a place in a model, so that the model's key map serves it.
    mapped = map_keys({f"downs.0.{key}": t for key, t in block_file.state.items()}, NCSNPP)
    block.load_state_dict({key.removeprefix("downs.0."): t for key, t in mapped.items()})
    assert relative_error(block(given["in.x"], given["in.temb"]), given["out.sample"]) <= block_file.tolerance


def normed(norm: nn.GroupNorm, groups: int, h: Tensor) -> Tensor:
    """1e-6 under the root."""
    parts = h.unflatten(1, (groups, -1))
    centered = parts - parts.mean((2, 3, 4), keepdim=True)
    unit = centered / (centered.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()
    return unit.flatten(1, 2) * norm.weight[:, None, None] + norm.bias[:, None, None]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def attended(attention: SpatialAttention, groups: int, x: Tensor, scale: float) -> Tensor:
    width = x.shape[1]
    weight, bias = attention.attention.qkv.weight, attention.attention.qkv.bias
    h = torch.einsum("oc,bchw->bohw", weight, normed(attention.norm, groups, x)) + bias[:, None, None]
    q, k, v = h.flatten(2).split(width, 1)  # (B, width, HW)
    mixed = v @ (q.transpose(1, 2) @ k / math.sqrt(width)).softmax(-1).transpose(1, 2)
    proj = attention.attention.proj
    out = proj.weight @ mixed + proj.bias[:, None]
    return (x + out.unflatten(2, x.shape[2:])) * scale


@torch.no_grad()
@pytest.mark.parametrize("resample", [None, FIRDown(), FIRUp(), nn.AvgPool2d(2)])
@pytest.mark.parametrize("scale", [1.0, 1 / math.sqrt(2)])
def test_block_is_its_formula(resample: nn.Module | None, scale: float) -> None:
    """Small inputs, so that the norms' epsilon counts."""
    block = randomized(
        ScoreBlock(8, 12, 5, 0.0, norm=_norm, residual_scale=scale, resample=resample, attend=True), std=0.3
    )
    x, c = 1e-3 * torch.randn(2, 8, 6, 4, dtype=F64), torch.randn(2, 5, dtype=F64)

    def same(h: Tensor) -> Tensor:
        return h

    change = resample or same
    h = block.conv_1(change(silu(normed(block.norm_1, 2, x))))
    h = h + (silu(c) @ block.condition.weight.T + block.condition.bias)[:, :, None, None]
    h = block.conv_2(silu(normed(block.norm_2, 3, h)))
    shortcut = torch.einsum("oc,bchw->bohw", block.shortcut.weight[:, :, 0, 0], change(x))
    summed = (shortcut + block.shortcut.bias[:, None, None] + h) * scale
    expected = attended(block.attention, 3, summed, scale)
    torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-12)


def test_fresh_blocks_only_scale() -> None:
    x, c = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    plain = ScoreBlock(8, 8, 5, 0.0, norm=_norm, attend=True)
    assert torch.equal(plain(x, c), x)
    scaled = ScoreBlock(8, 8, 5, 0.0, norm=_norm, residual_scale=0.5, attend=True)
    assert torch.equal(scaled(x, c), x / 4)


def test_groups() -> None:
    groups = {4: 1, 12: 3, 16: 4, 128: 32, 160: 32, 256: 32}
    assert {width: _norm(width).num_groups for width in groups} == groups
    assert all(m.num_groups == 32 for m in DDPM(channels=32).modules() if isinstance(m, nn.GroupNorm))
    for model in (NCSNpp.preset("tiny"), DDPM.preset("tiny")):
        assert all(m.eps == 1e-6 for m in model.modules() if isinstance(m, nn.GroupNorm))


VARIANTS = {
    "plain": {"fir": False, "input_pyramid": "none", "output_pyramid": "none"},
    "plain pyramids": {"fir": False, "input_pyramid": "residual", "output_pyramid": "skip"},
    "skips": {"input_pyramid": "skip", "output_pyramid": "skip"},
    "three levels": {"channel_mult": (1, 2, 2), "image_size": 16, "attention_levels": (0, 2)},
    "one level": {"channel_mult": (2,), "attention_levels": ()},
    "fourier": {"embedding": "fourier", "scale_by_sigma": True, "centered": False},
}


def made(**options: object) -> NCSNpp:
    """The tiny preset with these options and random weights in float64; the Fourier frequencies stay small."""
    model = randomized(NCSNpp.preset("tiny", **options), std=0.1)
    assert isinstance(model, NCSNpp)
    return model


def given(model: Backbone, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.rand(batch, model.in_channels, model.image_size, model.image_size, dtype=F64)
    return x, torch.tensor([0.7, 3.0], dtype=F64), model.embed(torch.tensor([1, 4]))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_variants_start_at_zero_and_use_every_weight(options: dict) -> None:
    x, label, cond = given(model := NCSNpp.preset("tiny", **options).double().eval())
    assert model(x, label, cond).abs().max() == 0
    x, label, cond = given(model := made(**options))
    out = model(x, label, cond)
    assert out.shape == x.shape
    for name, parameter in model.named_parameters():
        if "label_embedding" not in name:
            kept = parameter.clone()
            parameter.add_(0.1 * torch.randn_like(parameter))
            # A bias of the keys shifts a row of scores as a whole, but here it is one with q's and v's.
            assert not torch.equal(model(x, label, cond), out), name
            parameter.copy_(kept)


@torch.no_grad()
def test_input_and_output_pyramids_are_sums_over_scales() -> None:
    """With everything else silent, the input skips and the heads are the whole network."""
    model = made(input_pyramid="skip", output_pyramid="skip", channel_mult=(1, 2, 2), image_size=16)
    x, label, cond = given(model)
    small, smaller = FIRDown()(x), FIRDown()(FIRDown()(x))
    joined: list[tuple[Tensor, Tensor]] = []
    heads: list[Tensor] = []
    for join in model.pyramid:
        join.register_forward_hook(lambda _, args, out: joined.append((args[0], out[0])))
    for head in (*model.coarse_heads, model.head):
        head.register_forward_hook(lambda _, args, out: heads.append(out))
    out = model(x, label, cond)
    for join, image, (before, after) in zip(model.pyramid, (small, smaller), joined, strict=True):
        expected = (
            torch.einsum("oc,bchw->bohw", join.conv.weight[:, :, 0, 0], image) + join.conv.bias[:, None, None]
        )
        torch.testing.assert_close(after - before, expected, rtol=1e-9, atol=1e-12)
    up = FIRUp()
    torch.testing.assert_close(out, up(up(heads[0]) + heads[1]) + heads[2], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_residual_input_pyramid_takes_what_joined_before() -> None:
    model = made(input_pyramid="residual", channel_mult=(1, 2, 2), image_size=16)
    x, label, cond = given(model)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    for join in model.pyramid:
        join.register_forward_hook(lambda _, args, out: calls.append((*args, out[0])))
    model(x, label, cond)
    assert torch.equal(calls[0][1], x)
    assert calls[1][1] is calls[0][2]
    for join, (h, pyramid, out) in zip(model.pyramid, calls, strict=True):
        torch.testing.assert_close(out, (join.down(pyramid) + h) / math.sqrt(2), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_images_in_0_1_are_mapped_by_the_network() -> None:
    model = made()
    x, label, cond = given(model)
    expected = model(2 * x - 1, label, cond)
    model.centered = False
    torch.testing.assert_close(model(x, label, cond), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_output_is_divided_by_the_level_that_an_index_names() -> None:
    """The discrete process names the levels as the network does, between them too."""
    model = made(num_scales=40, sigma_max=90.0)
    process = PROCESSES.create({"name": "ve-discrete", "num_steps": 40, "sigma_max": 90.0})
    x, _, cond = given(model)
    k = process.scales(torch.tensor([1.0, 0.37], dtype=F64))
    label = process.noise_label(k)
    raw = model(x, label, cond)
    model.scale_by_sigma = True
    torch.testing.assert_close(model(x, label, cond), raw / k.sigma[:, None, None, None], rtol=1e-10, atol=0)
    table = torch.linspace(math.log(90.0), math.log(0.01), 40, dtype=F64).exp()
    levels = torch.arange(40, dtype=F64)
    torch.testing.assert_close(model._sigma(levels), table, rtol=1e-12, atol=0)
    torch.testing.assert_close(model._sigma(levels.float()).double(), table, rtol=3e-6, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("process", ["ve", "ve-discrete"])
def test_denoiser_of_a_score_network_is_tweedies_formula(process: str) -> None:
    embedding = "fourier" if process == "ve" else "positional"
    model = made(embedding=embedding, scale_by_sigma=True, centered=False)
    denoiser = BackboneDenoiser(model, PROCESSES.create(process), PARAMETERIZATIONS.create("score"))
    x, _, cond = given(model)
    sigma, index = 50.0 * (0.01 / 50.0) ** (299.7 / 999), 299.7
    t = float(denoiser.process.time_of_noise_level(torch.tensor(sigma)))
    label = torch.tensor([sigma if process == "ve" else index], dtype=F64)
    score = model(x, label, cond)
    found = denoiser(x, t, denoiser.condition([1, 4], 2)).x0
    torch.testing.assert_close(found, x + sigma**2 * score, rtol=1e-4, atol=1e-4)


def test_fourier_features_are_sin_then_cos_of_log_sigma() -> None:
    embedding = FourierEmbedding(8, 3).double()
    features: list[Tensor] = []
    embedding.mlp.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    sigma = torch.tensor([0.05, 20.0], dtype=F64)
    embedding(sigma, F64)
    for row, level in zip(features[0], (0.05, 20.0), strict=True):
        angles = [2 * math.pi * w * math.log(level) for w in embedding.frequencies.tolist()]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=1e-9)
    torch.manual_seed(0)
    assert 15 < FourierEmbedding(8, 10_000).frequencies.std() < 17


def test_fourier_frequencies_are_frozen_and_never_rounded(tmp_path: Path) -> None:
    model = NCSNpp.preset("tiny", **VARIANTS["fourier"])
    exact = model.time_embedding.frequencies.detach().clone()
    assert not model.time_embedding.frequencies.requires_grad
    model.save_pretrained(tmp_path)
    copies = [
        NCSNpp.from_pretrained(tmp_path, torch_dtype=torch.bfloat16),
        NCSNpp.from_pretrained(tmp_path).to(torch.bfloat16),
        NCSNpp.from_pretrained(tmp_path).bfloat16(),
        NCSNpp.from_pretrained(tmp_path).half(),
    ]
    for copy in copies:
        assert copy.dtype == copy.stem.weight.dtype != torch.float32
        assert copy.time_embedding.mlp[0].weight.dtype == copy.dtype
        assert torch.equal(copy.time_embedding.frequencies, exact)
        x = torch.rand(1, 1, 8, 8, dtype=copy.dtype)
        assert copy(x, torch.tensor([0.3]), copy.embed(torch.tensor([1]))).dtype == copy.dtype
    assert model.double().time_embedding.frequencies.dtype == F64


@pytest.mark.parametrize("cls", [NCSNpp, DDPM])
@torch.no_grad()
def test_labels_are_added_to_the_time(cls: type[Backbone]) -> None:
    model = randomized(cls.preset("tiny"), std=0.1)
    x, label, cond = given(model)
    out = model(x, label, cond)
    time = model.time_embedding(label, F64)
    model.time_embedding.forward = lambda *_: torch.zeros_like(time)
    torch.testing.assert_close(model(x, label, cond + time), out, rtol=1e-12, atol=1e-12)
    none = cls.preset("tiny", num_classes=0)
    assert none.label_embedding is None
    assert torch.equal(none.embed(null_labels(none, 3)), torch.zeros(3, 64))


@pytest.mark.parametrize("label", [0.0, -1.2, 999.0])
@torch.no_grad()
def test_tiny_presets_take_any_noise_label(label: float) -> None:
    for model in (made(), randomized(DDPM.preset("tiny"), std=0.1)):
        x, _, cond = given(model)
        assert model(x, torch.tensor([label], dtype=F64), cond).isfinite().all()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (NCSNpp, {"channels": 2}, "even and at least 4 .*, got 2"),
        (NCSNpp, {"channels": 18}, "groups must divide the channels of every norm, got .* = 4 and .* = 18"),
        (NCSNpp, {"channel_mult": ()}, "one or more positive multiples"),
        (NCSNpp, {"channel_mult": (1, 0)}, "one or more positive multiples"),
        (NCSNpp, {"attention_levels": (2,)}, r"levels 0 .. 1 of channel_mult .*, got \[2\]"),
        (NCSNpp, {"blocks_per_level": 0}, "blocks_per_level must be at least 1, got 0"),
        (
            NCSNpp,
            {"input_pyramid": "input_skip"},
            "input_pyramid must be one of none, skip, residual, got 'input_skip'",
        ),
        (NCSNpp, {"output_pyramid": "residual"}, "output_pyramid must be one of none, skip, got"),
        (NCSNpp, {"embedding": "sinusoid"}, "embedding must be one of positional, fourier"),
        (NCSNpp, {"sigma_min": 0.0}, "0 < sigma_min < sigma_max, got 0.0 and 50.0"),
        (NCSNpp, {"sigma_max": 0.001}, "0 < sigma_min < sigma_max"),
        (NCSNpp, {"num_scales": 1}, "num_scales must be at least 2, got 1"),
        (DDPM, {"num_groups": 5}, "groups must divide the channels of every norm, got .* = 5 and .* = 16"),
        (DDPM, {"num_groups": 0}, "num_groups must be at least 1, got 0"),
        (DDPM, {"channel_mult": ()}, "one or more positive multiples"),
        (DDPM, {"attention_levels": (-1,)}, r"got \[-1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(cls: type[Backbone], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.preset("tiny", **options)
