"""Backbones against the outputs of the published reference implementations; families with extras have own files."""

from __future__ import annotations

import math

import pytest
import torch
from reference import Reference, all_references, null_labels, references, relative_error
from torch import Tensor

from dinit.checkpoints.keymap import load_mapped, map_keys
from dinit.checkpoints.layouts import LAYOUTS
from dinit.models.base import Backbone
from dinit.models.dic import DiCBlock
from dinit.models.layers.embedding import SinCosPositions
from dinit.models.lightningdit import rotary_angles

# Classes that are no backbone, or have other inputs or outputs, and the test file that covers them.
ELSEWHERE = {
    "UNetBlock": "test_backbones_golden.py",
    "ResnetBlockBigGANpp": "test_ncsnpp.py",
    "SuperResModel": "test_adm.py",
    "EncoderUNetModel": "test_adm.py",
    "MRModel": "test_dimr.py",
    "UNet2DModel": "test_unet2d_golden.py",
    "AutoencoderKL": "test_codec.py",
}


LABEL_TABLE = "y_embedder.embedding_table.weight"


def plain(file: Reference) -> bool:
    return file.name not in ELSEWHERE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--parity")
    chosen = {
        "golden": lambda: [file for file in references(folder) if plain(file)],
        "dic_block": lambda: [file for file in references(folder) if file.name == "UNetBlock"],
        "any_file": lambda: all_references(folder),
    }
    for fixture, files in chosen.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, files(), ids=lambda file: file.path.stem)


def predict(model: Backbone, x: Tensor, t: Tensor, labels: Tensor | None, channels: int) -> Tensor:
    """Our output, without the half that LightningDiT computes and throws away under learn_sigma."""
    labels = null_labels(model, len(x)) if labels is None else labels
    return model(x, t, model.embed(labels))[:, :channels]


def forward(model: Backbone, file: Reference) -> Tensor:
    given = file.tensors
    return predict(model, given["in.x"], given["in.t"], given.get("in.y"), given["out.sample"].shape[1])


def test_every_file_is_covered(any_file: Reference) -> None:
    """A file of another network is listed by what it is; a file that does not say so is an error."""
    if any_file.uncovered:
        pytest.skip(f"not covered: {any_file.description}: {any_file.uncovered}")
    assert any_file.layout is not None or any_file.name in ELSEWHERE, f"no test reads {any_file.description}"
    assert {"suggested_rel_tol"} <= any_file.keys, f"{any_file.path.name}: its metadata have no 'suggested_rel_tol'"
    assert any(key.startswith("out.") for key in any_file.tensors), f"{any_file.path.name}: it has no output"
    for key, tensor in any_file.tensors.items():
        assert bool(tensor.isfinite().all()) or key.startswith("state."), (
            f"{any_file.path.name}: {key!r} is not finite"
        )


@torch.no_grad()
def test_forward(golden: Reference) -> None:
    assert relative_error(forward(golden.build(), golden), golden.tensors["out.sample"]) <= golden.tolerance


@torch.no_grad()
def test_guided_with_the_null_label(golden: Reference) -> None:
    if "out.cfg" not in golden.tensors:
        pytest.skip("the reference has no guided call")
    model, given = golden.build(), golden.tensors
    n, t = len(given["in.cfg_x"]) // 2, given["in.cfg_t"]
    x = given["in.cfg_x"][:n].repeat(2, 1, 1, 1)
    assert torch.equal(given["in.cfg_y"][n:], null_labels(model, n)), "the second half has the null label"
    out = predict(model, x, t, given["in.cfg_y"], given["out.cfg"].shape[1])
    scale = guidance_scale(golden, t[:n]).reshape(-1, 1, 1, 1)
    # The published guidance acts on the first three channels only.
    conditional, null = out[:n, :3], out[n:, :3]
    guided = null + scale * (conditional - null)
    combined = torch.cat([guided.repeat(2, 1, 1, 1), out[:, 3:]], dim=1)
    assert relative_error(combined, given["out.cfg"]) <= golden.tolerance


def guidance_scale(file: Reference, t: Tensor) -> Tensor:
    """(n,): the scale; DiffiT raises it by a power of a cosine, LightningDiT's may start late."""
    scale = torch.full_like(t, float(file.metadata["cfg_scale"]))
    if file.name == "DiffiT":
        power = float(file.metadata.get("scale_pow", 4))
        return 1 + (scale - 1) * (1 - torch.cos(math.pi * (1 - t / 1000) ** power)) / 2
    start = float(file.metadata.get("cfg_interval_start", -math.inf))
    return torch.where(t < start, torch.ones_like(scale), scale)


@torch.no_grad()
def test_in_float64(golden: Reference) -> None:
    model, given = golden.build().double(), golden.tensors
    channels = given["out.sample"].shape[1]
    out = predict(model, given["in.x"].double(), given["in.t"].double(), given.get("in.y"), channels)
    assert out.dtype == torch.float64
    assert relative_error(out, given["out.sample"].double()) <= golden.tolerance


@torch.no_grad()
def test_configured_for_another_size(golden: Reference) -> None:
    """A model configured for 4 times the size gives the same numbers at the size of the file."""
    try:
        model = golden.build(image_size=4 * golden.tensors["in.x"].shape[-1])
    except ValueError as error:
        assert "has shape" in str(error)
        pytest.skip("this family learns a table of its size")
    assert relative_error(forward(model, golden), golden.tensors["out.sample"]) <= golden.tolerance


def test_arguments_are_told_from_the_tensors(golden: Reference) -> None:
    """The published arguments are read back, but for those (None, or left out) that left no trace in tensors."""
    layout = golden.layout
    assert layout is not None
    model = golden.build()
    told = {name: value for name, value in layout.options(golden.shapes).items() if value is not None}
    assert len(told) >= 5
    rows_without_null = not model.config.get("null_class", True) and LABEL_TABLE in golden.state
    for name, value in told.items():
        built = model.config[name]
        if built is None:  # a default, which the tensors show in numbers
            continue
        if isinstance(value, (list, tuple)):
            value, built = list(value), list(built)
        if name == "num_classes" and rows_without_null:
            built -= 1  # the tensors alone do not show that their last row is a class
        if (name, golden.name) == ("depth", "DisModel"):
            value, built = value // 2, built // 2  # 2 n and 2 n + 1 are 2 n + 1 blocks
        # Ratios come back from rounded widths.
        assert value == (pytest.approx(built, rel=0.05) if isinstance(value, float) else built), name
    if rows_without_null:
        told["num_classes"] = model.config["num_classes"]
    rebuilt = layout.model(**{**model.config, **told})
    assert {name: t.shape for name, t in rebuilt.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }


def test_position_table_is_the_published_one(golden: Reference) -> None:
    positions = getattr(golden.build(), "positions", None)
    if "pos_embed" not in golden.state or not isinstance(positions, SinCosPositions):
        pytest.skip("this family has no fixed position table")
    torch.testing.assert_close(positions.table, golden.state["pos_embed"][0], rtol=0, atol=1e-7)


def test_rotary_table_is_the_published_one(golden: Reference) -> None:
    if "feat_rope.freqs_cos" not in golden.state:
        pytest.skip("this family has no rotary positions")
    model = golden.build()
    side = model.image_size // model.size_multiple
    # The published table holds every angle twice, once for each feature of a pair.
    angles = rotary_angles(model.head_dim, side, side).repeat_interleave(2, dim=-1)
    torch.testing.assert_close(angles.cos(), golden.state["feat_rope.freqs_cos"], rtol=0, atol=1e-6)
    torch.testing.assert_close(angles.sin(), golden.state["feat_rope.freqs_sin"], rtol=0, atol=1e-6)


def test_weights_of_another_family_are_refused(golden: Reference) -> None:
    assert golden.layout is not None
    for layout in (LAYOUTS[name]() for name in LAYOUTS):
        if layout.denoises and layout.rules != golden.layout.rules:
            with pytest.raises(ValueError, match=r"no place in this model|does not fit this"):
                load_mapped(layout.model.preset("tiny"), golden.state, layout.rules)


@torch.no_grad()
def test_dic_block(dic_block: Reference) -> None:
    """One block alone: with many channels, 32 groups normalise more than four of them each."""
    options, given = dic_block.arguments, dic_block.tensors
    block = DiCBlock(options["in_channels"], options["out_channels"], options["emb_channels"], 0.0).eval()
    # The file holds one block; we give it a place in a model, so that the model's key map serves it.
    there = {f"enc_blocks.0.0.conv.{key}": t for key, t in dic_block.state.items()}
    mapped = map_keys(there, LAYOUTS["dic"].rules)
    block.load_state_dict({key.removeprefix("encoder.0.0."): t for key, t in mapped.items()})
    assert relative_error(block(given["in.x"], given["in.emb"]), given["out.sample"]) <= dic_block.tolerance
