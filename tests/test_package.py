"""Wheel and sdist: what they hold, an installed wheel; import from the parent of a clone; what commands write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKS = ("samplers", "models", "pipelines")
pytestmark = pytest.mark.timeout(900)  # seconds of a core, which a busy machine may not have
IS_CLONE = (ROOT / ".git").exists()


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command, in the environment of the tests without their PYTHONPATH."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=840, check=False, env=inherited | environment
    )


def files_of_the_project() -> list[Path]:
    """Tracked files and new ones that are not ignored; in a sdist, which has no git, all files."""
    if IS_CLONE:
        listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
        return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]
    return [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist of a copy of the project, made without a network."""
    folder = tmp_path_factory.mktemp("build")
    for path in files_of_the_project():
        copy = folder / "project" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy, follow_symlinks=False)
    done = run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), cwd=folder / "project"
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    inside = {name for name in names if not name.startswith("dinit-")}
    expected = {str(path) for path in files_of_the_project() if path.parts[0] == "dinit"}  # data files too
    assert inside == expected
    assert [name for name, count in Counter(names).items() if count > 1] == []


# Modules of the extras, without which the package has to work.
DEV = (
    "gradio",
    "mkdocs",
    "mkdocstrings",
    "pytest",
    "hypothesis",
    "nbclient",
    "nbformat",
    "ipykernel",
    "ipywidgets",
)
DEV += ("jupyterlab", "playwright", "build", "twine", "datasets", "numba")


@pytest.mark.slow
def test_sdist_holds_what_a_clone_holds_but_the_links(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        members = [member for member in sdist.getmembers() if not member.isdir()]
    names = {member.name.partition("/")[2] for member in members}
    assert not any(member.issym() for member in members)
    missing = {
        str(path)
        for path in files_of_the_project()
        if path.parts[0] not in LINKS and not (ROOT / path).is_symlink()  # a linked folder's files are there once
    } - names
    assert missing == set()
    assert {name.split("/")[0] for name in names} & set(LINKS) == set()


@pytest.mark.slow
def test_installed_wheel_generates_and_has_its_recipes(built: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target))
    done = run(*pip, str(built[0]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = """
import sys
for name in DEV:
    sys.modules[name] = None  # importing it is an error
import dinit
from dinit.training import load_recipe
pipe = dinit.Pipeline.from_pretrained("digits-dico")
print(dinit.__file__, pipe([3], seed=0, steps=2).images[0].size, *dinit.list_pipelines())
recipe = load_recipe(RECIPE)
print(recipe.name, recipe.training.steps)
"""
    packaged = ROOT / "dinit" / "recipes"
    recipe = "digits-dico" if packaged.is_dir() else str(target / "dinit/pretrained/digits-dico/recipe.yaml")
    done = run(
        sys.executable,
        "-c",
        code.replace("RECIPE", repr(recipe)).replace("DEV", repr(DEV)),
        cwd=tmp_path,
        PYTHONPATH=str(target),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()
    assert first.startswith(str(target))
    assert "(8, 8)" in first
    assert "glyphs-32" in first
    assert second == "digits-dico 5000"


# --- the folder that holds the clone -----------------------------------------------------------------------------


def test_import_works_from_the_folder_that_holds_the_clone(tmp_path: Path) -> None:
    """With an editable install: `package-dir` of pyproject.toml makes setuptools write such a .pth file.

    The clone's own folder, also named dinit, comes first on sys.path there, and is no package.
    """
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {"": "."}
    assert not (ROOT / "__init__.py").exists()
    (tmp_path / "dinit").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "__editable__.dinit.pth").write_text(f"{tmp_path / 'dinit'}\n")
    code = (
        "import sys, site\n"
        "sys.path[:] = [p for p in sys.path if not p or 'packages' in p or 'python3' in p or p.endswith('.zip')]\n"
        f"site.addsitedir({str(tmp_path / 'site')!r})\n"
        "import dinit\n"
        "print(repr(sys.path[0]), dinit.__file__, dinit.Pipeline.__name__)"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["''", str(tmp_path / "dinit" / "dinit" / "__init__.py"), "Pipeline"]


# --- metadata ----------------------------------------------------------------------------------------------------


def test_description_renders_on_a_package_index() -> None:
    """There is no raw HTML, which an index strips; pictures have absolute addresses once the project has one."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", readme, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"<(?!https?://)/?[a-z][^>]*>", re.sub(r"`[^`]*`", "", prose)) == []
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose)
    if "urls" in PYPROJECT["project"]:
        assert [image for image in images if not image.startswith("https://")] == []
    assert PYPROJECT["project"]["readme"] == "README.md"


def test_extras_that_other_texts_name_exist() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "dinit").rglob("*.py")]
    named = {
        extra.strip()
        for path in texts
        for found in re.findall(r"dinit\[([\w, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert named - extras == set()


def test_make_installs_for_the_demo_only_what_dinit_needs() -> None:
    def recipe_of(target: str) -> str:
        dry = run("make", "--dry-run", "--always-make", target, cwd=ROOT)
        assert dry.returncode == 0, dry.stderr
        return dry.stdout

    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    assert "--editable ." in recipe_of("demo")
    assert "[dev]" not in recipe_of("demo")
    for target in ("test", "quick", "lint", "docs", "notebooks", "install"):
        assert '--editable ".[dev]"' in recipe_of(target), target


# --- commands leave the clone clean ------------------------------------------------------------------------------

_OUTPUT = re.compile(r"--(?:out|to|html|corrupt-log)[ =]([^\s`']+)")
_SAVED = re.compile(r"""(?:\.save\(|out=|cache=|Path\()["']([\w.-][\w./-]*)["']""")


def outputs(text: str) -> set[str]:
    """What the commands and the Python of a page write into the current folder."""
    return {
        name.rstrip("/")
        for name in (*_OUTPUT.findall(text), *_SAVED.findall(text))
        if not name.startswith(("examples/", "dinit/", "docs/", "/", "-")) and name not in ("FOLDER", "FILE")
    }


def test_outputs_are_found() -> None:
    text = "`dinit stats x --out a.npz`\n```sh\ndinit generate x --out b/ --html c.html\n```\nimage.save('d.png')"
    assert outputs(text) == {"a.npz", "b", "c.html", "d.png"}


@pytest.mark.skipif(not IS_CLONE, reason="not a clone: there is no git")
def test_what_the_pages_commands_write_is_not_tracked() -> None:
    pages = [ROOT / "README.md", ROOT / "examples/README.md", *(ROOT / "docs").glob("*.md")]
    written = set().union(*(outputs(page.read_text(encoding="utf-8")) for page in pages))
    assert {"sheet.png", "runs/digits-dico", "samples", "coat.png"} <= written
    ignored = run("git", "check-ignore", "--no-index", *sorted(written), cwd=ROOT).stdout.split()
    assert written - set(ignored) == set()
    assert run("git", "ls-files", "-ci", "--exclude-standard", cwd=ROOT).stdout == ""
