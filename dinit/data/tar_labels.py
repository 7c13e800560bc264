"""Labels of the samples of tars: a part of the sample, or a field of its .json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname
from typing import Any

from dinit.data.tar_index import TarIndex

_PARTS = ("label", "labels", "class", "target", "category")  # read like .cls where there is none
_FIELDS = ("label", "cls", "class", "class_id", "target", "labels", "category", "category_id", "y")
_LONGEST = 64  # characters of a .txt that is a class's name and no caption
_SHOWN = 6
_NONE = "label='none' states that it has none"


@dataclass(frozen=True)
class FoundLabels:
    """Labels of the samples of several tars.

    Attributes:
        values: a number or word for each sample, in order; None where the set is unconditional.
        kind: the kind of part that they are from, such as cls; empty for none.
        remark: why there are none although the samples have parts of text; empty where there is nothing to remark.
    """

    values: list[Any] | None
    kind: str = ""
    remark: str = ""


class TarTexts:
    """Texts of all samples of several tars."""

    def __init__(self, tars: Sequence[Path], indexes: Sequence[TarIndex]) -> None:
        self._names = [(tar, key) for tar, index in zip(tars, indexes, strict=True) for key in index.keys]
        kinds = dict.fromkeys(kind for index in indexes for kind in index.texts)
        self.columns: dict[str, list[str | None]] = {
            kind: [text for index in indexes for text in index.texts.get(kind, [None] * len(index.keys))]
            for kind in kinds
        }

    def labels(self, label: str | None) -> FoundLabels:
        """Labels by the option `label` of `WebDataset`. ValueError where only some samples have one."""
        if label == "none":
            return FoundLabels(None)
        if label == "folder" and label not in self.columns:
            return FoundLabels(self._folders())
        if label is not None:
            kind = label if label in self.columns or label == "cls" else "json"
            values = self._part(label) if kind == label else self._fields([label])[label]
            missing = values.count(None)
            if missing:
                self._refuse(values, f".{label}" if kind == label else f"field {label!r} in a .json")
            return FoundLabels(values, kind)
        for kind in ("cls", "json", *_PARTS):
            columns = self._fields(_FIELDS) if kind == "json" else {kind: self._part(kind)}
            for name, values in columns.items():
                missing = values.count(None)
                if 0 < missing < len(values):
                    self._refuse(values, f"field {name!r} in a .json" if kind == "json" else f".{kind}")
                if not missing:
                    return FoundLabels(values, kind)
        return self._from_txt()

    def unused(self, kind: str) -> dict[str, tuple[int, str]]:
        """How many texts of each other kind there are, with an example."""
        found = {}
        for other, column in self.columns.items():
            rows = [row for row, text in enumerate(column) if text is not None]
            if other != kind and rows:
                found[f".{other}"] = len(rows), f"{self._names[rows[0]][1]}.{other}"
        return found

    def _from_txt(self) -> FoundLabels:
        """Numbers, or names that are short and repeated: other texts are captions."""
        for kind in ("txt", "text"):
            texts = self._part(kind) if kind in self.columns else [None]
            known = [text for text in texts if text is not None]
            numbers = all(text.isdecimal() for text in known)
            short = all(len(text) <= _LONGEST and "\n" not in text for text in known)
            if len(known) == len(texts) and (numbers or (short and 2 * len(set(known)) <= len(known))):
                return FoundLabels(list(known), kind)
        kinds = [kind for kind in ("json", "txt", "text") if any(self.columns.get(kind, []))]
        ways = [f"label={kind!r} takes the .{kind} as class names" for kind in kinds if kind != "json"]
        fields = self._known_fields()
        ways += [f"label='FIELD' takes one of the fields {fields} of the .json"] if fields else []
        folders = self._folders()
        if len(set(folders)) > 1 and 2 * len(set(folders)) <= len(folders):
            ways.append(f"label='folder' takes the names of folders, such as {folders[0]!r}")
        if not kinds and not ways:
            return FoundLabels(None)
        return FoundLabels(None, "", f"taken without labels: {', '.join([*ways, _NONE])}")

    def _folders(self) -> list[str]:
        """Name of each sample's folder in its tar; empty for none."""
        return [basename(dirname(key)) for _, key in self._names]

    def _known_fields(self) -> str:
        row = next(row for row, text in enumerate(self.columns.get("json", []) or [None]) if text or row == 0)
        content = self._json(row) if "json" in self.columns else None
        if not isinstance(content, dict):
            return ""
        paths = []
        for key, value in content.items():
            paths += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [str(key)]
        return ", ".join(repr(path) for path in paths[:_SHOWN]) + (", …" if len(paths) > _SHOWN else "")

    def _part(self, kind: str) -> list[str | None]:
        column = self.columns.get(kind, [None] * len(self._names))
        for row, text in enumerate(column):
            if text is not None and not text.isascii() and any("\udc80" <= one <= "\udcff" for one in text):
                tar, key = self._names[row]
                raise ValueError(f"the label of sample {key!r} of {tar} is no text in UTF-8: .{kind} is {text!r}")
        return [text or None for text in column]

    def _fields(self, names: Sequence[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in names}
        contents = (self._json(row) for row in range(len(self._names)))
        for content in contents if "json" in self.columns else [None] * len(self._names):
            for name, values in found.items():
                values.append(_field(content, name))
        return found

    def _json(self, row: int) -> Any:
        text = self.columns["json"][row]
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            tar, key = self._names[row]
            raise ValueError(f"the .json of sample {key!r} of {tar} is not JSON: {error}") from error

    def _refuse(self, values: list[Any], what: str) -> None:
        tar, key = self._names[values.index(None)]
        raise ValueError(
            f"{values.count(None)} of {len(values)} samples have no {what}, as {key!r} of "
            f"{tar}; give every sample one, or take label='none' for an unconditional data set"
        )


def _field(content: Any, name: str) -> Any:
    """A field of a .json, 'a.b' of a nested one; of a .json that is a number or a word, that is its label."""
    if isinstance(content, str | int | float) and name == "label":
        return content
    for part in (name,) if isinstance(content, Mapping) and name in content else name.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content
