"""ADM, its upsampler and its classifier: published sizes, golden outputs, identities, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference, null_labels, references, relative_error
from torch import Tensor, nn

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.layouts import LAYOUTS
from dinit.checkpoints.layouts.adm import ADMClassifierLayout, ADMLayout, ADMSuperResLayout
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.adm import ADM
from dinit.models.adm_classifier import ADMClassifier
from dinit.models.adm_superres import ADMSuperRes
from dinit.models.layers.adm_blocks import SpatialAttention
from dinit.samplers.guidance import CFG, apply_guidance

COUNTS = [
    (ADM, "64", 295_904_454),
    (ADM, "128", 421_529_606),
    (ADM, "256", 553_838_086),
    (ADM, "256-uncond", 552_814_086),
    (ADM, "512", 558_997_638),
    (ADMSuperRes, "64-256", 311_795_910),
    (ADMSuperRes, "128-512", 308_835_270),
    (ADMClassifier, "64", 65_438_568),
    (ADMClassifier, "128", 42_568_040),
    (ADMClassifier, "256", 54_096_360),
    (ADMClassifier, "512", 54_448_360),
]
LAYOUT_OF = {"SuperResModel": ADMSuperResLayout(), "EncoderUNetModel": ADMClassifierLayout()}
SMALL: dict[str, Any] = {
    "image_size": 8,
    "channels": 32,
    "channel_mult": (1, 1),
    "blocks_per_level": 1,
    "attention_factors": (2,),
    "num_classes": 10,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    files = references(metafunc.config.getoption("--parity"))
    for fixture, name in (("superres_file", "SuperResModel"), ("classifier_file", "EncoderUNetModel")):
        if fixture in metafunc.fixturenames:
            chosen = [file for file in files if file.name == name]
            metafunc.parametrize(fixture, chosen, ids=lambda file: file.path.stem)


def build(file: Reference, **overrides: Any) -> Any:
    """Our upsampler or classifier with the file's arguments and weights."""
    layout = LAYOUT_OF[file.name]
    model = layout.model(**{**layout.arguments(file.arguments), **overrides}).eval()
    load_mapped(model, layout.prepare(file.state), layout.rules)
    return model


def randomized(module: nn.Module, std: float = 0.1) -> Any:
    """The module in float64 and evaluation mode with noise on every parameter: zeros would hide faults."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().eval().parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return module


def log_probability_gradient(model: ADMClassifier, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """d/dx of the summed log-probabilities of the labels."""
    x = x.clone().requires_grad_()
    chosen = model(x, t).log_softmax(-1).gather(1, labels[:, None])
    return torch.autograd.grad(chosen.sum(), x)[0]


# Sizes


@pytest.mark.parametrize(("cls", "name", "count"), COUNTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_presets_have_the_published_size(cls: Any, name: str, count: int) -> None:
    with torch.device("meta"):
        model = cls.preset(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.image_size == model.config.image_size == int(name.split("-")[-1].replace("uncond", "256"))
    heads = {m.qkv.in_features // m.num_heads for m in model.modules() if isinstance(m, SpatialAttention)}
    assert (heads == {64}) == (name not in ("128", "64-256") or cls is ADMClassifier)


def test_every_published_preset_is_counted() -> None:
    for cls in (ADM, ADMSuperRes, ADMClassifier):
        assert set(cls.presets) - {"tiny"} == {name for one, name, _ in COUNTS if one is cls}


# Golden outputs; those of the network itself are in test_backbones_golden.py


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_superres_forward(superres_file: Reference, dtype: torch.dtype) -> None:
    model, given = build(superres_file).to(dtype), superres_file.tensors
    labels = given["in.y"] if "in.y" in given else null_labels(model, len(given["in.x"]))
    x, low_res = given["in.x"].to(dtype), given["in.low_res"].to(dtype)
    golden = given["out.sample"].to(dtype)
    cond = model.embed(labels)
    out = model(x, given["in.t"], cond, low_res)
    assert relative_error(out, golden) <= superres_file.tolerance
    filled = model.given(low_res)
    assert torch.equal(filled(x, given["in.t"], cond), out)
    twice = filled(torch.cat([x, x]), given["in.t"].repeat(2), cond.repeat(2, 1))
    assert relative_error(twice, golden.repeat(2, 1, 1, 1)) <= superres_file.tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classifier_logits_and_gradient(classifier_file: Reference, dtype: torch.dtype) -> None:
    model, given = build(classifier_file).to(dtype), classifier_file.tensors
    x, t, tolerance = given["in.x"].to(dtype), given["in.t"], classifier_file.tolerance
    assert relative_error(model(x, t), given["out.logits"].to(dtype)) <= tolerance
    gradient = gradient_scale(classifier_file) * log_probability_gradient(model, x, t, given["in.y"])
    assert relative_error(gradient, given["out.grad_x"].to(dtype)) <= tolerance


def gradient_scale(file: Reference) -> float:
    """The factor on the recorded gradient, of which the file's `output` tells: '... grad_x = 10 * d/dx ...'."""
    found = re.search(r"grad_x\W+([\d.]+) ?\*", file.metadata.get("output", ""))
    return float(file.metadata.get("classifier_scale", found[1] if found else 1.0))


def test_superres_arguments_are_told_from_the_tensors(superres_file: Reference) -> None:
    check_told(superres_file)


def test_classifier_arguments_are_told_from_the_tensors(classifier_file: Reference) -> None:
    check_told(classifier_file)


def check_told(file: Reference) -> None:
    layout, model = LAYOUT_OF[file.name], build(file)
    assert layout.recognises(file.shapes)
    told = {name: value for name, value in layout.options(file.shapes).items() if value is not None}
    assert len(told) >= 9
    for name, value in told.items():
        assert (list(value) if isinstance(value, tuple) else value) == model.config[name], name
    assert [name for name in LAYOUTS if LAYOUTS[name]().recognises(file.shapes)] == [layout.registry_name]


# Options


@torch.no_grad()
def test_heads_by_number_on_the_way_up_or_by_width() -> None:
    model = ADM(**{**SMALL, "channel_mult": (1, 2)}, num_heads=2, decoder_heads=4)
    assert [m.num_heads for m in model.modules() if isinstance(m, SpatialAttention)] == [2, 2, 4, 4]
    model = ADM(**{**SMALL, "channel_mult": (1, 2), "attention_factors": (1, 2)}, num_heads=2, head_dim=8)
    assert [m.num_heads for m in model.modules() if isinstance(m, SpatialAttention)] == [4, 8, 8, 8, 8, 4, 4]


@torch.no_grad()
def test_half_of_the_width_at_the_first_level() -> None:
    model = ADM(**{**SMALL, "channels": 64, "channel_mult": (0.5, 1)})
    assert model.encoder[0].conv.out_channels == model.head.conv.in_channels == 32
    assert model.time_embedding.features == 64
    assert model.embed(torch.tensor([3])).shape == (1, 256)


def test_published_weights_have_no_null_label() -> None:
    model = ADM(**SMALL, null_class=False)
    assert model.label_embedding.weight.shape == (10, 128)
    denoiser = BackboneDenoiser(model, PROCESSES.create("vp-discrete"), PARAMETERIZATIONS.create("epsilon"))
    with pytest.raises(ValueError, match="without a null class"):
        denoiser.condition(None, 2)
    assert denoiser.condition([1, 9], 2).embedding.shape == (2, 128)


def test_unconditional_network_has_no_table() -> None:
    model = ADM(**{**SMALL, "num_classes": 0})
    assert model.label_embedding is None
    assert torch.equal(model.embed(null_labels(model, 2)), torch.zeros(2, 128))
    assert model.bfloat16().embed(null_labels(model, 1)).dtype == torch.bfloat16


@pytest.mark.parametrize("cls", [ADM, ADMSuperRes, ADMClassifier])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 48}, "must divide every level's width"),
        ({"channel_mult": ()}, "an entry a level"),
        ({"channel_mult": (1, 0)}, "positive widths"),
        ({"attention_factors": (2, 4)}, r"factors \[1, 2\], got \[4\]"),
        ({"attention_order": "legacy"}, "must be one of head-first, qkv-first; got 'legacy'"),
        ({"resampling": "fir"}, "must be one of block, conv, plain; got 'fir'"),
        ({"head_dim": 5}, "head_dim must divide"),
        ({"image_size": 9}, "image_size must be a multiple of 2"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"blocks_per_level": 0}, "blocks_per_level must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_classes": -1}, "num_classes must be at least"),
    ],
)
def test_wrong_arguments_are_refused(cls: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**{**SMALL, "head_dim": 8, **wrong})


def test_further_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="number of heads must divide"):
        ADM(**SMALL, num_heads=3)
    with pytest.raises(ValueError, match="null_class must be True"):
        ADM(**{**SMALL, "num_classes": 0}, null_class=False)
    with pytest.raises(ValueError, match="did you mean '256'"):
        ADMClassifier.preset("265")
    for layout, wrong in (
        (ADMLayout(), {"dims": 3}),
        (ADMLayout(), {"out_channels": 4}),
        (ADMLayout(), {"pool": "attention"}),
        (ADMClassifierLayout(), {"pool": "spatial"}),
    ):
        with pytest.raises(ValueError, match="is not covered"):
            layout.arguments({"in_channels": 3, "out_channels": 3, "pool": "attention", **wrong})


# The upsampler as a backbone


def upsampler(**options: Any) -> ADMSuperRes:
    return randomized(ADMSuperRes(**SMALL, **options))


@torch.no_grad()
def test_upsampler_sees_the_bilinear_image_after_x() -> None:
    model = upsampler()
    x, low_res, cond = (
        torch.randn(2, 3, 8, 8).double(),
        torch.randn(2, 3, 4, 4).double(),
        torch.randn(2, 128).double(),
    )
    seen: list[Tensor] = []
    model.encoder[0].conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x, torch.tensor([3.0]), cond, low_res)
    assert torch.equal(seen[0][:, :3], x)
    # Half-pixel centres: 0.75 of the nearest and 0.25 of the next row and column, and the edge repeated.
    weights = torch.tensor([[1.0, 0, 0, 0], [0.75, 0.25, 0, 0], [0.25, 0.75, 0, 0], [0, 0.75, 0.25, 0]]).double()
    expected = torch.einsum("ij,bcjk,lk->bcil", weights, low_res, weights)
    torch.testing.assert_close(seen[0][:, 3:, :4, :4], expected)


@torch.no_grad()
def test_guided_sampling_serves_each_sample_its_small_image() -> None:
    """Classifier-free guidance doubles the batch; the result is that of one sample at a time."""
    model = upsampler(null_class=True)
    low_res, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 8, 8).double()

    def sample(rows: slice) -> Tensor:
        backbone = model.given(low_res[rows])
        denoiser = BackboneDenoiser(backbone, PROCESSES.create("vp-discrete"), PARAMETERIZATIONS.create("epsilon"))
        denoise = apply_guidance(denoiser, [CFG(2.0)])
        cond = denoiser.condition(torch.tensor([3, 5])[rows], len(noise[rows]))
        return denoise(noise[rows], 0.5, cond).x0

    whole = sample(slice(0, 2))
    torch.testing.assert_close(whole, torch.cat([sample(slice(0, 1)), sample(slice(1, 2))]), rtol=1e-9, atol=1e-9)
    assert (model.given(low_res).in_channels, model.given(low_res).out_channels) == (3, 3)
    assert (model.given(low_res).num_classes, model.given(low_res).image_size) == (10, 8)


@torch.no_grad()
def test_upsampler_refuses_what_does_not_fit() -> None:
    model = upsampler()
    x, t, cond = torch.zeros(3, 3, 8, 8).double(), torch.tensor([3.0]), torch.zeros(3, 128).double()
    for low_res, message in (
        (torch.zeros(2, 3, 4, 4), "one small image for each"),
        (torch.zeros(3, 1, 4, 4), "one small image for each"),
        (torch.zeros(3, 3, 4), "one small image for each"),
        (torch.zeros(3, 3, 16, 4), "give the smaller image"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, t, cond, low_res)
    with pytest.raises(ValueError, match="multiple of 2, got 3"):
        model.given(torch.zeros(2, 3, 4, 4))(x, t, cond)
    for low_res in (torch.zeros(2, 1, 4, 4), torch.zeros(3, 4, 4), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"must be \(b, 3, h, w\)"):
            model.given(low_res)


@torch.no_grad()
def test_upsampler_saves_and_loads(tmp_path: Path) -> None:
    model = upsampler().float()
    model.save_pretrained(tmp_path)
    loaded = ADMSuperRes.from_pretrained(tmp_path)
    x, low_res = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    args = (x, torch.tensor([3.0]), model.embed(torch.tensor([1, 2])), low_res)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    # Not bit for bit: tensors in a mapped file lie at other alignments, which a matrix product may round by.
    torch.testing.assert_close(loaded(*args), model(*args), rtol=1e-4, atol=1e-5)


# The classifier


def classifier(**options: Any) -> ADMClassifier:
    return randomized(ADMClassifier(**SMALL, head_dim=8, **options))


@torch.no_grad()
def test_classifier_depends_on_x_and_noise_label_and_mixes_no_samples() -> None:
    model = classifier()
    x, t = torch.randn(3, 3, 8, 8).double(), torch.tensor([1.0, 400.0, 900.0])
    logits = model(x, t)
    for i in range(3):
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1]), logits[i : i + 1], rtol=1e-9, atol=1e-9)
    assert (model(x + 0.1, t) - logits).abs().min() > 1e-6
    assert (model(x, t + 5) - logits).abs().max() > 1e-4
    torch.testing.assert_close(model(x, t[:1]), model(x, t[:1].expand(3)), rtol=1e-9, atol=1e-9)
    assert model(torch.randn(2, 3, 12, 6).double(), t[:1]).shape == (2, 10)
    with pytest.raises(ValueError, match="multiples of 2, got 8 x 9"):
        model(torch.zeros(1, 3, 8, 9).double(), t[:1])


def test_classifier_gradient_is_that_of_finite_differences() -> None:
    model = classifier()
    x, t, labels = torch.randn(2, 3, 8, 8).double(), torch.tensor([300.0]), torch.tensor([4, 7])
    step = 1e-5 * torch.randn(x.shape).double()
    ends = [model(x + sign * step, t).log_softmax(-1).gather(1, labels[:, None]).sum() for sign in (1, -1)]
    slope = (log_probability_gradient(model, x, t, labels) * step).sum()
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2, rtol=1e-4, atol=1e-12)


def test_classifier_saves_loads_and_checkpoints(tmp_path: Path) -> None:
    model = classifier().float()
    model.save_pretrained(tmp_path)
    loaded: Any = ADMClassifier.from_pretrained(tmp_path)
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([300.0]), torch.tensor([4, 7])
    gradient = log_probability_gradient(model, x, t, labels)
    loaded.enable_gradient_checkpointing()
    calls: list[int] = []
    loaded.middle[0].register_forward_pre_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(
        log_probability_gradient(loaded.train(), x, t, labels), gradient, rtol=1e-5, atol=1e-7
    )
    assert len(calls) == 2
