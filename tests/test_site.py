"""The site of `make docs`: built with warnings as errors, whole, and readable without a network."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dinit._exports import exported_names

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
# Where a browser loads by itself; <a href> is followed by a reader only.
LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "use": "href",
}
_IMPORTED = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])((?:https?:)?//[^'")]+)""")


class Addresses(HTMLParser):
    """Addresses of a page: those that a browser loads, those of its links; and the ids of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag in LOADED and LOADED[tag] in given:
            self.loaded.append(given[LOADED[tag]])
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])


def foreign(addresses: list[str]) -> list[str]:
    return [one for one in addresses if one.startswith(("http:", "https:", "//"))]


def broken(site: Path, pages: dict[str, Addresses]) -> list[str]:
    """Links and pictures that lead to no file or to no element of one; external links of a wrong form."""
    wrong = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                if not re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc) or re.search(r"[\s<>]", link):
                    wrong.append(f"{name}: {link}")
            elif not parts.scheme:
                path = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
                if not (site / path).exists():
                    wrong.append(f"{name}: {link} (no such file)")
                elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].ids:
                    wrong.append(f"{name}: {link} (no such place)")
    return wrong


def public_names() -> dict[str, str]:
    """Public name, with its package, to the path of its definition."""
    found = {}
    for file in (ROOT / "dinit").rglob("__init__.py"):
        package = ".".join(file.parent.relative_to(ROOT).parts)
        for name, (module, attribute) in exported_names(file.read_text(encoding="utf-8")).items():
            found[f"{package}.{name}"] = f"{module}.{attribute}"
    return found


@pytest.mark.timeout(900)  # it takes ten seconds of a core, which a busy machine may not have
def test_site_is_built_without_warnings_and_is_whole(tmp_path: Path) -> None:
    """One test, as the build is the cost: about ten seconds."""
    site = tmp_path / "site"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--config-file",
            str(CONFIG),
            "--site-dir",
            str(site),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    texts = {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8")
        for path in site.rglob("*.html")
        if path.name != "404.html"  # whose links start at the server's root
    }
    pages = {name: Addresses(text) for name, text in texts.items()}

    # Without a network.
    assert {name: foreign(page.loaded) for name, page in pages.items() if foreign(page.loaded)} == {}
    sheets = {path.name: _IMPORTED.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.css")}
    assert len(sheets) >= 3
    assert {name: found for name, found in sheets.items() if found} == {}

    # Links lead somewhere.
    assert broken(site, pages) == []

    # Every page of docs/ is in the navigation, and every public name on one page of the reference.
    reached = {os.path.normpath(link.partition("#")[0]) for link in pages["index.html"].links}
    missing = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} - reached
    assert missing == set()
    ids = {name: page.ids for name, page in pages.items() if name.startswith("api/")}
    for name, definition in public_names().items():
        places = [page for page in ids if definition in ids[page] or name in ids[page]]
        assert len(places) >= 1, f"{name} is not in the API reference"
        if definition.startswith("dinit."):
            defined = [page for page in ids if definition in ids[page]]
            assert len(defined) <= 1, f"{name} is on {defined}"

    # Search finds names and words; formulas are drawn, and none is left for a script.
    search = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    for word in ("guidance_scale", "DPMpp2M", "training.gradient_checkpointing", "Fashion-MNIST"):
        assert any(word in entry["text"] or word in entry["title"] for entry in search["docs"]), word
    assert sum(text.count('<svg role="img" aria-label="') for text in texts.values()) > 100
    assert [name for name, text in texts.items() if re.search(r'class="arithmatex">\s*\\[(\[]', text)] == []


# --- that the checks see what they are for -----------------------------------------------------------------------


def test_foreign_addresses_and_broken_links_are_found(tmp_path: Path) -> None:
    text = """<script src="https://x.org/a.js"></script> <link rel="preconnect" href="//fonts.x.org">
    <img src="here.png"> <a href="other.html#there">1</a> <a href="other.html#lost">2</a> <a href="lost.html">3</a>
    <a href="https://x">4</a> <a href="https://x.org/a b">5</a> <a href="#here">6</a>
    <a href="https://x.org/a">7</a> <p id="here"></p>"""
    (tmp_path / "sub").mkdir()
    for name in ("sub/one.html", "sub/other.html", "sub/here.png"):
        (tmp_path / name).touch()
    pages = {"sub/one.html": Addresses(text), "sub/other.html": Addresses('<h1 id="there">')}
    assert foreign(pages["sub/one.html"].loaded) == ["https://x.org/a.js", "//fonts.x.org"]
    assert [line.split(": ", 1)[1] for line in broken(tmp_path, pages)] == [
        "other.html#lost (no such place)",
        "lost.html (no such file)",
        "https://x",
        "https://x.org/a b",
    ]
    assert _IMPORTED.findall("a{b:url(https://x.org/f.woff)} @import '//y.org/z.css'; c{d:url(e.png)}") == [
        "https://x.org/f.woff",
        "//y.org/z.css",
    ]


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("make_recipe_page")


def test_page_of_recipe_keys_is_what_the_schema_makes(maker) -> None:
    assert maker.page() == (ROOT / "docs/recipe_keys.md").read_text(encoding="utf-8"), (
        "run `python docs/make_recipe_page.py`"
    )


def test_page_of_recipe_keys_has_every_key_with_a_sentence(maker) -> None:
    from dinit.training.recipe.model import Recipe

    rows = re.findall(r"^\| \[?`([\w.]+)`.*\| ([^|]+) \|$", maker.page(), re.MULTILINE)
    keys = [f"{prefix}{name}" for prefix, section in maker.sections(Recipe) for name in section.model_fields]
    assert [key for key, _ in rows] == keys
    assert all(re.fullmatch(r"\S.*\.", said) for _, said in rows)
    table = maker.page()
    assert "| `optimizer.betas` | 2 numbers | `[0.9, 0.99]` | [0, 1) |" in table
    assert "| `training.steps` | whole number | required | [1, ∞) |" in table
    assert "| `schedule.floor` | number | `0.0` | [0, 1] |" in table
    assert "| `evaluation.num_samples` | whole number | `1000` | [8, ∞) |" in table
