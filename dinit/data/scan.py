"""Picture files below a folder, and what of the folder is not used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dinit.data.images import readable_suffixes

# Files that programs and systems add, no user's data; and dinit's own.
_ADDED = {"thumbs.db", "desktop.ini", "icon\r", "manifest.json"}
_MACOS = "__MACOSX"
_SHOWN = 5


@dataclass
class Unused:
    """Files that are not used: how many for each reason, with an example, and how many of each suffix.

    Attributes:
        expected: lower-case suffixes of files that are not counted.
        reasons: number of files and an example for each reason.
        suffixes: number of files that are no pictures, by suffix.
    """

    expected: frozenset[str] = frozenset()
    reasons: dict[str, tuple[int, Path]] = field(default_factory=dict)
    suffixes: Counter[str] = field(default_factory=Counter)

    def count(self, reason: str, file: Path) -> None:
        """One file more."""
        number, example = self.reasons.get(reason, (0, file))
        self.reasons[reason] = (number + 1, example)

    def text(self, root: Path) -> str:
        """What is not used, on one line; empty where everything is."""
        common = self.suffixes.most_common(_SHOWN)
        kinds = ", ".join(f"{count} {suffix or 'without one'}" for suffix, count in common)
        parts = []
        for reason, (number, example) in self.reasons.items():
            shown = example.relative_to(root) if example.is_relative_to(root) else example
            counts = f"{number}: {kinds}" if reason == NO_PICTURES else str(number)
            parts.append(f"{reason} ({counts}, such as {str(shown)!r})")
        return f"not used: {', '.join(parts)}" if parts else ""


NO_PICTURES = "files that are no pictures by their suffix"
IN_NO_CLASS = "pictures in no class folder"
_HIDDEN = "hidden pictures or folders with pictures"
_DANGLING = "links that lead nowhere"
_CIRCLE = "folders linked into themselves"
_SPECIAL = "names that are neither file nor folder"


def find_pictures(root: Path, expected: frozenset[str] = frozenset()) -> tuple[list[Path], Unused]:
    """Pictures by their suffix anywhere below `root`, sorted by path, and what is not used.

    Links to files and to folders are followed. Hidden files, and what systems add, are left out. expected: see
    `Unused`. ValueError for a folder that cannot be listed.
    """
    unused, suffixes = Unused(expected), readable_suffixes()
    return sorted(_walk(root, frozenset(), unused, suffixes)), unused


def is_added(name: str) -> bool:
    """Whether a file or folder of this name is put there by a system, such as __MACOSX, ._1.jpg and Thumbs.db."""
    return name == _MACOS or name.startswith("._") or name.lower() in _ADDED


def _walk(folder: Path, above: frozenset[tuple[int, int]], unused: Unused, suffixes: set[str]) -> Iterator[Path]:
    try:
        facts = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed ({error.strerror}); check its permissions") from error
    here = above | {(facts.st_dev, facts.st_ino)}
    for entry in entries:
        path = folder / entry.name
        suffix = path.suffix.lower()
        if is_added(entry.name):
            continue
        if entry.name.startswith("."):
            if suffix in suffixes or (entry.is_dir(follow_symlinks=False) and _any_picture(path, suffixes)):
                unused.count(_HIDDEN, path)
        elif entry.is_dir():
            inner = path.stat()
            if (inner.st_dev, inner.st_ino) in here:
                unused.count(_CIRCLE, path)
            else:
                yield from _walk(path, here, unused, suffixes)
        elif not entry.is_file():
            unused.count(_DANGLING if entry.is_symlink() else _SPECIAL, path)
        elif suffix in suffixes:
            yield path
        elif suffix not in unused.expected:
            unused.count(NO_PICTURES, path)
            unused.suffixes[suffix] += 1


def _any_picture(folder: Path, suffixes: set[str]) -> bool:
    return any(
        Path(name).suffix.lower() in suffixes and not is_added(name)
        for _, _, names in os.walk(folder)
        for name in names
    )
