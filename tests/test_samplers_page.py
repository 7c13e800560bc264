"""The page on samplers shows what is registered: names, facts, formulas, pictures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.mathtext import MathTextParser
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


def section(name: str) -> str:
    return text().split(f"\n### {name}\n")[1].split("\n### ")[0]


@pytest.mark.parametrize("registry", [SAMPLERS, GRIDS, GUIDANCES, PROCESSES], ids=lambda one: one.kind)
def test_the_page_lists_every_registered_name_and_no_other(registry) -> None:
    table = text().split(f"| {registry.kind} |")[1].split("\n\n")[0]
    names = re.findall(r"^\| \[?`([^`]+)`", table, re.MULTILINE)
    assert names == registry.names(), AGAIN


def readable_by_mathtext(latex: str) -> str:
    """The same formula without what matplotlib does not know though TeX and GitHub do."""
    latex = re.sub(r"\\text\{[^{}]*\}", r"\\mathrm{text}", latex)
    return latex.replace(r"\tfrac", r"\frac").replace(r"\ge ", r"\geq ")


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_formula_is_valid_latex_and_on_the_page(name: str, maker: ModuleType) -> None:
    latex = maker.formula(SAMPLERS[name])
    MathTextParser("path").parse(f"${readable_by_mathtext(latex)}$")
    assert f"```math\n{latex}\n```" in section(name), AGAIN


def test_a_sampler_without_a_formula_is_refused(maker: ModuleType) -> None:
    class Bare:
        """A step.

        Args:
            eta: Formula: $x$
        """

    class Bold(Bare):
        r"""A step.

        Formula: $x_s = x_t
            + \varepsilon$

        Args:
            eta: Noise,
                in [0, 1].

        Raises:
            ValueError: never.
        """

    with pytest.raises(ValueError, match="Bare has no paragraph 'Formula"):
        maker.formula(Bare)
    assert maker.formula(Bold) == r"x_s = x_t + \varepsilon"
    assert maker.paragraphs(Bold) == ["A step.", "- `eta`: Noise,\n  in [0, 1]."]


def test_every_sampler_has_a_small_picture() -> None:
    pictures = {path.stem: path for path in (DOCS / "images").glob("*.png")}
    assert set(SAMPLERS.names()) <= set(pictures), AGAIN
    assert sum(pictures[name].stat().st_size for name in SAMPLERS) < KILOBYTES * 1024
    for name in SAMPLERS:
        assert f"](images/{name}.png)" in text(), AGAIN
        with Image.open(pictures[name]) as picture:
            assert picture.width > 10 * 48


def test_facts_are_those_of_the_classes() -> None:
    for name in SAMPLERS:
        sampler = SAMPLERS.create(name)
        kind = "stochastic" if sampler.stochastic else "deterministic"
        assert f"*{kind}, order {sampler.claims().order}, " in section(name), AGAIN


def test_the_page_is_what_the_docstrings_make(maker: ModuleType) -> None:
    assert maker.page() == text(), AGAIN


def test_references_are_read_from_docstrings(maker: ModuleType) -> None:
    assert maker.reference(SAMPLERS["ddim"]) == "Song et al. 2021 (DDIM), Eq. 12"
    assert maker.reference(SAMPLERS["ipndm"]) == "Zhang & Chen 2023"
    assert all(maker.reference(SAMPLERS[name]) != "—" for name in SAMPLERS)
