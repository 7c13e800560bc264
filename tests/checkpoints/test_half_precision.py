"""Weights in half precision are read; fixed tables are compared as exactly as their dtype allows."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference, references

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.tables import check_tables, decimal, equal, geometric, precision
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.convert import convert

FILES = [file for file in references(GOLDEN) if file.layout is not None]
HALF = (torch.float16, torch.bfloat16)
OPTIONS: dict[str, Any] = {"options": {"num_heads": 4}}


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: one.to(dtype) if one.is_floating_point() else one for key, one in state.items()}


def dit() -> dict[str, Tensor]:
    return Reference(GOLDEN / "dit_sigma.safetensors").state


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path.stem)
def test_every_family_reads_half_precision(file: Reference, dtype: torch.dtype) -> None:
    layout, backbone = file.layout, file.build()
    assert layout is not None
    state = cast(file.state, dtype)
    own = {key: one.clone() for key, one in backbone.state_dict().items()}
    load_mapped(backbone, layout.prepare(state), layout.rules)
    loaded = backbone.state_dict()
    for key, one in own.items():
        assert loaded[key].dtype == one.dtype
        torch.testing.assert_close(loaded[key], one.to(dtype).to(one.dtype), rtol=0, atol=0)
    found = {**layout.options(file.shapes), **layout.values(state)}
    accepted = inspect.signature(type(backbone).__init__).parameters
    for name, value in layout.values(file.state).items():
        assert found[name] == value  # noise levels as they were meant, not as they were rounded
    assert set(found) <= set(accepted)
    if hasattr(layout, "tables") and file.name not in ("UNetBlock", "ResnetBlockBigGANpp"):
        check_tables(state, layout.tables(backbone))


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float16,),
        (torch.bfloat16,),
        (torch.float64,),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
    ],
    ids=str,
)
def test_a_pipeline_is_float32_whatever_the_weights_are(dtypes: tuple[torch.dtype, ...], tmp_path: Path) -> None:
    state = dit()
    for dtype in dtypes:  # rounded, then saved in another
        state = cast(state, dtype)
    torch.save(state, tmp_path / "a.pt")
    made = convert(tmp_path / "a.pt", tmp_path / "p", **OPTIONS)
    head = Pipeline.from_pretrained(tmp_path / "p").backbone.state_dict()["head.linear.weight"]
    assert head.dtype == torch.float32
    torch.testing.assert_close(head, dit()["final_layer.linear.weight"].to(dtypes[0]).float(), rtol=0, atol=0)
    note = f"its weights are {str(dtypes[-1])[6:]}, those of the pipeline float32"
    assert (note in made.notes) == (dtypes[-1] != torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [4.0, 1.5])
def test_another_table_is_refused_in_every_precision(dtype: torch.dtype, wrong: float, tmp_path: Path) -> None:
    """A difference of `wrong` units in the last place of a half-precision number of the table."""
    state = cast(dit(), dtype)
    unit = max(torch.finfo(dtype).eps, 1e-4)
    state["pos_embed"] = (state["pos_embed"].double() + wrong * unit * state["pos_embed"].double().sign()).to(dtype)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="pos_embed is not the table of 16 patches"):
        convert(tmp_path / "a.pt", tmp_path / "p", **OPTIONS)


@pytest.mark.parametrize("file", ["lightningdit_xl1flags", "diffit_latent", "ncsnpp_ve_discrete"])
def test_tables_that_were_not_compared_before(file: str) -> None:
    reference = Reference(GOLDEN / f"{file}.safetensors")
    layout, backbone = reference.layout, reference.build()
    assert layout is not None
    tables = {key: one for key, one in layout.tables(backbone).items() if key in reference.state}
    assert len(tables) >= (1 if "ncsnpp" in file else 3)
    for key, table in tables.items():
        changed = reference.state[key].clone()
        changed.flatten()[changed.numel() // 2] += 1
        with pytest.raises(ValueError, match=f"its {key} is not the table"):
            check_tables({key: changed}, {key: table})
        with pytest.raises(ValueError, match=f"its {key} is not the table .*another size"):
            check_tables({key: changed.flatten()[:-1]}, {key: table})


@pytest.mark.parametrize(
    ("value", "dtype", "known", "meant"),
    [
        (0.01, torch.float16, (), 0.01),
        (0.01, torch.bfloat16, (), 0.01),
        (348.0, torch.bfloat16, (), 348.0),
        (1348.0, torch.bfloat16, (90.0, 1348.0), 1348.0),
        (1340.0, torch.bfloat16, (90.0,), 1340.0),
        (378.0, torch.float16, (380.0, 378.0), 378.0),
        (0.123456789, torch.float32, (), 0.123457),
        (50.0, torch.float32, (90.0,), 50.0),
    ],
)
def test_decimal_numbers_are_read_from_rounded_ones(
    value: float, dtype: torch.dtype, known: tuple[float, ...], meant: float
) -> None:
    assert decimal(torch.tensor(value).to(dtype), dtype, known) == meant


def test_precision_is_that_of_the_numbers() -> None:
    table = torch.rand(99, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert precision(table.float()) == precision(table) == torch.float32
    for dtype in HALF:
        assert precision(table.to(dtype)) == precision(table.to(dtype).double()) == dtype
    assert precision(torch.arange(300)) == torch.float32
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # all small: an absolute tolerance would pass any
    assert equal(betas.float(), betas)
    assert equal(betas.half(), betas)
    assert not equal(1.001 * betas, betas)
    assert not equal(geometric(0.01, 50.0, 100).half(), geometric(0.01, 50.1, 100))
    assert not equal(torch.full((3,), float("nan")), torch.ones(3))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = dit()
    state["blocks.0.mlp.fc1.weight"] = (127 * state["blocks.0.mlp.fc1.weight"]).to(torch.int8)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"blocks.0.mlp.fc1.weight is int8 in the checkpoint, no floating-point"):
        convert(tmp_path / "a.pt", tmp_path / "p", **OPTIONS)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda one: one.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda one: one.to(torch.complex64), "complex64"),
        (lambda one: one.to_sparse(), "nested, sparse or quantized"),
        (lambda one: one.to("meta"), "a shape without numbers"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_ordinary_ones_are_named(make: Any, kind: str, tmp_path: Path) -> None:
    state = dit()
    state["blocks.0.mlp.fc1.weight"] = make(state["blocks.0.mlp.fc1.weight"])
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"has blocks.0.mlp.fc1.weight as .*{kind}"):
        convert(tmp_path / "a.pt", tmp_path / "p", **OPTIONS)
