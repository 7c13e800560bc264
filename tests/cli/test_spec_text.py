"""Options in one word: texts are taken as they are typed, everything else as YAML reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinit.cli import main
from dinit.data import DATASETS
from dinit.data.hf import HuggingFace
from dinit.data.labels import read_names
from dinit.data.webdataset import find_tars
from dinit.files import user_path
from dinit.samplers import SAMPLERS
from dinit.specs import option_kinds, parse_spec, parse_value
from dinit.training.finetune.transfer import data_spec

READ: dict[str, dict[str, Any]] = {
    "folder:path=2024,size=64": {"path": "2024", "size": 64},
    "folder:path=007,size=8": {"path": "007", "size": 8},
    "folder:path=1e3,size=8": {"path": "1e3", "size": 8},
    "folder:path=2024-01-01": {"path": "2024-01-01"},
    "folder:path=yes,check=no": {"path": "yes", "check": False},
    "folder:path=null": {"path": "null"},
    "folder:path=photos, 2024,size=8": {"path": "photos, 2024", "size": 8},
    "folder:path=a: b,size=8": {"path": "a: b", "size": 8},
    "folder:path=C:\\photos,size=8": {"path": "C:\\photos", "size": 8},
    "folder:size=8,path=last, of all": {"path": "last, of all", "size": 8},
    'folder:path="a,size=9",size=8': {"path": "a,size=9", "size": 8},
    "npz:path=a[1].npz,layout=nhwc": {"path": "a[1].npz", "layout": "nhwc"},
    "npz:path=a[1.npz,num_classes=3": {"path": "a[1.npz", "num_classes": 3},
    "npz:path=x,class-names=[001,no,1e3]": {"path": "x", "class_names": ["001", "no", "1e3"]},
    "webdataset:path=train-{000..009}.tar,label=none,size=8": {
        "path": "train-{000..009}.tar",
        "label": "none",
        "size": 8,
    },
    "hf:path=owner/name,label=null,size=8": {"path": "owner/name", "label": None, "size": 8},
    "hf:path=owner/name,split=train[:10%],config=3": {"path": "owner/name", "split": "train[:10%]", "config": "3"},
    "glyphs:characters=0123,size=16": {"characters": "0123", "size": 16},
}


@pytest.mark.parametrize("text", READ)
def test_options_of_a_data_set(text: str) -> None:
    assert DATASETS.parse(text) == {"name": text.partition(":")[0], **READ[text]}


REFUSED = {
    "folder:path=x,sise=64": "no option 'sise'; did you mean 'size'",
    "folder:path=x,size": "x,size does not exist",
    "folder:path=,size=8": "path must be a text or a path, got None",
    "folder:size=8,path": "KEY=VALUE",
    "folder:path=x,size=8,path=y": "path is given twice",
    "folder:path=x,size=008": "size must be",
    "fodler:path=x": "unknown data set 'fodler'; did you mean 'folder'",
    "npz:path=no such, file.npz": "no such, file.npz does not exist",
}


@pytest.mark.parametrize("text", REFUSED)
def test_texts_that_make_no_data_set(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(REFUSED[text])):
        DATASETS.create(text, **({} if "size=" in text or text.startswith("npz") else {"size": 8}))


VALUES = {"4": 4, "1e-3": 1e-3, "010": "010", "0": 0, "0.5": 0.5, "12:30": "12:30", "true": True, "[1, 2]": [1, 2]}


@pytest.mark.parametrize("text", VALUES)
def test_other_values(text: str) -> None:
    assert parse_value(text) == VALUES[text]
    assert type(parse_value(text)) is type(VALUES[text])


def test_an_option_of_a_sampler_given_twice() -> None:
    assert parse_spec("ddim", ["eta=0.5"]) == {"name": "ddim", "eta": 0.5}
    with pytest.raises(ValueError, match="eta is given twice"):
        parse_spec("ddim:eta=1", ["eta=0.5"])
    assert SAMPLERS.parse("dpmpp_2m:solver-order=3") == {"name": "dpmpp_2m", "solver_order": 3}


def test_kinds_of_options() -> None:
    kinds = option_kinds(HuggingFace)
    assert (kinds["path"], kinds["label"], kinds["class_names"], kinds["size"]) == (
        "text",
        "text or null",
        "texts",
        "value",
    )


def test_a_file_with_the_name_of_a_pattern_and_of_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].npz", "a,b=c.npz"):
        np.savez(name, images=np.full((2, 4, 4), 7, dtype=np.uint8))
        data = DATASETS.create(f"npz:path={name}")
        assert len(data) == 2
        assert float(data[0][0].mean()) == pytest.approx(7 / 127.5 - 1)
    for name in ("a[1].tar", "b-{0..1}.tar", "a1.tar"):
        Path(name).touch()
        assert find_tars(name) == [Path(name)]
    assert find_tars("a*.tar") == [Path("a1.tar"), Path("a[1].tar")]


def test_class_names_that_are_numbers_are_names() -> None:
    labels, names = read_names(["5", "3", "5"], None, ["5", "3"])
    assert (labels.tolist(), names) == ([0, 1, 0], ("5", "3"))
    assert read_names(["0", "1"], None, ["001", "002"])[0].tolist() == [0, 1]
    assert read_names([1, 0], None, ["5", "3"])[0].tolist() == [1, 0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name / "1.png")
    return tmp_path


def test_the_home_folder(home: Path) -> None:
    assert user_path("~/photos") == home / "photos"
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert len(DATASETS.create("folder:path=~/photos,size=4")) == 2
    assert data_spec("folder:path=~/photos,size=4", None)["path"] == "~/photos"
    with pytest.raises(SystemExit) as end:
        main(["generate", "digits-dico", "--steps", "1", "--classes", "0", "--per-class", "1", "--out=~/s.png"])
    assert end.value.code == 0
    assert (home / "s.png").is_file()
    assert not os.path.exists("~")
