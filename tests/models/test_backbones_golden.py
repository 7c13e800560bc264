"""Backbones against the outputs of the published reference implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.published import KEY_MAPS
from dinit.models.base import BACKBONES, Backbone


def golden_files(folder: Path) -> list[Path]:
    """The files in folder, or in folder/backbones, of families that have a key map."""
    inner = folder / "backbones"
    files = sorted((inner if inner.is_dir() else folder).glob("*.safetensors"))
    return [path for path in files if read(path)[0].get("family", "").lower() in KEY_MAPS]


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
    model = BACKBONES[family](**{**options, **overrides}).eval()
    state = {key.removeprefix("state."): t.float() for key, t in tensors.items() if key.startswith("state.")}
    load_mapped(model, state, KEY_MAPS[family])
    return model


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """The largest deviation of any item of the batch, relative to the item's largest value."""
    return ((ours - golden).abs().amax((1, 2, 3)) / golden.abs().amax((1, 2, 3))).max().item()


def test_at_least_the_shipped_files_are_found() -> None:
    names = {path.stem for path in golden_files(Path(__file__).parents[1] / "golden")}
    assert {"dit_sigma", "dit_nosigma_p4", "dico"} <= names


@torch.no_grad()
def test_forward(golden: Path) -> None:
    metadata, tensors = read(golden)
    model = build(metadata, tensors)
    out = model(tensors["in.x"], tensors["in.t"], model.embed(tensors["in.y"]))
    assert relative_error(out, tensors["out.sample"]) <= float(metadata["suggested_rel_tol"])


@torch.no_grad()
def test_guided_with_the_null_label(golden: Path) -> None:
    metadata, tensors = read(golden)
    model = build(metadata, tensors)
    x = tensors["in.cfg_x"][:1].repeat(2, 1, 1, 1)
    labels = torch.cat([tensors["in.cfg_y"][:1], model.null_labels(1)])
    out = model(x, tensors["in.cfg_t"], model.embed(labels))
    # The published guidance acts on the first three channels only.
    given, null = out[:1, :3], out[1:, :3]
    guided = (null + float(metadata["cfg_scale"]) * (given - null)).expand(2, -1, -1, -1)
    combined = torch.cat([guided, out[:, 3:]], dim=1)
    assert relative_error(combined, tensors["out.cfg"]) <= float(metadata["suggested_rel_tol"])


@torch.no_grad()
def test_in_float64(golden: Path) -> None:
    metadata, tensors = read(golden)
    model = build(metadata, tensors).double()
    out = model(tensors["in.x"].double(), tensors["in.t"].double(), model.embed(tensors["in.y"]))
    assert out.dtype == torch.float64
    assert relative_error(out, tensors["out.sample"].double()) <= float(metadata["suggested_rel_tol"])


@torch.no_grad()
def test_configured_for_another_size(golden: Path) -> None:
    """A model configured for 4 times the size gives the same numbers at the size of the file."""
    metadata, tensors = read(golden)
    model = build(metadata, tensors, image_size=4 * tensors["in.x"].shape[-1])
    out = model(tensors["in.x"], tensors["in.t"], model.embed(tensors["in.y"]))
    assert relative_error(out, tensors["out.sample"]) <= float(metadata["suggested_rel_tol"])


def test_position_table_is_the_published_one(golden: Path) -> None:
    metadata, tensors = read(golden)
    if "state.pos_embed" not in tensors:
        pytest.skip("this family has no position table")
    torch.testing.assert_close(build(metadata, tensors).positions, tensors["state.pos_embed"][0], rtol=0, atol=0)


def test_weights_of_another_family_are_refused(golden: Path) -> None:
    metadata, tensors = read(golden)
    state = {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")}
    other = {"dit": "dico", "dico": "dit"}[metadata["family"].lower()]
    with pytest.raises(ValueError, match="no place in this model"):
        load_mapped(BACKBONES[other].preset("tiny"), state, KEY_MAPS[other])
