"""Every option of every data set away from its default: it changes what is read, and a recipe keeps it.

A new option needs another value in OTHER, or the test that compares the table with the code fails.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_idx
import test_latents
import test_webdataset
import yaml
from PIL import Image

from dinit.data import DATASETS, ImageData
from dinit.training import parse_recipe
from dinit.training.build import make_data

SOURCES = {  # what each data set needs; FILES stands for the folder of the fixture
    "digits": {},
    "glyphs": {"count": 40},
    "npz": {"path": "FILES/a.npz", "layout": "nhwc"},
    "folder": {"path": "FILES/a", "size": 8},
    "webdataset": {"path": "FILES/tars", "size": 8},
    "hf": {"path": "FILES/hf", "size": 8},
    "idx": {"path": "FILES/idx"},
    "latents": {"path": "FILES/latents"},
}
OTHER: dict[tuple[str, str], Any] = {
    ("digits", "split"): "test",
    ("glyphs", "split"): "test",
    ("glyphs", "size"): 64,
    ("glyphs", "count"): 41,
    ("glyphs", "characters"): "digits",
    ("glyphs", "fonts"): ["cmtt10", "DejaVuSans"],
    ("glyphs", "seed"): 1,
    ("npz", "path"): "FILES/b.npz",
    ("npz", "layout"): "nchw",
    ("npz", "num_classes"): 7,
    ("npz", "class_names"): ["a", "b", "c"],
    ("npz", "horizontal_flip"): True,
    ("npz", "image"): "x",
    ("npz", "label"): "y",
    ("npz", "value_range"): "0..300",
    ("folder", "path"): "FILES/b",
    ("folder", "size"): 4,
    ("folder", "channels"): 1,
    ("folder", "horizontal_flip"): True,
    ("webdataset", "path"): "FILES/tars/train-000.tar",
    ("webdataset", "size"): 4,
    ("webdataset", "channels"): 1,
    ("webdataset", "label"): "none",
    ("webdataset", "num_classes"): 7,
    ("webdataset", "class_names"): ["a", "b", "c"],
    ("webdataset", "horizontal_flip"): True,
    ("webdataset", "window"): 1,
    ("hf", "split"): "test",
    ("hf", "size"): 4,
    ("hf", "image"): "other",
    ("hf", "label"): None,
    ("hf", "channels"): 1,
    ("hf", "class_names"): ["x", "y", "z"],
    ("hf", "horizontal_flip"): True,
    ("idx", "path"): "FILES/idx2",
    ("idx", "split"): "test",
    ("idx", "class_names"): ["a", "b", "c"],
    ("idx", "num_classes"): 7,
    ("idx", "horizontal_flip"): True,
    ("idx", "value_range"): "0..300",
    ("latents", "path"): "FILES/latents2",
    ("latents", "sample"): False,
    ("latents", "normalization"): "autoencoder",
    ("latents", "horizontal_flip"): False,
}
SAME = {
    ("folder", "check"): "decides whether every file is read at once, and no image; test_image_folder.py has both",
    ("hf", "path"): "hf's fixtures take a second to write; the second one would be read as the first",
    ("hf", "config"): "only folders that the library reads by its own names have several; test_hf.py",
}


def options() -> list[tuple[str, str]]:
    return [(name, option) for name in DATASETS for option in inspect.signature(DATASETS[name]).parameters]


def test_every_option_has_another_value() -> None:
    assert set(options()) == set(OTHER) | set(SAME)
    assert not set(OTHER) & set(SAME)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    for name in ("a", "b"):  # of a shape that reads both ways
        images = draw.integers(0, 256, (9, 3, 3, 3), dtype=np.uint8)
        more = {"x": images[::-1], "y": np.arange(9) // 3}
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(9) % 3, **more)  # pyright: ignore
        for k in range(3):
            place = folder / name / "xyz"[k]
            place.mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / "1.png")
    for shift, name in enumerate(("idx", "idx2")):
        test_idx.write_set(folder / name, shift)
    test_webdataset.write_tars(folder / "tars", tars=5)
    for seed, name in enumerate(("latents", "latents2")):
        test_latents.write(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def hf(files: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="the extra dinit[datasets]")
    kinds = {name: datasets.Image() for name in ("image", "other")}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=["cat", "dog", "owl"])})

    def table(start: int) -> Any:
        pictures = [Image.new("RGB", (8, 8), (start + k, 255 - k, 7)) for k in range(6)]
        for picture in pictures:
            picture.paste((0, 0, 0), (0, 0, 2, 8))
        rows = {"image": pictures, "other": pictures[::-1], "label": [k % 3 for k in range(6)]}
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"train": table(0), "test": table(100)}).save_to_disk(str(files / "hf"))
    return files


def looks(data: ImageData) -> tuple[Any, ...]:
    """All that training and evaluation read of a data set, but for its fingerprint."""
    rows = range(min(len(data), 6))
    images = [np.asarray(data.sample(k, key)[0]).tobytes() for k in rows for key in (None, 0, 1, 2)]
    facts = (len(data), data.num_classes, data.class_names, data.image_size, data.channels, data.augments)
    return (facts, images, data.labels.tolist(), data.indices(0, 0, 2 * min(len(data), 100)))


@pytest.mark.parametrize(("name", "option"), sorted(OTHER))
def test_an_option_changes_what_is_read_and_is_kept_by_a_recipe(
    name: str, option: str, files: Path, request: pytest.FixtureRequest
) -> None:
    if name == "hf":
        request.getfixturevalue("hf")

    def placed(given: Any) -> Any:
        return given.replace("FILES", str(files)) if isinstance(given, str) else given

    plain = {"name": name, **{key: placed(value) for key, value in SOURCES[name].items()}}
    changed = {**plain, option: placed(OTHER[name, option])}
    made = [DATASETS.create(spec) for spec in (plain, changed, changed)]
    assert looks(made[1]) == looks(made[2])
    assert looks(made[0]) != looks(made[1])
    if (name, option) not in {("webdataset", "window"), ("webdataset", "path")}:  # orders are of no fingerprint
        assert made[0].fingerprint() != made[1].fingerprint()
    assert made[1].fingerprint() == made[2].fingerprint()
    rest = "backbone: {name: dit, patch_size: 1, hidden_size: 8, depth: 1, num_heads: 1}\ntraining: {steps: 1}\n"
    unconditional = "" if made[1].num_classes else "label_dropout: 0\n"
    recipe = parse_recipe(
        f"data: {yaml.safe_dump(changed, default_flow_style=True, width=999)}{rest}{unconditional}"
    )
    again = parse_recipe(yaml.safe_dump(recipe.to_dict()))
    assert again.data.spec() == changed
    assert looks(make_data(again)) == looks(made[1])
