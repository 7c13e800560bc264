"""Model cards: README.md of a saved folder, with the metadata that the Hub reads at its head."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CARD = "README.md"
UNKNOWN_LICENSE = "unknown"  # an identifier of the Hub; the license is for the owner of the weights to give
# The Hub has no task for class-conditional images, and lists DiT under this one.
IMAGES = "unconditional-image-generation"

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARK = "<!-- dinit card {digest}: saved again, the folder gets a new card unless this one was edited -->"
_MARKED = re.compile(r"<!-- dinit card ([0-9a-f]{16}): [^\n]* -->\n?\Z")


@dataclass(frozen=True)
class CardMetadata:
    """The head of a card. Source of the keys: the Hub's documentation of model cards.

    Args:
        tags: Free words.
        pipeline_tag: The Hub's task; None where it has none.
        library_name: What opens the folder.
        license: An identifier of the Hub, such as 'apache-2.0'; None is 'unknown'. 'other' needs a license_name,
            which is the user's to add.
        datasets: Names of the training data; characters that the Hub does not take become '-'.
        metrics: Names of what was measured.
        base_model: The Hub id of a fine-tuned model; anything else is left out.

    Raises:
        ValueError: A license that is no identifier.
    """

    tags: Sequence[str]
    pipeline_tag: str | None = IMAGES
    library_name: str = "dinit"
    license: str | None = None
    datasets: Sequence[str] = ()
    metrics: Sequence[str] = ()
    base_model: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not (isinstance(self.license, str) and _LICENSE.fullmatch(self.license)):
            raise ValueError(
                f"license = {self.license!r} is no identifier of the Hub; those are words in lower case such as "
                "'apache-2.0', 'cc-by-4.0', 'mit', 'other' or 'unknown'"
            )

    def front_matter(self) -> str:
        """YAML between two lines of ---, with a line break at its end."""
        from huggingface_hub import ModelCardData

        base = self.base_model if self.base_model and _HUB_ID.fullmatch(self.base_model) else None
        data = ModelCardData(
            base_model=base,
            datasets=_words(self.datasets) or None,
            library_name=self.library_name,
            license=self.license or UNKNOWN_LICENSE,
            metrics=_words(self.metrics) or None,
            pipeline_tag=self.pipeline_tag,
            tags=[*self.tags],
        )
        return f"---\n{data.to_yaml()}\n---\n"


def write_card(folder: Path, text: str) -> None:
    """Write README.md, unless the folder has one that is not as `write_card` left it.

    Args:
        folder: Which exists.
        text: The card. A last line is added, by which an edited card is known.
    """
    path = folder / CARD
    if path.exists() and not _is_untouched(path):
        return
    path.write_text(f"{text}\n{_MARK.format(digest=_digest(text))}\n", encoding="utf-8")


def set_license(folder: Path, license: str) -> None:
    """Put a license into the metadata of a folder's card, and leave its text as it is.

    Args:
        folder: With a card.
        license: See CardMetadata.

    Raises:
        ValueError: No identifier of the Hub.
    """
    from huggingface_hub import metadata_load, metadata_save

    CardMetadata((), license=license)  # checks it
    path = folder / CARD
    untouched = _is_untouched(path)
    metadata_save(path, {**(metadata_load(path) or {}), "license": license})
    if untouched:
        text = _MARKED.sub("", path.read_text(encoding="utf-8")).removesuffix("\n")
        path.unlink()
        write_card(folder, text)


def _is_untouched(path: Path) -> bool:
    """Whether a card is as `write_card` left it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    mark = _MARKED.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()].removesuffix("\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _words(names: Iterable[str]) -> list[str]:
    """Names in characters that the Hub takes, without repetitions."""
    cleaned = (re.sub(r"[^\w./-]+", "-", name, flags=re.ASCII).strip("-./") for name in names)
    return [*dict.fromkeys(word for word in cleaned if word)]
