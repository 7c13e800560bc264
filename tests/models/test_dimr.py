"""DiMR: every stage against the reference, published sizes, its norms and blocks against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from reference import GOLDEN, Reference, references, relative_error
from torch import Tensor, nn

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.layouts import LAYOUTS
from dinit.checkpoints.layouts.base import recognise
from dinit.models.base import BACKBONES
from dinit.models.dimr import DiMR
from dinit.models.layers.dimr_stage import AttentionBlock, ConvNeXtBlock, Lift
from dinit.models.layers.embedding import resized_table
from dinit.models.layers.time_norm import TimeLayerNorm, TimeParameter, TimeRMSNorm

COUNTS = {"XL/2R": 505_046_408, "G/2R": 1_056_352_904}
TRANSFORMER = {"width": 16, "mlp_width": 24, "depth": 3, "patch_size": 2}
CONV = {"width": 8, "mlp_width": 12, "depth": 1, "kernel_size": 3}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        files = references(metafunc.config.getoption("--parity"))
        files = [file for file in files if file.name == "MRModel"]
        metafunc.parametrize("golden", files, ids=lambda file: file.path.stem)


def randomized(module: nn.Module, std: float = 0.5) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=std)
    return module


def outputs(file: Reference, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Every stage's output, ours and the reference's; steps are counted from 1 there."""
    model, given = file.build().to(dtype), file.tensors
    step, cond = given["in.t"] - 1, model.embed(given["in.y"])
    ours = model.all_outputs(given["in.x"].to(dtype), step, cond)
    assert torch.equal(model(given["in.x"].to(dtype), step, cond), ours[-1])
    return ours, [given[f"out.stage{i}"].to(dtype) for i in range(len(model.branches))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_every_stage(golden: Reference, dtype: torch.dtype) -> None:
    ours, theirs = outputs(golden, dtype)
    assert f"out.stage{len(theirs)}" not in golden.tensors
    for out, expected in zip(ours, theirs, strict=True):
        assert out.dtype == dtype
        assert relative_error(out, expected) <= golden.tolerance


@torch.no_grad()
def test_time_is_a_quarter_of_what_the_reference_calls_log_snr(golden: Reference) -> None:
    tau = golden.build().time(golden.tensors["in.t"] - 1, golden.tensors["in.x"])
    torch.testing.assert_close(tau, golden.tensors["in.log_snr"] / 4, rtol=0, atol=1e-7)


def test_arguments_are_told_from_the_tensors(golden: Reference) -> None:
    layout, model = LAYOUTS["dimr"](), golden.build()
    assert type(recognise(golden.shapes)) is type(layout)
    told = layout.options(golden.shapes)
    assert told.pop("num_heads") in (None, model.config["num_heads"])  # known for the widths of a published size
    for name, value in told.items():
        built = model.config[name]
        assert (list(value) == list(built)) if name == "stages" else (value == built), name
    rebuilt = BACKBONES["dimr"](**{**model.config, **told})
    load_mapped(rebuilt, golden.state, layout.rules)


def test_weights_of_another_family_are_refused(golden: Reference) -> None:
    for name in LAYOUTS:
        if name != "dimr" and LAYOUTS[name]().denoises:
            with pytest.raises(ValueError, match=r"no place in this model|does not fit this"):
                load_mapped(LAYOUTS[name]().model.preset("tiny"), golden.state, LAYOUTS[name].rules)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = DiMR.preset(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert set(DiMR.presets) - {"tiny"} == set(COUNTS)


def test_heads_of_a_published_size_are_known() -> None:
    """They leave no trace in the tensors; the options of a state with a preset's shapes have them anyway."""
    with torch.device("meta"):
        state = DiMR.preset("XL/2R").state_dict()
    rules = Reference(GOLDEN / "dimr_3r.safetensors")
    shapes = {}
    for key, shape in rules.shapes.items():
        if key.startswith(("stages.0.", "stages.1.")) and ".blocks." not in key and ".skip_denses." not in key:
            shapes[key] = shape
    shapes["stages.0.input_layer.1.weight"] = tuple(state["branches.0.stem.weight"].shape)
    shapes["stages.1.input_layer.1.weight"] = tuple(state["branches.1.stem.weight"].shape)
    shapes["stages.0.input_layer.3.position_embeddings.weight"] = (256, 960)
    shapes["stages.1.input_layer.3.position_embeddings.weight"] = (1024, 480)
    shapes["stages.0.blocks.38.block2.w0.weight"] = shapes["stages.0.blocks.0.block2.w0.weight"] = (1920, 960)
    shapes["stages.1.blocks.20.block2.w0.weight"] = shapes["stages.1.blocks.0.block2.w0.weight"] = (960, 480)
    shapes["stages.1.blocks.0.block1.1.weight"] = (480, 1, 7, 7)
    told = LAYOUTS["dimr"]().options(shapes)
    assert told["num_heads"] == 16
    assert told["stages"] == DiMR.presets["XL/2R"]["stages"]


def test_reference_arguments() -> None:
    """An even number of blocks becomes the next odd one; the null label is not counted; what we lack is refused."""
    reference = Reference(GOLDEN / "dimr_3r.safetensors").arguments
    layout = LAYOUTS["dimr"]()
    ours = layout.arguments(reference)
    assert ours["image_size"] == 16
    assert ours["num_classes"] == reference["num_classes"] - 1 == 7
    assert [stage["depth"] for stage in ours["stages"]] == [3, 3, 3]
    with pytest.raises(ValueError, match="norm_type = 'LN' is not covered"):
        layout.arguments({**reference, "norm_type": "LN"})
    for change in ({"block_type": "Mamba"}, {"max_width": 5}, {"dropout_prob": 0.5}):
        first, *rest = reference["stage_configs"]
        with pytest.raises(ValueError, match="is not covered"):
            layout.arguments({**reference, "stage_configs": [{**first, **change}, *rest]})


def naive(parameter: TimeParameter, tau: Tensor) -> Tensor:
    """p1 + sigmoid(tau (w + 1) + b) (p0 - p1), one time and one entry at a time."""
    p0, p1, w, b = (t.tolist() for t in (parameter.p0, parameter.p1, parameter.slope, parameter.offset))
    rows = [
        [p1[i] + (p0[i] - p1[i]) / (1 + math.exp(-(s * (w[i] + 1) + b[i]))) for i in range(len(p0))]
        for s in tau.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def test_norms_are_their_formulas() -> None:
    """Inputs so small that the epsilons, one outside the root and one inside, decide."""
    tau = torch.tensor([-0.7, 0.1, 1.0], dtype=torch.float64)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    rms, layer = randomized(TimeRMSNorm(6)), randomized(TimeLayerNorm(6))
    for small in (1.0, 1e-3, 1e-8):
        h = small * x
        scale = naive(rms.scale, tau)[:, None, None]
        expected = h / (h.square().mean(-1, keepdim=True).sqrt() + 1e-8) * scale
        torch.testing.assert_close(rms(h, tau), expected, rtol=1e-10, atol=1e-12)
        centered = h - h.mean(-1, keepdim=True)
        unit = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = unit * naive(layer.scale, tau)[:, None, None] + naive(layer.shift, tau)[:, None, None]
        torch.testing.assert_close(layer(h, tau), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(rms(h, tau[:1])[1], rms(h, tau[:1].expand(3))[1], rtol=1e-12, atol=1e-12)


def test_norm_of_zeros_has_a_finite_gradient() -> None:
    x = torch.zeros(2, 3, 4, requires_grad=True)
    TimeRMSNorm(4)(x, torch.zeros(1)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def gated(mlp: nn.Module, h: Tensor) -> Tensor:
    gate = mlp.gate(h)
    return mlp.out(gate / 2 * (1 + (gate / math.sqrt(2)).erf()) * mlp.value(h))


@torch.no_grad()
def test_attention_block_is_its_formula() -> None:
    block = randomized(AttentionBlock(8, 12, 2, 0.0))
    x, tau = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([-0.4, 0.9], dtype=torch.float64)
    h = block.qkv(block.norm_attention(x, tau))
    heads = []
    for head in range(2):
        q, k, v = (h[..., 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        heads.append((q @ k.transpose(1, 2) / 2).softmax(-1) @ v)
    expected = x + block.proj(torch.cat(heads, -1))
    expected = expected + gated(block.mlp, block.norm_mlp(expected, tau))
    torch.testing.assert_close(block(x, tau), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_convnext_block_is_its_formula() -> None:
    block = randomized(ConvNeXtBlock(4, 6, 3, 0.0))
    x, tau = torch.randn(2, 5, 6, 4, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    padded = nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    kernel = block.conv.weight[:, 0]
    h = sum(kernel[:, i, j] * padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3))
    expected = x + h + block.conv.bias
    expected = expected + gated(block.mlp, block.norm_mlp(expected, tau))
    torch.testing.assert_close(block(x, tau), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_lift_spreads_a_vector_over_its_pixels() -> None:
    lift = randomized(Lift(5, 3, 2))
    x, tau = torch.randn(1, 2, 3, 5, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    out = lift(x, tau)
    assert out.shape == (1, 4, 6, 3)
    h = lift.linear(lift.norm_in(x, tau))  # (row, column, channel) within its features
    for r in range(4):
        for q in range(6):
            start = 6 * (r % 2) + 3 * (q % 2)
            pixel = h[:, r // 2, q // 2, start : start + 3]
            torch.testing.assert_close(out[:, r, q], lift.norm_out(pixel[:, None], tau)[:, 0])


@torch.no_grad()
def test_coarse_stages_see_the_mean_of_the_pixels() -> None:
    """image_ratio 2: swapping pixels within a 2 x 2 square leaves the coarse output and changes the fine one."""
    coarse = {**TRANSFORMER, "patch_size": 1, "image_ratio": 2}
    model = randomized(DiMR.preset("tiny", stages=[coarse, CONV], coarse_heads=True))
    x, step, cond = torch.randn(1, 1, 8, 8).double(), torch.tensor([500.0]), model.embed(torch.tensor([3]))
    swapped = x.clone()
    swapped[..., 0, 0], swapped[..., 1, 1] = x[..., 1, 1], x[..., 0, 0]
    before, after = (model.all_outputs(image, step, cond) for image in (x, swapped))
    assert [tuple(out.shape) for out in before] == [(1, 1, 4, 4), (1, 1, 8, 8)]
    torch.testing.assert_close(after[0], before[0], rtol=1e-10, atol=1e-10)
    assert (after[1] - before[1]).abs().max() > 1e-3


@torch.no_grad()
def test_coarse_heads_may_be_left_out() -> None:
    model = randomized(DiMR.preset("tiny", coarse_heads=True))
    bare = DiMR.preset("tiny", coarse_heads=False).double()
    bare.load_state_dict({key: t for key, t in model.state_dict().items() if not key.startswith("heads.0.")})
    x, step, cond = torch.randn(1, 1, 8, 8).double(), torch.tensor([500.0]), model.embed(torch.tensor([3]))
    assert torch.equal(bare(x, step, cond), model(x, step, cond))
    with pytest.raises(ValueError, match="build it with coarse_heads=True"):
        bare.all_outputs(x, step, cond)


@torch.no_grad()
def test_two_stages_that_attend_have_their_own_heads_and_label_tokens() -> None:
    stages = [{**TRANSFORMER, "patch_size": 4}, {**TRANSFORMER, "width": 24}, CONV]
    model = randomized(DiMR.preset("tiny", stages=stages, num_heads=(2, 3)), std=0.2)
    assert [branch.blocks[0].num_heads for branch in model.branches if branch is not model.branches[2]] == [2, 3]
    assert model.size_multiple == 4
    x, step = torch.randn(1, 1, 8, 8).double(), torch.tensor([500.0])
    cond = model.embed(torch.tensor([3]))
    assert cond.shape == (1, 16 + 24)
    out = model(x, step, cond)
    for part in (slice(0, 16), slice(16, 40)):
        changed = cond.clone()
        changed[:, part] += 1
        assert (model(x, step, changed) - out).abs().max() > 1e-4


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes() -> None:
    """A constant table stays constant, and a map of the configured size is the table itself."""
    model = DiMR.preset("tiny")
    branch = model.branches[0]
    assert torch.equal(resized_table(branch.positions, 4, 4), branch.positions)
    branch.positions.fill_(0.7)
    torch.testing.assert_close(resized_table(branch.positions, 6, 2), torch.full((6, 2, 32), 0.7))
    assert resized_table(branch.bfloat16().positions, 6, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "coarse to fine"),
        ({"stages": [CONV]}, "leave out kernel_size of one stage"),
        ({"stages": [TRANSFORMER]}, r"the last one's 1, got \[2\]"),
        ({"stages": [{**TRANSFORMER, "patch_size": 3}, {**CONV, "patch_size": 2}]}, r"got \[3, 2\]"),
        ({"stages": [{**TRANSFORMER, "depth": 4}, CONV]}, r"depth of stages\[0\] must be odd, got 4"),
        ({"stages": [TRANSFORMER, {**CONV, "kernel_size": 4}]}, r"kernel_size of stages\[1\] must be odd, got 4"),
        ({"stages": [{**TRANSFORMER, "head_kernel": 2}, CONV]}, r"head_kernel of stages\[0\] must be odd"),
        ({"stages": [{**TRANSFORMER, "width": 0}, CONV]}, r"width of stages\[0\] must be at least 1, got 0"),
        ({"stages": [{**TRANSFORMER, "with": 3}, CONV]}, r"lacks \[\] and has the unknown \['with'\]"),
        ({"stages": [{"width": 16, "depth": 1}, CONV]}, r"lacks \['mlp_width'\]"),
        ({"num_heads": 5}, "num_heads must divide width, got num_heads = 5 and width = 32"),
        ({"num_heads": (4, 4)}, r"1 stages attend, got num_heads = \(4, 4\)"),
        ({"image_size": 9}, "image_size must be a multiple of 2, got 9"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiMR.preset("tiny", **options)
