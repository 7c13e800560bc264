"""The README and the pages: Python runs, commands parse, what they name exists, counts are the registries' own."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from dinit import Pipeline, _deprecate
from dinit._exports import exported_names
from dinit.cli.app import app
from dinit.samplers import GRIDS, SAMPLERS
from dinit.samplers.guidance import GUIDANCES
from dinit.specs import parse_spec
from dinit.training.recipe.model import Recipe
from dinit.training.recipe.yaml import read_yaml

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line number of its first line, code) of every fenced Python block."""
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in _FENCE.finditer(text)]


_NOT_RUN = re.compile(r"<!-- not run: [^>]{8,} -->\n$")


def marked_as_not_run(text: str, line: int) -> bool:
    """Whether a comment in front of the block that starts on `line` gives the reason why no test runs it."""
    before = "".join(text.splitlines(keepends=True)[: line - 2])
    return bool(_NOT_RUN.search(before))


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
    assert (tmp_path / "coat.png").exists()


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


# Pages whose Python other tests run, and what the others leave to the reader.
RUN_BY = {"README.md": "above", "docs/stability.md": "above", "docs/evaluation.md": "tests/evaluation"}
PREPARED = {
    "docs/samplers.md": """
import torch
pipe = Pipeline.from_pretrained("digits-dico")
denoiser, labels = pipe.denoiser(), [0, 1]
noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
""",
    "CONTRIBUTING.md": "from dataclasses import dataclass\nfrom dinit.samplers import SAMPLERS, Claims, Sampler",
}
SHORTER = {"docs/finetuning.md": ("count=1800", "count=12")}
CHECKED = {
    "docs/finetuning.md": "assert len(list(Path('letters').glob('*/*.png'))) == 12",
    "docs/diffusers_names.md": "assert len(images) == 1",
    # Of second order, as Heun's method: near it on Gaussian data, and not the same.
    "CONTRIBUTING.md": """
import torch
from dinit.diffusion import LinearFlow
from dinit.models import GaussianDenoiser
from dinit.samplers import Heun
denoiser = GaussianDenoiser(LinearFlow(), 0.0, 0.3, (1, 1, 1))
noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
apart = abs(float(Ralston().sample(denoiser, noise, 40) - Heun().sample(denoiser, noise, 40)))
assert 0 < apart < 0.001
""",
}
WITH_PYTHON = [page for page in sorted(PAGES) if python_blocks((ROOT / page).read_text(encoding="utf-8"))]


@pytest.fixture
def samplers_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone after the test."""
    SAMPLERS.names()  # all samplers are registered first
    for table in ("_entries", "_known", "_special"):
        monkeypatch.setattr(SAMPLERS, table, dict(getattr(SAMPLERS, table)))


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in RUN_BY])
def test_python_of_the_pages_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samplers_as_before: None
) -> None:
    """Blocks with a comment that says why not are left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__", "Pipeline": Pipeline}
    exec(PREPARED.get(page, ""), namespace)
    for line, code in python_blocks(text):
        if not marked_as_not_run(text, line):
            code = code.replace(*SHORTER.get(page, ("", "")))
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec", dont_inherit=True), namespace)
    exec(CHECKED.get(page, ""), namespace)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_block_is_of_a_kind_that_is_checked(page: str) -> None:
    """Python runs, YAML is read as a part of a recipe, programs of shell blocks are known; text is text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    opened = [line for number, line in enumerate(re.findall(r"^```.*$", text, re.MULTILINE)) if number % 2 == 0]
    assert {line[3:] for line in opened} <= {"python", "sh", "yaml", "text", "math", ""}
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        minimal = {"data": "digits", "backbone": "unet", "training": {"steps": 10}}
        Recipe.model_validate(minimal | read_yaml(block).data)
    for block in _SHELL.findall(text):
        shown = block.startswith("$ ")  # a session, with what the commands print
        for line in block.splitlines():
            if not shown or line.startswith("$ "):
                check_program(line.removeprefix("$ "), text)


def check_program(line: str, text: str) -> None:
    """AssertionError for a line of a shell block that calls something unknown."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[0] in ("dinit", "make", "pip", "python", "accelerate", "torchrun", "hf", "jupyter"), line
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file() or words[1].removesuffix(".py") in text, line
    elif words[0] == "python" and words[1] == "-m" and words[2].startswith("dinit"):
        assert importlib.util.find_spec(words[2]), line


def test_unknown_programs_and_unmarked_blocks_are_caught() -> None:
    for line in ("makes demo", "make nothing", "python docs/none.py", "python -m dinit.none"):
        with pytest.raises(AssertionError):
            check_program(line, "")
    text = "<!-- not run: needs a GPU -->\n```python\nx\n```\n<!-- not run: -->\n```python\nx\n```\n"
    assert [marked_as_not_run(text, line) for line, _ in python_blocks(text)] == [True, False]


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\n```\n```sh\nls\n```\n```python\ny = 2\nz = 3\n```\n"
    assert python_blocks(text) == [(3, "x = 1\n"), (9, "y = 2\nz = 3\n")]


# --- commands ----------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PAGES_OF_TEXT = sorted([*PAGES, "CHANGELOG.md"])
_SHELL = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ANY_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(?:.* -m dinit\.cli|dinit) ([a-z].*)")
# Options of other programs that the pages name.
_FOREIGN = {"--nproc_per_node", "--parity", "--text", "--per-class", "--check-weights"}


def lines_of_shell(text: str) -> list[str]:
    """Arguments of dinit in the shell blocks of a page."""
    lines = [line.strip().removeprefix("$ ") for block in _SHELL.findall(text) for line in block.splitlines()]
    return [found[1] for line in lines if (found := _CALL.match(line))]


def inline_commands(text: str) -> list[str]:
    """Arguments of dinit in the text, which may leave out what a command needs."""
    spans = re.findall(r"`([^`]+)`", _ANY_BLOCK.sub("", text).replace("\n", " "))
    return [found[1] for span in spans if (found := _CALL.fullmatch(span))]


def parsed(arguments: str) -> None:
    """Parse a command line as the command does; nothing is run."""
    name, *rest = [word for word in shlex.split(arguments, comments=True) if word not in ("...", "…")]
    with COMMANDS[name].make_context(name, rest):
        pass


@pytest.mark.parametrize("page", PAGES_OF_TEXT)
def test_commands_of_the_pages_parse(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    whole = [line for line in lines_of_shell(text) if "..." not in line]
    for line in whole:
        parsed(line)
    for line in [*inline_commands(text), *(set(lines_of_shell(text)) - set(whole))]:
        try:
            parsed(line)
        except Exception as error:
            assert type(error).__name__ == "MissingParameter", (page, line, error)  # a command by its name


@pytest.mark.parametrize("page", PAGES_OF_TEXT)
def test_options_that_the_pages_name_exist(page: str) -> None:
    known = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
    known |= {option for command in COMMANDS.values() for one in command.params for option in one.secondary_opts}
    known |= {option for one in typer.main.get_command(app).params for option in one.opts}
    scripts = [one.read_text(encoding="utf-8") for one in (ROOT / "benchmarks").glob("*.py")]
    known |= {option for one in scripts for option in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', one)}
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z][a-z_-]+)[ =`]", text))
    assert named - known - _FOREIGN == set()


@pytest.mark.parametrize("page", PAGES_OF_TEXT)
def test_samplers_grids_and_guidances_of_commands_can_be_made(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in [*lines_of_shell(text), *inline_commands(text)]:
        words = shlex.split(line, comments=True)
        for option, value in zip(words, words[1:], strict=False):  # noqa: RUF007
            if option in ("--sampler", "--grid"):
                (SAMPLERS if option == "--sampler" else GRIDS).create(parse_spec(value))
            elif option == "--guidance" and value != "none" and not re.fullmatch(r"[\d.]+", value):
                GUIDANCES.create(parse_spec(value))


def test_planted_commands_are_caught() -> None:
    assert lines_of_shell("```sh\ndinit list samplers\n$ dinit info x\nls\n```\n") == ["list samplers", "info x"]
    assert inline_commands("`dinit info x` and `accelerate launch -m dinit.cli train ...`") == [
        "info x",
        "train ...",
    ]
    for wrong in ("generate x --stepz 3", "generate x --steps three", "inform x"):
        with pytest.raises(Exception, match=r"No such option|whole number|inform"):
            parsed(wrong)


# --- counts and tables -------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_registries() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    special = [name for name in SAMPLERS if SAMPLERS.special_case_of(name) is not None]
    assert f"Samplers, {len(SAMPLERS) - len(special)} methods under {len(SAMPLERS)} names" in changes
    of_classes = [name for name in GUIDANCES if GUIDANCES[name].__module__.startswith("dinit.samplers.")]
    assert f"Guidance, {len(of_classes)} methods" in changes


def test_the_table_of_shipped_pipelines_is_true() -> None:
    """Sampler, evaluations and parameterization of the README's rows are the pipelines' own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(digits-\w+)` \| (.+?), (.+?) \| (\w+), (\d+) \|", text, re.MULTILINE)
    assert len(rows) == 5
    for name, _, parameterization, sampler, nfe in rows:
        pipe = Pipeline.from_pretrained(name)
        call = pipe.prepare([1])
        assert SAMPLERS.resolve(call.sampler.registry_name)[0].endswith(sampler.lower())  # type: ignore[attr-defined]
        assert call.sampler.nfe(call.steps) == int(nfe), name
        assert pipe.parameterization.registry_name.lower().startswith(parameterization.split()[0].lower()), name
