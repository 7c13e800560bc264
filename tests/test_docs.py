"""The README's Python runs as it stands: its blocks in order, in one namespace, from the repository's root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dinit import _deprecate
from dinit._exports import exported_names

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line number of its first line, code) of every fenced Python block."""
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in _FENCE.finditer(text)]


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with the repository's examples in reach: what the blocks write stays there."""
    readme = ROOT / "README.md"
    blocks = python_blocks(readme.read_text(encoding="utf-8"))
    assert blocks, "the README shows no Python"
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks:
        # Empty lines in front, so that a traceback names the README's own line.
        exec(compile("\n" * (line - 1) + code, str(readme), "exec"), namespace)
    assert (tmp_path / "three.png").exists()


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_relative_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    broken = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not broken, f"{name} links to {', '.join(broken)}"


def test_python_of_the_stability_page_runs() -> None:
    (block,) = python_blocks((ROOT / "docs/stability.md").read_text(encoding="utf-8"))
    _deprecate._warned.clear()
    with pytest.warns(DeprecationWarning, match="option 'levels' of method 'my-method' is deprecated"):
        exec(compile(block[1], "docs/stability.md", "exec", dont_inherit=True), {"__name__": "__main__"})


def test_packages_of_the_stability_page_are_those_that_are_checked() -> None:
    text = (ROOT / "docs/stability.md").read_text(encoding="utf-8")
    listed = re.findall(r"dinit[\w.]*", text.split("```text", 1)[1].split("```", 1)[0])
    exporting = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "dinit").rglob("__init__.py")
        if exported_names(file.read_text(encoding="utf-8"))
    }
    assert sorted(listed) == sorted(exporting)


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\n```\n```sh\nls\n```\n```python\ny = 2\nz = 3\n```\n"
    assert python_blocks(text) == [(3, "x = 1\n"), (9, "y = 2\nz = 3\n")]
