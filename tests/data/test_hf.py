"""The `datasets` library's data sets; what can be told without it is tested without it."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.data import DATASETS
from dinit.data.folder import CorruptImages
from dinit.data.hf import HuggingFace


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), (number, 255 - number, 7), dtype=np.uint8))


def table(count: int = 6, start: int = 0, named: bool = True) -> Any:
    datasets = pytest.importorskip("datasets", reason="the extra dinit[datasets]")
    label = datasets.ClassLabel(names=["cat", "dog", "owl"]) if named else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label, "note": datasets.Value("string")})
    classes = [k % 3 for k in range(count)]
    rows = {
        "image": [picture(start + k) for k in range(count)],
        "label": classes if named else [("cat", "dog", "owl")[k] for k in classes],
        "note": ["x"] * count,
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> str:
    datasets = pytest.importorskip("datasets", reason="the extra dinit[datasets]")
    folder = str(tmp_path_factory.mktemp("hf") / "splits")
    datasets.DatasetDict({"train": table(), "test": table(4, start=100)}).save_to_disk(folder)
    return folder


def red(data: HuggingFace) -> list[int]:
    return [round((float(data[k][0][0, 0, 0]) + 1) * 127.5) for k in range(len(data))]


def test_a_saved_data_set_with_splits(splits: str) -> None:
    train = DATASETS.create("hf", path=splits, size=8)
    test = HuggingFace(splits, size=4, split="test", channels=1)
    assert red(train) == [0, 1, 2, 3, 4, 5]
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.class_names == test.class_names == ("cat", "dog", "owl")
    assert torch.equal(train[3][0], torch.tensor([3, 252, 7])[:, None, None].expand(3, 8, 8) / 127.5 - 1)
    assert test[0][0].shape == (1, 4, 4)
    assert len(test) == 4
    unconditional = HuggingFace(splits, size=8, label=None)
    assert (unconditional.num_classes, unconditional[4][1]) == (0, 0)
    assert torch.equal(pickle.loads(pickle.dumps(train))[5][0], train[5][0])


def test_a_single_table_and_words_for_classes(tmp_path: Path) -> None:
    table(named=False).save_to_disk(str(tmp_path / "words"))
    data = HuggingFace(str(tmp_path / "words"), size=8)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    turned = HuggingFace(str(tmp_path / "words"), size=8, class_names=["owl", "dog", "cat"])
    assert turned.labels.tolist() == [2, 1, 0, 2, 1, 0]
    with pytest.raises(ValueError, match=r"single table.*no split 'test'"):
        HuggingFace(str(tmp_path / "words"), size=8, split="test")


def test_a_folder_that_the_library_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "parquet").mkdir()
    table(5).to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    data = HuggingFace(str(tmp_path / "parquet"), size=8)
    assert red(data) == [0, 1, 2, 3, 4]
    assert data.class_names == ("cat", "dog", "owl")


def test_the_fingerprint_knows_contents_and_options(splits: str, tmp_path: Path) -> None:
    plain = HuggingFace(splits, size=8).fingerprint()
    assert HuggingFace(splits, size=8).fingerprint() == plain
    table(start=1).save_to_disk(str(tmp_path / "other"))
    others = [
        HuggingFace(splits, size=4).fingerprint(),
        HuggingFace(splits, size=8, split="test").fingerprint(),
        HuggingFace(splits, size=8, label=None).fingerprint(),
        HuggingFace(splits, size=8, horizontal_flip=True).fingerprint(),
        HuggingFace(str(tmp_path / "other"), size=8).fingerprint(),
    ]
    assert len({plain, *others}) == 6


def test_what_is_not_there_is_told(splits: str, tmp_path: Path) -> None:
    for options, message in (
        ({"split": "valid"}, "has the splits train, test; got split 'valid'"),
        ({"image": "picture"}, "has the columns image, label, note; got image='picture'"),
        ({"label": "class"}, r"got label='class' \(label=null for an unconditional data set\)"),
        ({"image": "note"}, "the column 'note' of .* not images"),
        ({"size": 0}, "size must be"),
        ({"channels": 2}, "channels must be"),
    ):
        with pytest.raises(ValueError, match=message):
            HuggingFace(**{"path": splits, "size": 8, **options})
    with pytest.raises(ValueError, match=r"gave no data set: .*wanted: a folder that save_to_disk wrote"):
        HuggingFace(str(tmp_path / "nowhere"), size=8)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="torn is no whole saved data set: "):
        HuggingFace(str(tmp_path / "torn"), size=8)


def test_labels_and_images_that_cannot_be_used(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra dinit[datasets]")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    broken = {"image": [{"bytes": b"no image", "path": None}, picture(1)], "label": [0, -1]}
    datasets.Dataset.from_dict(broken, features=features).save_to_disk(str(tmp_path / "broken"))
    with pytest.raises(ValueError, match="labels must be >= 0, got -1"):
        HuggingFace(str(tmp_path / "broken"), size=8)
    data = HuggingFace(str(tmp_path / "broken"), size=8, label=None)
    with pytest.raises(CorruptImages, match="broken/row 0: "):
        data[0]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"needs the library `datasets`.*pip install 'dinit\[datasets\]'"):
        DATASETS.create("hf", path="anything", size=8)
