"""Backbones against the outputs of the published reference implementations; families with extras have own files."""

from __future__ import annotations

import pytest
import torch
from reference import GOLDEN, Reference, null_labels, references, relative_error
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


def plain(file: Reference) -> bool:
    return file.name not in ELSEWHERE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    files = references(metafunc.config.getoption("--parity"))
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", [f for f in files if plain(f)], ids=lambda file: file.path.stem)
    if "any_file" in metafunc.fixturenames:
        metafunc.parametrize("any_file", files, ids=lambda file: file.path.stem)


def predict(model: Backbone, x: Tensor, t: Tensor, labels: Tensor | None, channels: int) -> Tensor:
    """Our output, without the half that LightningDiT computes and throws away under learn_sigma."""
    labels = null_labels(model, len(x)) if labels is None else labels
    return model(x, t, model.embed(labels))[:, :channels]


def forward(model: Backbone, file: Reference) -> Tensor:
    given = file.tensors
    return predict(model, given["in.x"], given["in.t"], given.get("in.y"), given["out.sample"].shape[1])


def test_every_file_is_covered(any_file: Reference) -> None:
    assert any_file.layout is not None or any_file.name in ELSEWHERE, f"no test reads {any_file.path.name}"


@torch.no_grad()
def test_forward(golden: Reference) -> None:
    assert relative_error(forward(golden.build(), golden), golden.tensors["out.sample"]) <= golden.tolerance


@torch.no_grad()
def test_guided_with_the_null_label(golden: Reference) -> None:
    if "out.cfg" not in golden.tensors:
        pytest.skip("the reference has no guided call")
    if golden.name == "DiffiT":
        pytest.skip("its guidance scale follows a schedule: test_diffit.py")
    model, given = golden.build(), golden.tensors
    x = given["in.cfg_x"][:1].repeat(2, 1, 1, 1)
    labels = torch.cat([given["in.cfg_y"][:1], null_labels(model, 1)])
    out = predict(model, x, given["in.cfg_t"], labels, given["out.cfg"].shape[1])
    # The published guidance acts on the first three channels only.
    conditional, null = out[:1, :3], out[1:, :3]
    guided = null + float(golden.metadata["cfg_scale"]) * (conditional - null)
    combined = torch.cat([guided.expand(2, -1, -1, -1), out[:, 3:]], dim=1)
    assert relative_error(combined, given["out.cfg"]) <= golden.tolerance


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
    for name, value in told.items():
        built = model.config[name]
        if isinstance(value, (list, tuple)):
            value, built = list(value), list(built)
        # Ratios come back from rounded widths.
        assert value == (pytest.approx(built, rel=0.05) if isinstance(value, float) else built), name
    rebuilt = layout.model(**{**model.config, **told})
    assert {name: t.shape for name, t in rebuilt.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }


def test_position_table_is_the_published_one(golden: Reference) -> None:
    positions = getattr(golden.build(), "positions", None)
    if "pos_embed" not in golden.state or not isinstance(positions, SinCosPositions):
        pytest.skip("this family has no fixed position table")
    torch.testing.assert_close(positions.table, golden.state["pos_embed"][0], rtol=0, atol=0)


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
def test_dic_block_with_more_channels_than_32_groups_of_four() -> None:
    file = Reference(GOLDEN / "dic_block.safetensors")
    options = file.arguments
    block = DiCBlock(options["in_channels"], options["out_channels"], options["emb_channels"], 0.0)
    # The file holds one block; we give it a place in a model, so that the model's key map serves it.
    there = {f"enc_blocks.0.0.conv.{key}": t for key, t in file.state.items()}
    mapped = map_keys(there, LAYOUTS["dic"].rules)
    block.load_state_dict({key.removeprefix("encoder.0.0."): t for key, t in mapped.items()})
    out = block(file.tensors["in.x"], file.tensors["in.emb"])
    assert relative_error(out, file.tensors["out.sample"]) <= file.tolerance
