"""Labels of the images that options choose: of a sheet class by class, of a set image by image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinit.cli.labels import ImageOptions

NAMED: Any = SimpleNamespace(num_classes=3, class_names=["red", "green", "blue, dark"])
UNCONDITIONAL: Any = SimpleNamespace(num_classes=0, class_names=None)

SHEETS = {
    "all classes": ({"per_class": 2}, [0, 0, 1, 1, 2, 2]),
    "all": ({"classes": ["all"], "per_class": 1}, [0, 1, 2]),
    "repeated and with commas": ({"classes": ["2,0", "red"], "per_class": 2}, ["2", "2", "0", "0", "red", "red"]),
    "a name with a comma": ({"classes": ["blue, dark"], "per_class": 1}, ["blue, dark"]),
    "labels": ({"labels": "2, 0,2"}, ["2", "0", "2"]),
    "images": ({"num_images": 3}, [None, None, None]),
}
SETS = {
    "classes of a sheet": ({"classes": ["1"], "per_class": 2}, ["1", "1"]),
    "in turn": ({"num_images": 5}, [0, 1, 2, 0, 1]),
    "some in turn": ({"num_images": 3, "classes": ["green,0"]}, ["green", "0", "green"]),
    "all in turn": ({"num_images": 4, "classes": ["all"]}, [0, 1, 2, 0]),
    "no class": ({"num_images": 2, "class_order": "none"}, [None, None]),
    "of a file": ({"labels_from": "labels.txt"}, ["2", "0", "1", "1"]),
    "the first of a file": ({"labels_from": "labels.txt", "num_images": 2}, ["2", "0"]),
    "as many as in the file": ({"labels_from": "labels.txt", "num_images": 4}, ["2", "0", "1", "1"]),
}


@pytest.mark.parametrize("case", SHEETS)
def test_labels_of_a_sheet(case: str) -> None:
    options, labels = SHEETS[case]
    assert ImageOptions(**options).of_call(NAMED) == labels


@pytest.mark.parametrize("case", SETS)
def test_labels_of_a_set(case: str, tmp_path: Path) -> None:
    options, labels = SETS[case]
    (tmp_path / "labels.txt").write_text("2\n0\n1\n1\n")
    given: dict[str, Any] = dict(options)
    if "labels_from" in given:
        given["labels_from"] = tmp_path / given["labels_from"]
    assert ImageOptions(**given).of_set(NAMED, seed=0) == labels


def test_random_classes_of_a_set_are_of_those_chosen_and_by_the_seed() -> None:
    drawn = [ImageOptions(["0,2"], num_images=40, class_order="random").of_set(NAMED, seed) for seed in (0, 0, 1)]
    assert set(drawn[0]) == {"0", "2"}
    assert drawn[0] == drawn[1] != drawn[2]


def test_more_images_than_labels_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("2\n0\n")
    with pytest.raises(ValueError, match="--num-images 3 is more than the 2 labels"):
        ImageOptions(labels_from=file, num_images=3).of_set(NAMED, seed=0)


def test_an_unconditional_pipeline_gives_one_image() -> None:
    assert ImageOptions().of_call(UNCONDITIONAL) == [None]


def test_up_to_20_classes_are_drawn_where_none_is_named() -> None:
    few, many = (SimpleNamespace(num_classes=count, class_names=None) for count in (20, 21))
    chosen: Any = ImageOptions(per_class=1)
    assert chosen.of_call(few) == list(range(20))
    with pytest.raises(ValueError, match="21 classes"):
        chosen.of_call(many)
    assert ImageOptions(["all"], per_class=1).of_call(many) == list(range(21))  # type: ignore[arg-type]
