"""Backbones against the outputs of the published reference implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dinit.checkpoints.keymap import load_mapped, map_keys
from dinit.checkpoints.published import KEY_MAPS
from dinit.models.base import BACKBONES, Backbone
from dinit.models.dic import DiCBlock
from dinit.models.lightningdit import rotary_angles

GOLDEN = Path(__file__).parents[1] / "golden"
# Options of the published DiC class that no published size varies and our class does not have.
DIC_PUBLISHED = {
    "block_type": "unetblock",
    "actf": [1, 1],
    "norm_type": "gnorm",
    "norm_type1": "gnorm",
    "actinada": 1,
    "affinef": 3,
    "actfunc": "gelu",
    "affine": 0,
    "blockconfig": 0,
    "num_groups": 32,
    "min_channels": 4,
}


def golden_files(folder: Path) -> list[Path]:
    """The files in folder, or in folder/backbones, of whole models of families that have a key map."""
    inner = folder / "backbones"
    files = sorted((inner if inner.is_dir() else folder).glob("*.safetensors"))
    return [path for path in files if is_known_model(*read(path))]


def is_known_model(metadata: dict[str, str], tensors: dict[str, Tensor]) -> bool:
    return metadata.get("family", "").lower() in KEY_MAPS and "in.t" in tensors


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        files = golden_files(metafunc.config.getoption("--parity"))
        metafunc.parametrize("golden", files, ids=lambda path: path.stem)


def build(metadata: dict[str, str], tensors: dict[str, Tensor], **overrides: Any) -> Backbone:
    """Our model with the file's configuration and weights."""
    family = metadata["family"].lower()
    options = json.loads(metadata["kwargs"])
    options["image_size"] = options.pop("input_size", tensors["in.x"].shape[-1])
    if family == "dic":
        options["channel_mult"] = options.pop("mult_channels")
        assert {key: options.pop(key) for key in DIC_PUBLISHED} == DIC_PUBLISHED
    model = BACKBONES[family](**{**options, **overrides}).eval()
    state = {key.removeprefix("state."): t.float() for key, t in tensors.items() if key.startswith("state.")}
    load_mapped(model, state, KEY_MAPS[family])
    return model


def predict(model: Backbone, metadata: dict[str, str], x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Our output, without the half that LightningDiT computes and throws away under learn_sigma."""
    out = model(x, t, model.embed(labels))
    return out[:, : model.in_channels] if metadata["family"] == "LightningDiT" else out


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """The largest deviation of any item of the batch, relative to the item's largest value."""
    return ((ours - golden).abs().amax((1, 2, 3)) / golden.abs().amax((1, 2, 3))).max().item()


def test_at_least_the_shipped_files_are_found() -> None:
    names = {path.stem for path in golden_files(GOLDEN)}
    assert {"dit_sigma", "dit_nosigma_p4", "dico", "dic_h", "lightningdit_xl1flags"} <= names


@torch.no_grad()
def test_forward(golden: Path) -> None:
    metadata, tensors = read(golden)
    model = build(metadata, tensors)
    out = predict(model, metadata, tensors["in.x"], tensors["in.t"], tensors["in.y"])
    assert relative_error(out, tensors["out.sample"]) <= float(metadata["suggested_rel_tol"])


@torch.no_grad()
def test_guided_with_the_null_label(golden: Path) -> None:
    metadata, tensors = read(golden)
    model = build(metadata, tensors)
    x = tensors["in.cfg_x"][:1].repeat(2, 1, 1, 1)
    labels = torch.cat([tensors["in.cfg_y"][:1], model.null_labels(1)])
    out = predict(model, metadata, x, tensors["in.cfg_t"], labels)
    # The published guidance acts on the first three channels only.
    given, null = out[:1, :3], out[1:, :3]
    guided = (null + float(metadata["cfg_scale"]) * (given - null)).expand(2, -1, -1, -1)
    combined = torch.cat([guided, out[:, 3:]], dim=1)
    assert relative_error(combined, tensors["out.cfg"]) <= float(metadata["suggested_rel_tol"])


@torch.no_grad()
def test_in_float64(golden: Path) -> None:
    metadata, tensors = read(golden)
    model = build(metadata, tensors).double()
    out = predict(model, metadata, tensors["in.x"].double(), tensors["in.t"].double(), tensors["in.y"])
    assert out.dtype == torch.float64
    assert relative_error(out, tensors["out.sample"].double()) <= float(metadata["suggested_rel_tol"])


@torch.no_grad()
def test_configured_for_another_size(golden: Path) -> None:
    """A model configured for 4 times the size gives the same numbers at the size of the file."""
    metadata, tensors = read(golden)
    model = build(metadata, tensors, image_size=4 * tensors["in.x"].shape[-1])
    out = predict(model, metadata, tensors["in.x"], tensors["in.t"], tensors["in.y"])
    assert relative_error(out, tensors["out.sample"]) <= float(metadata["suggested_rel_tol"])


def test_position_table_is_the_published_one(golden: Path) -> None:
    metadata, tensors = read(golden)
    if "state.pos_embed" not in tensors:
        pytest.skip("this family has no position table")
    torch.testing.assert_close(build(metadata, tensors).positions, tensors["state.pos_embed"][0], rtol=0, atol=0)


def test_rotary_table_is_the_published_one(golden: Path) -> None:
    metadata, tensors = read(golden)
    if "state.feat_rope.freqs_cos" not in tensors:
        pytest.skip("this family has no rotary positions")
    model = build(metadata, tensors)
    side = model.image_size // model.size_multiple
    # The published table holds every angle twice, once for each feature of a pair.
    angles = rotary_angles(model.head_dim, side, side).repeat_interleave(2, dim=-1)
    torch.testing.assert_close(angles.cos(), tensors["state.feat_rope.freqs_cos"], rtol=0, atol=1e-6)
    torch.testing.assert_close(angles.sin(), tensors["state.feat_rope.freqs_sin"], rtol=0, atol=1e-6)


def test_weights_of_another_family_are_refused(golden: Path) -> None:
    metadata, tensors = read(golden)
    state = {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")}
    for other in KEY_MAPS.keys() - {metadata["family"].lower()}:
        with pytest.raises(ValueError, match=r"no place in this model|does not fit this"):
            load_mapped(BACKBONES[other].preset("tiny"), state, KEY_MAPS[other])


@torch.no_grad()
def test_dic_block_with_more_channels_than_32_groups_of_four() -> None:
    metadata, tensors = read(GOLDEN / "backbones" / "dic_block.safetensors")
    options = json.loads(metadata["kwargs"])
    block = DiCBlock(options["in_channels"], options["out_channels"], options["emb_channels"], 0.0)
    # The file holds one block; we give it a place in a model, so that the model's key map serves it.
    there = {key.replace("state.", "enc_blocks.0.0.conv."): t for key, t in tensors.items() if key[:6] == "state."}
    mapped = map_keys(there, KEY_MAPS["dic"])
    block.load_state_dict({key.removeprefix("encoder.0.0."): t for key, t in mapped.items()})
    out = block(tensors["in.x"], tensors["in.emb"])
    assert relative_error(out, tensors["out.sample"]) <= float(metadata["suggested_rel_tol"])
