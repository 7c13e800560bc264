"""Plain field English: words of our own that are gone stay gone, in code, help, errors and docs alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What was written for each, for the reader who wonders what to write in its place.
GONE = {
    r"honours": "supported_outputs",
    r"demands": "required_outputs",
    r"unheard": "ignored",
    r"so-manieth": "every n-th",
    r"passed over": "skipped",
    r"anew": "again, afresh",
    r"in_a_row": "consecutive",
    r"askew": "misaligned",
    r"told": "given, detected, inferred, reported",
    r"asked": "evaluated, called, requested",
    r"asks": "evaluates, calls, needs",
    r"hears?|heard|speaks?": "uses, sends, receives, prints",
    r"beside": "with, next to, as well as",
    r"says|said": "contains, names, reports, means",
    r"wants": "needs, takes",
    r"(network|sampling) levels": "sampling steps",
    r"chain's (first |last )?levels?": "timesteps of a chain",
    r"levels (of the|in a) (chain|grid)": "timesteps, times",
    r"without levels": "not a chain of betas",
    r"(?!256 )[0-9]+ levels": "steps; resolutions of a U-Net",
    r"for a person to read": "in words",
    r"knows|tells": "has, supports, shows, is the name of",
    r"nobody|somebody": "no process, no other reference, a user",
    r"spoken": "printed, named",
    r"puts? back": "added (noise), restored (state)",
    r"one's own": "your, a user's",
}
_WORD = re.compile("|".join(rf"\b(?:{word})\b" for word in GONE), re.IGNORECASE)
# Keys and file names of formats on disk, which stay.
_KEPT = re.compile(r'"skipped_in_a_row"|"asked"|"beside"|beside\.safetensors')


def offending(text: str) -> list[str]:
    """'line number: line' of every line with a word that is gone."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {line.strip()}" for number, line in lines if _WORD.search(_KEPT.sub("", line))]


def pages() -> list[Path]:
    found = [*(ROOT / "dinit").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.py")]
    found += [*(ROOT / "examples").glob("*.*"), *(ROOT / "examples" / "recipes").glob("*.yaml")]
    found += (ROOT / "dinit" / "pretrained").glob("*/README.md")
    return sorted([*found, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


def test_words_of_our_own_are_gone() -> None:
    files = pages()
    assert len(files) > 250
    lines = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in offending(path.read_text("utf-8"))]
    assert not lines, "\n".join(["words that are gone (tests/test_vocabulary.py says what to write):", *lines])


@pytest.mark.parametrize(
    "line",
    [
        "a step is passed over",
        "begun anew",
        "Told in advance.",
        "honours = frozenset()",
        "skips.in_a_row",
        "beside the network",
        "200 levels",
    ],
)
def test_an_offending_line_is_found(line: str) -> None:
    assert offending(f"x = 1\n{line}\n") == [f"2: {line}"]


def test_words_that_contain_one_are_left_alone() -> None:
    assert offending("the demanding janew case, 'skipped' and \"skipped_in_a_row\"") == []
