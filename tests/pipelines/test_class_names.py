"""Names of classes: a text means the class of that name, or is refused; never another class."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.cli.labels import ImageOptions
from dinit.data import ImageFolder
from dinit.data.class_names import sorted_names
from dinit.evaluation.samples import read_samples
from dinit.pipelines.evaluate import _numbered_as_in
from dinit.pipelines.labels import resolve_labels
from dinit.pipelines.outputs.set_files import read_labels
from dinit.pipelines.train import train
from dinit.training import parse_recipe
from dinit.training.run.folder import CLASSES, RunFolderError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Émeu") for form in ("NFC", "NFD"))
NUMBERED = ("001", "002", "003")

RIGHT: dict[str, tuple[tuple[str, ...] | None, Any, int]] = {
    "a number in full": (NUMBERED, "001", 0),
    "a position": (NUMBERED, 1, 1),
    "a position of NumPy": (NUMBERED, np.int64(2), 2),
    "a number among numbers": (tuple(map(str, range(12))), "11", 11),
    "a number that is not its position": (("1", "3", "5"), "3", 1),
    "a number beside words": (("1", "2", "cat"), "1", 0),
    "a word beside numbers": (("1", "2", "cat"), "cat", 2),
    "a position as text, among words": (("cat", "dog"), "1", 1),
    "a position as text, without names": (None, "7", 7),
    "zeros before a position, without names": (None, "007", 7),
    "a range of numbers": (("0-9", "10-19"), "0-9", 0),
    "all": (("all", "none"), "all", 0),
    "none": (("all", "none"), "none", 1),
    "spaces inside": (("polar bear", "bear"), "polar bear", 0),
    "a comma, brackets and quotes": (("a", 'tench, "Tinca" [tinca]'), 'tench, "Tinca" [tinca]', 1),
    "decomposed, for composed": (("cat", COMPOSED), DECOMPOSED, 1),
    "composed, for decomposed": (("cat", DECOMPOSED), COMPOSED, 1),
    "one of two cases": (("Cat", "cat"), "cat", 1),
}
REFUSED: dict[str, tuple[tuple[str, ...] | None, Any, str]] = {
    "no zeros": (NUMBERED, "1", "unknown class '1'; did you mean '001'?"),
    "zeros too many": (("1", "2", "3"), "01", "unknown class '01'"),
    "a position beside numbers": (("1", "2", "cat"), "0", "unknown class '0'"),
    "a position among ranges": (("0-9", "10-19"), "1", "unknown class '1'"),
    "a position among decimals": (("0.5", "1.5"), "1", "unknown class '1'"),
    "a position among signed numbers": (("-1", "+1"), "1", "unknown class '1'"),
    "zeros before a position": (("cat", "dog"), "01", "unknown class '01'"),
    "a range": (("cat", "dog"), "0-1", "unknown class '0-1'"),
    "another case": (("Cat", "dog"), "cat", "did you mean 'Cat'"),
    "digits of another script": (("cat", "dog"), "１", "unknown class"),
    "a name of two classes": (("crane", "dog", "crane"), "crane", "2 classes, numbers 0, 2; give the number"),
    "bytes": (("cat", "dog"), b"1", "whole number"),
    "a list in a text": (("cat", "dog"), "0,1", "unknown class '0,1'"),
    "blank": (("cat", "dog"), "", "unknown class ''"),
    "a huge number": (("cat", "dog"), "9" * 5000, "unknown class"),
    "a number with a point": (None, 1.0, "whole number"),
    "true": (("cat", "dog"), True, "whole number"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_the_class_of_a_label(case: str) -> None:
    names, label, number = RIGHT[case]
    count = 10 if names is None else len(names)
    assert resolve_labels(label, None, count, names) == (number,)
    assert resolve_labels([label, label], None, count, names) == (number, number)


@pytest.mark.parametrize("case", REFUSED)
def test_a_label_that_is_no_class(case: str) -> None:
    names, label, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_labels([label], None, 10 if names is None else len(names), names)


def pipe(*names: str) -> Any:
    return SimpleNamespace(num_classes=len(names), class_names=list(names))


TYPED: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "two names": (pipe("a", "b"), {"labels": "b,a"}, ["b", "a"]),
    "quoted, with a comma": (pipe("a", "b, c"), {"labels": 'a,"b, c"'}, ["a", "b, c"]),
    "whole, with a comma": (pipe("a", "b, c"), {"labels": "b, c"}, ["b, c"]),
    "quotes in a name": (pipe('5" pipe', "a"), {"labels": 'a,5" pipe'}, ["a", '5" pipe']),
    "spaces around a name": (pipe(" a ", "b"), {"labels": '" a ",b'}, [" a ", "b"]),
    "every class": (pipe("a", "b"), {"classes": ["all"]}, [0, 1]),
    "every class, by a star": (pipe("a", "all"), {"classes": ["*"]}, [0, 1]),
    "the class called all": (pipe("a", "all"), {"classes": ['"all"']}, ["all"]),
    "the label called all": (pipe("a", "all"), {"labels": "all"}, ["all"]),
    "a name of numbers": (pipe("1-5", "6"), {"classes": ["1-5", "6"]}, ["1-5", "6"]),
    "both readings, quoted": (pipe("a", "b", "a,b"), {"labels": '"a","b"'}, ["a", "b"]),
    "both readings, quoted whole": (pipe("a", "b", "a,b"), {"labels": '"a,b"'}, ["a,b"]),
}
MISTYPED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "both readings": (pipe("a", "b", "a,b"), {"labels": "a,b"}, 'quote the names, \'"a,b"\' or \'"a","b"\''),
    "all, where a class is called so": (pipe("a", "all"), {"classes": ["all"]}, "--classes '*' for every class"),
    "part of a name with a comma": (pipe("b, c", "a"), {"labels": "b, c,a"}, "quote it, '\"b, c\"'"),
    "an open quote": (pipe("a", "b"), {"labels": '"a,b'}, "cannot be read as names"),
    "blank": (pipe("a", "b"), {"labels": ""}, "between commas"),
    "a comma at the end": (pipe("a", "b"), {"labels": "a,"}, "between commas"),
}


@pytest.mark.parametrize("case", TYPED)
def test_labels_of_the_command_line(case: str) -> None:
    pipeline, options, labels = TYPED[case]
    made = ImageOptions(per_class=1, **options).of_call(pipeline)
    assert made == labels
    resolve_labels(made, None, pipeline.num_classes, pipeline.class_names)


@pytest.mark.parametrize("case", MISTYPED)
def test_labels_that_cannot_be_read(case: str) -> None:
    pipeline, options, message = MISTYPED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageOptions(per_class=1, **options).of_call(pipeline)


FILES: dict[str, tuple[bytes, list[str] | str]] = {
    "lines": (b"2\n0\n", ["2", "0"]),
    "a byte order mark and Windows' ends": (b"\xef\xbb\xbfcat\r\ndog\r\n\r\n", ["cat", "dog"]),
    "a comma in a name": (b"tench, Tinca\n1\n", ["tench, Tinca", "1"]),
    "a blank line between": (b"2\n\n0\n", "line 2 of"),
    "UTF-16": ("cat\ndog\n".encode("utf-16"), "no text in UTF-8"),
    "Latin-1": (b"\xc9meu\n", "no text in UTF-8"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_labels(case: str, tmp_path: Path) -> None:
    content, labels = FILES[case]
    (tmp_path / "labels.txt").write_bytes(content)
    if isinstance(labels, list):
        assert read_labels(tmp_path / "labels.txt") == labels
        return
    with pytest.raises(ValueError, match=labels) as caught:
        read_labels(tmp_path / "labels.txt")
    assert "labels.txt" in str(caught.value)


ORDERS = {
    "numbers": (["10", "9", "0", "11"], ["0", "9", "10", "11"]),
    "numbers with zeros": (["002", "010", "001"], ["001", "002", "010"]),
    "numbers with and without zeros": (["1", "01", "2", "10"], ["1", "01", "2", "10"]),
    "one word among numbers": (["10", "9", "cat"], ["10", "9", "cat"]),
    "words": (["b", "a10", "a9"], ["a10", "a9", "b"]),
    "decimals": (["10.5", "9.5"], ["10.5", "9.5"]),
    "decomposed": (["Zebra", DECOMPOSED, "cat"], ["Zebra", "cat", DECOMPOSED]),
    "none": ([], []),
}


@pytest.mark.parametrize("case", ORDERS)
def test_order_of_classes(case: str) -> None:
    names, ordered = ORDERS[case]
    assert sorted_names(names) == sorted_names(reversed(names)) == ordered


def images(root: Path, *names: str, count: int = 1) -> Path:
    """A folder of classes; the images of one are all of one grey, by its place among `names`."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (4, 4), (20 * place, 0, 0)).save(root / name / f"{k}.png")
    return root


def test_folders_called_by_numbers(tmp_path: Path) -> None:
    data = ImageFolder(images(tmp_path, *map(str, range(12))), size=4)
    assert data.class_names == tuple(map(str, range(12)))
    reds = [round(float(data[k][0][0, 0, 0] + 1) * 127.5) for k in range(12)]
    assert reds == [20 * k for k in range(12)]
    assert data.labels.tolist() == list(range(12))


def test_folders_in_the_other_form_of_unicode_are_the_same_classes(tmp_path: Path) -> None:
    first, second = (images(tmp_path / form, *names) for form, names in UNICODE.items())
    assert ImageFolder(first, size=4).class_names == ImageFolder(second, size=4).class_names == ("Zoo", COMPOSED)
    both = images(tmp_path / "both", COMPOSED, DECOMPOSED)
    with pytest.raises(ValueError, match="NFC and NFD"):
        ImageFolder(both, size=4)


UNICODE = {"composed": ("Zoo", COMPOSED), "decomposed": ("Zoo", DECOMPOSED)}


def test_labels_of_a_folder_of_samples(tmp_path: Path) -> None:
    folder = images(tmp_path, "2", "10", DECOMPOSED)
    read = read_samples(folder, ("2", "10", COMPOSED))
    assert read.labels is not None
    assert sorted(read.labels.tolist()) == [0, 1, 2]
    unknown = read_samples(folder, ("2", "10", "cat"))
    assert unknown.labels is None
    assert f"the sub-folder {DECOMPOSED!r} is none of the classes" in unknown.notes[0]


def test_a_pipeline_is_evaluated_by_the_names_of_its_classes() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    old = SimpleNamespace(class_names=["0", "10", "2"])
    made = _numbered_as_in(old, ("0", "2", "10"), labels)
    assert made is not None
    assert made.tolist() == [0, 2, 1, 2]
    for others in (("a", "b", "c"), ("0", "2"), ("0", "2", "2")):
        assert _numbered_as_in(old, others, labels) is labels
    assert _numbered_as_in(SimpleNamespace(class_names=None), ("0",), labels) is labels


RUN = """
name: tiny
data: {name: folder, path: "PATH", size: 4}
backbone: {name: dit, patch_size: 2, hidden_size: 8, depth: 1, num_heads: 1}
training: {steps: 2, batch_size: 2, checkpoint_every: 1, workers: 0}
tracker: null
"""


def test_a_run_goes_on_with_the_classes_that_it_was_begun_with(tmp_path: Path) -> None:
    root = images(tmp_path / "data", *map(str, range(11)))
    recipe = parse_recipe(RUN.replace("PATH", root.as_posix()))
    train(recipe, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / CLASSES).read_text()) == list(map(str, range(11)))
    for file in (tmp_path / "run" / "pipeline").glob("*.json"):
        file.unlink()  # as though the run had been stopped before its end
    train(recipe, tmp_path / "run", progress=False)
    for file in (tmp_path / "run" / "pipeline").glob("*.json"):
        file.unlink()
    (tmp_path / "run" / CLASSES).unlink()  # as 0.1.0 wrote it, with classes sorted as text
    with pytest.raises(RunFolderError, match="class 2 is '10' there, '2' now"):
        train(recipe, tmp_path / "run", progress=False)
