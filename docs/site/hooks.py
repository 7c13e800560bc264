"""Pages of the site that do not lie in docs/, the API reference, and formulas.

The README is the first page; examples, changes and benchmark results are pages too, and whatever file a page
links to is copied. A page of the API reference is made for every package with a written-out list of exports.
"""

from __future__ import annotations

import ast
import html
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dinit._exports import exported_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = (
    "dinit",
    "dinit.pipelines",
    "dinit.samplers",
    "dinit.samplers.guidance",
    "dinit.diffusion",
    "dinit.models",
    "dinit.training",
    "dinit.data",
    "dinit.evaluation",
    "dinit.likelihood",
    "dinit.inverse",
    "dinit.reuse",
    "dinit.checkpoints",
)
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_NAME = re.compile(r"(?<!>)<code>(dinit(?:\.\w+)+)(?:\(\))?</code>(?!</a>)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


# --- pages and files from outside docs/ --------------------------------------------------------------------------


def uri_of(path: Path) -> str:
    """The place in the site of a file of the project."""
    if path == ROOT / "README.md":
        return "index.md"
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def pages_outside() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md"))
    yield from sorted((ROOT / "benchmarks" / "results").glob("*.md"))


def targets(text: str) -> Iterator[str]:
    """Addresses of the links and pictures of a page that lie in the project, without the part after '#'."""
    for _, inside, target in _LINK.findall(without_code(text)[0]):
        yield from targets(inside)
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


def without_code(text: str) -> tuple[str, list[str]]:
    """The text with a mark in place of every block and span of code, and these; `with_code` puts them back."""
    parts = _CODE.split(text)
    marked = (part if index % 2 == 0 else f"\x00{index // 2}\x00" for index, part in enumerate(parts))
    return "".join(marked), parts[1::2]


def with_code(text: str, code: list[str]) -> str:
    return re.sub(r"\x00(\d+)\x00", lambda found: code[int(found[1])], text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/, the API reference, the site's style, and all files that pages link to."""
    pages = [*pages_outside(), *sorted(DOCS.glob("*.md"))]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in targets(page.read_text(encoding="utf-8"))
        if (page.parent / target).is_file()
    }
    for path in [*pages_outside(), *sorted(linked), *sorted((DOCS / "site" / "assets").iterdir())]:
        uri = f"assets/{path.name}" if path.parent.name == "assets" else uri_of(path)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=reference(package)))
    files.append(File.generated(config, "api/index.md", content=overview()))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation: packages in place of `api`, pages of docs/ and results that it does not name."""
    fill(config.nav, "api", [f"api/{package}.md" for package in PACKAGES])
    named = set(listed(config.nav))
    fill(config.nav, "guides", [page.name for page in sorted(DOCS.glob("*.md")) if page.name not in named])
    results = [uri_of(page) for page in pages_outside() if page.parent.name == "results"]
    fill(config.nav, "results", [page for page in results if page not in named])
    return config


def listed(nav: list) -> Iterator[str]:
    """The pages that a navigation names."""
    for item in nav:
        for below in item.values() if isinstance(item, dict) else (item,):
            yield from listed(below) if isinstance(below, list) else (below,)


def fill(nav: list, mark: str, pages: list[str]) -> None:
    """Puts the pages in place of an entry."""
    for index, item in enumerate(nav):
        if item == mark:
            nav[index : index + 1] = pages
            return
        for title, below in item.items() if isinstance(item, dict) else ():
            if below == mark:
                item[title] = pages
            elif isinstance(below, list):
                fill(below, mark, pages)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that lead through the project's folders into links of the site."""
    source = Path(page.file.abs_src_path or "/")
    if page.file.src_uri.startswith("api/"):
        return markdown
    folder = PurePosixPath(page.file.src_uri).parent

    def moved(found: re.Match[str]) -> str:
        bang, text, target = found.groups()
        text = _LINK.sub(moved, text)
        address, hash_, anchor = target.partition("#")
        path = Path(os.path.normpath(source.parent / address))
        if re.match(r"[a-z]+:|#", target) or not path.exists():
            return f"{bang}[{text}]({target})"
        if path.is_dir():  # a code host shows folders, the site does not
            return text
        uri = os.path.relpath(uri_of(path.resolve()), folder)
        return f"{bang}[{text}]({uri}{hash_}{anchor})"

    text, code = without_code(markdown)
    return with_code(_LINK.sub(moved, text), code)


# --- the API reference -------------------------------------------------------------------------------------------


def exports(package: str) -> dict[str, str]:
    """Public name to the path of its definition."""
    source = ROOT.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8")
    return {name: f"{module}.{attribute}" for name, (module, attribute) in exported_names(source).items()}


@cache
def page_of(definition: str) -> str:
    """The package on whose page a definition stands: the most specific one that exports it."""
    homes = [package for package in PACKAGES if definition in exports(package).values()]
    return max(homes, key=lambda package: (package.count("."), -PACKAGES.index(package)))


def summary(package: str) -> str:
    source = ROOT.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def imported_from(definition: str) -> str | None:
    """The module of another project that an exported name comes from."""
    module, _, name = definition.rpartition(".")
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return node.module
    return None


def reference(package: str) -> str:
    """The page of a package: what it defines, and links to what it exports from other packages."""
    names = exports(package)
    own = [name for name, definition in names.items() if page_of(definition) == package]
    others = [name for name in names if name not in own]
    parts = [f"# {package}", summary(package)]
    if others:
        linked = ", ".join(f"[`{name}`][{names[name]}]" for name in others if not imported_from(names[name]))
        parts.append(f"Also exported here, and described on the pages of their packages: {linked}.")
    for name in own:
        foreign = imported_from(names[name])
        body = f"## {name}\n\nThe class of that name in `{foreign}`." if foreign else f"::: {names[name]}"
        parts.append(f'<a id="{package}.{name}"></a>\n\n{body}')
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    rows = [f"| [`{package}`]({package}.md) | {' '.join(summary(package).split())} |" for package in PACKAGES]
    lead = (
        "All public names, made from their signatures and docstrings. Import a name from the package on whose page "
        "it stands; [what is public](../stability.md) and how names may change is a page of its own. The words of "
        "diffusers are in [Names from diffusers](../diffusers_names.md)."
    )
    return "\n".join(["# API reference", "", lead, "", "| package | |", "|---|---|", *rows, ""])


# --- formulas and names -----------------------------------------------------------------------------------------


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Draws the formulas, so that the site needs no script for them; links public names to the API reference."""

    def formula(found: re.Match[str]) -> str:
        return f'<{found[1]} class="arithmatex">{drawn(html.unescape(found[2]))}</{found[1]}>'

    def name(found: re.Match[str]) -> str:
        package, _, last = found[1].rpartition(".")
        if package not in PACKAGES or last not in exports(package) or page.file.src_uri.startswith("api/"):
            return found[0]
        folder = PurePosixPath(page.file.src_uri).parent
        home = page_of(exports(package)[last])
        address = os.path.relpath(f"api/{home}.html#{exports(package)[last]}", folder)
        return f'<a href="{address}">{found[0]}</a>'

    return _FORMULA.sub(formula, _NAME.sub(name, content))


@cache
def drawn(latex: str) -> str:
    """An SVG of a formula, in the text's size and colour."""
    latex = " ".join(latex.split())
    plain = re.sub(
        r"\\text\{([^{}]*)\}", lambda found: rf"\mathrm{{{found[1].replace(' ', chr(92) + ' ')}}}", latex
    )
    plain = plain.replace(r"\tfrac", r"\frac").replace(r"\ge ", r"\geq ")
    outline = TextPath((0, 0), f"${plain}$", size=100, usetex=False)
    box = outline.get_extents()
    left, bottom, width, height = box.x0, min(box.y0, 0.0), box.width, box.y1 - min(box.y0, 0.0)
    names = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    strokes = []
    for points, code in outline.iter_segments(simplify=False):
        if code == Outline.CLOSEPOLY:
            strokes.append("Z")
        else:
            pairs = (
                f"{x - left:.0f} {height + bottom - y:.0f}" for x, y in zip(points[::2], points[1::2], strict=True)
            )
            strokes.append(names[code] + " ".join(pairs))
    return (
        f'<svg role="img" aria-label="{html.escape(latex)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="width:{width / 100:.2f}em;height:{height / 100:.2f}em;vertical-align:{bottom / 100:.2f}em">'
        f'<path d="{"".join(strokes)}"/></svg>'
    )
