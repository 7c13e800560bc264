"""The page on samplers shows what is registered: names, facts, formulas, pictures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from dinit.diffusion import PROCESSES
from dinit.samplers import GRIDS, SAMPLERS
from dinit.samplers.guidance import GUIDANCES

DOCS = Path(__file__).parents[1] / "docs"
AGAIN = "run `python docs/make_samplers_page.py`"
KILOBYTES = 400


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("make_samplers_page")


def text() -> str:
    return (DOCS / "samplers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("registry", [SAMPLERS, GRIDS, GUIDANCES, PROCESSES], ids=lambda one: one.kind)
def test_the_page_lists_every_registered_name_and_no_other(registry) -> None:
    table = text().split(f"| {registry.kind} |")[1].split("\n\n")[0]
    names = re.findall(r"^\| \[?`([^`]+)`", table, re.MULTILINE)
    assert names == registry.names(), AGAIN


def test_every_sampler_has_a_formula_and_a_small_picture(maker: ModuleType) -> None:
    assert sorted(maker.FORMULAS) == SAMPLERS.names(), "docs/formulas.toml has a line for each sampler"
    pictures = {path.stem: path for path in (DOCS / "images").glob("*.png")}
    assert set(SAMPLERS.names()) <= set(pictures), AGAIN
    assert sum(path.stat().st_size for path in pictures.values()) < KILOBYTES * 1024
    for name in SAMPLERS:
        assert f"](images/{name}.png)" in text(), AGAIN
        with Image.open(pictures[name]) as picture:
            assert picture.width > 10 * 48


def test_facts_are_those_of_the_classes(maker: ModuleType) -> None:
    for name in SAMPLERS:
        section = text().split(f"\n### {name}\n")[1].split("\n### ")[0]
        sampler = SAMPLERS.create(name)
        kind = "stochastic" if sampler.stochastic else "deterministic"
        assert f"*{kind}, order {sampler.claims().order}, " in section, AGAIN
        assert maker.FORMULAS[name] in section, AGAIN


def test_references_are_read_from_docstrings(maker: ModuleType) -> None:
    assert maker.reference(SAMPLERS["ddim"]) == "Song et al. 2021, Eq. 12"
    assert maker.reference(SAMPLERS["ipndm"]) == "Zhang & Chen 2023"
    assert all(maker.reference(SAMPLERS[name]) != "—" for name in SAMPLERS)
