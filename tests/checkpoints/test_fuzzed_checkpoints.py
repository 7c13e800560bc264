"""Sixty edits by chance of a training checkpoint end in the averaged weights, or in a short error."""

from __future__ import annotations

import copy
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from fuzzing import damaged, edited
from reference import GOLDEN, Reference

from dinit.checkpoints.keymap import load_mapped, map_keys
from dinit.checkpoints.layouts import LAYOUTS
from dinit.checkpoints.reading import read_checkpoint
from dinit.checkpoints.recognition import recognise_state
from dinit.checkpoints.tables import check_tables
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.convert import convert

SEED, COUNT = 14, 60
SCREEN = 2000  # characters of an error
EVERY = 6  # edits, of which one is converted to a pipeline, which takes a quarter of a second
FILE = Reference(GOLDEN / "dit_sigma.safetensors")
EMA, BACKBONE = FILE.state, FILE.build()


KINDS = (
    "half", "bfloat16", "double", "int8", "float8", "complex", "nan", "inf", "flat", "short", "more", "module",
    "wrapped", "renamed", "lost", "nested", "sparse", "meta", "noise",
)  # fmt: skip


def content() -> dict[str, Any]:
    raw = {key: one if key == "pos_embed" else one + 1 for key, one in EMA.items()}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}}
    return {
        "model": raw,
        "ema": dict(EMA),
        "opt": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "args": {"model": "DiT-S/2", "num_classes": 10, "image_size": 64, "seed": 0},
        "train_steps": 400000,
    }


def with_tensors(count: int) -> Iterator[tuple[str, Any]]:
    """Edits of single tensors: dtypes, shapes, values, names."""
    chance = random.Random(SEED)
    for _ in range(count):
        made = content()
        part, key = chance.choice(("ema", "ema", "model")), chance.choice(list(EMA))
        one = made[part].pop(key)
        kind = chance.choice(KINDS)
        casts = {
            "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64, "int8": torch.int8,
            "float8": torch.float8_e5m2, "complex": torch.complex64,
        }  # fmt: skip
        name = {"module": f"module.{key}", "wrapped": f"_orig_mod.{key}", "renamed": key.upper()}.get(kind, key)
        if kind in casts:
            one = one.to(casts[kind])
        elif kind in ("nan", "inf"):
            one = one.clone().fill_(float(kind))
        elif kind == "noise":
            one = one + 0.25
        elif kind == "nested":
            one = {"value": one}
        elif kind in ("sparse", "meta"):
            one = one.to_sparse() if kind == "sparse" else one.to("meta")
        elif kind in ("flat", "short", "more"):
            one = {"flat": one.flatten(), "short": one[:-1], "more": torch.cat([one, one])}[kind]
        if kind != "lost":
            made[part][name] = one
        yield f"{part}.{key}: {kind}", made


def outcome(file: Path, whole: bool) -> dict[str, Tensor] | str:
    """The state of dinit's backbone, or the message of the refusal. whole: of an opened pipeline."""
    try:
        if whole:
            made = convert(file, file.parent / "p", options={"num_heads": 4})
            return dict(Pipeline.from_pretrained(made.folder).backbone.state_dict())
        read = read_checkpoint(file)
        layout = recognise_state(read.state, read.path, read.args).layout
        backbone = copy.deepcopy(BACKBONE)
        load_mapped(backbone, layout.prepare(read.state), layout.rules)
        check_tables(read.state, layout.tables(backbone))
        return dict(backbone.state_dict())
    except (ValueError, OSError) as error:
        return str(error)


def loaded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return map_keys(state, LAYOUTS["dit"].rules)


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Equal but for the rounding of one tensor to bfloat16."""
    return all(torch.allclose(state[key], expected[key], rtol=2**-7, atol=0) for key in expected)


def check(what: str, made: dict[str, Any], result: dict[str, Tensor] | str) -> None:
    """An error that names the file, or the averaged weights, or the model's where the average is gone."""
    if isinstance(result, str):
        assert len(result) < SCREEN, what
        assert result, what
        return
    averages = [name for name in made if name.lower().startswith("ema") and made[name]]
    expected = [EMA] if averages else [content()["model"]]
    if averages and isinstance(average := made[averages[0]], dict):
        expected.append({key: one.float() for key, one in average.items() if isinstance(one, Tensor)})  # as edited
    assert any(set(EMA) <= set(state) and same(result, loaded(state)) for state in expected), what


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["tree", "tensors"])
def test_edited_contents(how: str, tmp_path: Path) -> None:
    edits = edited(SEED, content(), COUNT) if how == "tree" else with_tensors(COUNT)
    for i, (what, made) in enumerate(edits):
        file = tmp_path / f"{i}" / "a.pt"
        file.parent.mkdir()
        torch.save(made, file)
        result = outcome(file, whole=i % EVERY == 0)
        check(what, made, result)
        assert not isinstance(result, str) or i % EVERY or str(file) in result, result


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes(tmp_path: Path) -> None:
    """Of the container that torch.save writes today, which has sums of all of its parts."""
    buffer = io.BytesIO()
    small = {key: EMA[key][:1].clone() for key in list(EMA)[:6]}
    torch.save({"model": {key: one + 1 for key, one in small.items()}, "ema": small}, buffer)
    outcomes = set()
    for what, made in damaged(SEED, buffer.getvalue(), COUNT):
        (tmp_path / "a.pt").write_bytes(made)
        try:
            state = read_checkpoint(tmp_path / "a.pt").state
            assert state.keys() == small.keys(), what
            assert all(torch.equal(state[key], small[key]) for key in small), what
            outcomes.add("right")
        except (ValueError, OSError) as error:
            assert str(error).startswith(str(tmp_path / "a.pt")), what
            assert len(str(error)) < SCREEN, what
            outcomes.add("error")
    assert outcomes == {"right", "error"}
