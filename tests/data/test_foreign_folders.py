"""Folders as users have them: links, other files, hidden ones, splits; and tables of `datasets`."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinit.data import scan
from dinit.data.folder import ImageFolder
from dinit.data.hf import HuggingFace
from dinit.evaluation.samples import read_samples
from dinit.pipelines.statistics import write_reference


def save(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(path)


def classes(root: Path) -> Path:
    """Two classes of two pictures, numbers 0 .. 3."""
    for k in range(4):
        save(root / "ab"[k // 2] / f"{k}.png", k)
    return root


def opened(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    messages = [str(one.message) for one in caught]
    assert all("\n" not in message for message in messages)
    return made, messages


def numbers(data: Any) -> list[int]:
    return [round((float(data.image(k)[0, 0, 0]) + 1) * 127.5) for k in range(len(data))]


def linked(root: Path, at: str, target: str) -> None:
    (root / at).symlink_to(target)


def written(root: Path, name: str, content: bytes = b"x") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


CASES: dict[str, tuple[Callable[[Path], Any], dict[int, int], str | None]] = {  # pictures added: number, class
    "plain": (lambda r: None, {}, None),
    "what systems add": (
        lambda r: [written(r, one) for one in ("a/Thumbs.db", "a/._0.png", ".DS_Store", "__MACOSX/a/._0.png")],
        {},
        None,
    ),
    "a manifest": (lambda r: written(r, "manifest.json", b"{}"), {}, None),
    "a linked picture": (
        lambda r: (save(r.parent / "p.png", 9), linked(r, "a/9.png", "../../p.png")),
        {9: 0},
        None,
    ),
    "a linked sub-folder": (
        lambda r: (save(r.parent / "more" / "9.png", 9), linked(r, "b/more", "../../more")),
        {9: 1},
        None,
    ),
    "a linked class": (lambda r: (save(r.parent / "c" / "9.png", 9), linked(r, "c", "../c")), {9: 2}, None),
    "deep sub-folders": (lambda r: save(r / "a" / "b" / "c" / "9.png", 9), {9: 0}, None),
    "upper case": (lambda r: save(r / "a" / "9.PNG", 9), {9: 0}, None),
    "bmp": (lambda r: save(r / "a" / "9.bmp", 9), {9: 0}, None),
    "tiff": (lambda r: save(r / "a" / "9.tif", 9), {9: 0}, None),
    "a dotted name": (lambda r: save(r / "a" / "v1.5.x.png", 9), {9: 0}, None),
    "a dangling link": (
        lambda r: linked(r, "a/9.png", "nowhere.png"),
        {},
        r"lead nowhere \(1, such as 'a/9.png'\)",
    ),
    "a folder in itself": (
        lambda r: linked(r, "a/up", "../../" + r.name),
        {},
        r"into themselves \(1, such as 'a/up'",
    ),
    "a circle of two": (lambda r: (linked(r, "a/b", "../b"), linked(r, "b/a", "../a")), {}, "into themselves"),
    "heic": (
        lambda r: written(r, "a/9.heic"),
        {},
        r"no pictures by their suffix \(1: 1 \.heic, such as 'a/9.heic'\)",
    ),
    "several kinds": (
        lambda r: [written(r, one) for one in ("a/1.heic", "b/2.HEIC", "b/x", "labels.csv")],
        {},
        r"\(4: 2 \.heic, 1 without one, 1 \.csv, such as 'a/1.heic'\)",
    ),
    "pictures in the root": (lambda r: save(r / "9.png"), {}, r"in no class folder \(1, such as '9.png'\)"),
    "a hidden picture": (lambda r: save(r / "a" / ".9.png"), {}, r"hidden pictures .* \(1, such as 'a/.9.png'\)"),
    "a hidden folder": (lambda r: save(r / ".old" / "9.png"), {}, r"hidden pictures .* \(1, such as '.old'\)"),
    "a hidden folder of nothing": (lambda r: written(r, ".git/config"), {}, None),
    "a pipe": (lambda r: os.mkfifo(r / "a" / "9.png"), {}, r"neither file nor folder \(1, such as 'a/9.png'\)"),
}


@pytest.mark.parametrize("name", CASES)
def test_folders_are_read_and_what_is_not_used_is_named(tmp_path: Path, name: str) -> None:
    root = classes(tmp_path / "root")
    edit, added, message = CASES[name]
    edit(root)
    data, messages = opened(lambda: ImageFolder(root, 8))
    found = dict(zip(numbers(data), data.labels.tolist(), strict=True))
    if name == "a circle of two":  # each class has the other's pictures too
        assert (len(data), set(found)) == (8, {0, 1, 2, 3})
    else:
        assert found == {0: 0, 1: 0, 2: 1, 3: 1, **added}
    assert len(messages) == (message is not None)
    assert message is None or re.search(rf"^{re.escape(str(root))}: not used: .*{message}", messages[0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: (r / "c").mkdir(), "no images in class 'c'"),
        (lambda r: written(r, "c/1.heic"), r"no images in class 'c'.*not used: .*1 \.heic, such as 'c/1.heic'"),
        (lambda r: written(r, "a/1.png", b"x"), r"1 image cannot be read; .*\n.*a/1.png: not an image"),
        (lambda r: written(r, "a/1.png", b""), r"1 image cannot be read"),
    ],
)
def test_folders_that_lack_pictures_are_refused(tmp_path: Path, edit: Callable[[Path], Any], message: str) -> None:
    root = classes(tmp_path / "root")
    edit(root)
    with pytest.raises(ValueError, match=message):
        ImageFolder(root, 8)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, listed = classes(tmp_path / "root"), os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(scan.os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"root/b cannot be listed \(Permission denied\); check its permissions"):
        ImageFolder(root, 8)


@pytest.mark.parametrize(
    ("folders", "message", "better"),
    [
        (["train/a", "train/b", "val/a", "val/b"], r"the classes are 'train', 'val'.*path=.*/train takes", "train"),
        (
            ["images/a", "images/b"],
            r"the classes are 'images', with .*path=.*/images takes .*'a', as classes",
            "images",
        ),
        (["train", "test"], "the classes are 'test', 'train', with all that is in them$", None),
        (["a/x", "b/y"], None, None),
        (["train_a", "b"], None, None),
        (["one"], None, None),
    ],
)
def test_splits_and_a_folder_around_the_classes_are_named(
    tmp_path: Path, folders: list[str], message: str | None, better: str | None
) -> None:
    for folder in folders:
        save(tmp_path / folder / "1.png")
    _, messages = opened(lambda: ImageFolder(tmp_path, 8))
    assert len(messages) == (message is not None)
    assert message is None or re.search(message, messages[0])
    if better:
        data, messages = opened(lambda: ImageFolder(tmp_path / better, 8))
        assert (data.class_names, messages) == (("a", "b"), [])


@pytest.mark.parametrize(
    ("edit", "labels", "message"),
    [
        (lambda r: None, [0, 0, 1, 1], None),
        (
            lambda r: written(r, "manifest.json", b'{"call": [1], "asked": 3, "picture": {"files": 7}}'),
            [0, 0, 1, 1],
            None,
        ),
        (lambda r: written(r, "manifest.json", b'{"call": {"labels": ["x", 1, 2, 3]}}'), [0, 0, 1, 1], None),
        (lambda r: written(r, "manifest.json", b"[" * 9999), [0, 0, 1, 1], None),
        (lambda r: written(r, "manifest.json", b'{"call": {"labels": [3, 2, 1, 0]}}'), [3, 2, 1, 0], None),
        (lambda r: written(r, "notes.txt"), [0, 0, 1, 1], None),
        (lambda r: written(r, "a/1.heic"), [0, 0, 1, 1], r"not used: .*1 \.heic"),
        (lambda r: linked(r, "a/9.png", "nowhere"), [0, 0, 1, 1], "lead nowhere"),
    ],
)
def test_folders_of_samples(tmp_path: Path, edit: Callable[[Path], Any], labels: list[int], message: str) -> None:
    root = classes(tmp_path / "root")
    edit(root)
    read, messages = opened(lambda: read_samples(root, ["a", "b"]))
    assert read.labels is not None
    assert read.labels.tolist() == labels
    assert read.images[0:4][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert len(messages) == (message is not None)
    assert message is None or re.search(message, messages[0])


def test_labels_of_samples_are_not_lost_without_a_word(tmp_path: Path) -> None:
    root = classes(tmp_path / "root")
    save(root / "9.png", 9)
    read = read_samples(root, ["a", "b"])
    assert read.labels is None
    assert read.notes == ("labels are not known: 1 of 5 pictures, such as 9.png, are in no sub-folder",)
    (root / "9.png").rename(root / "a" / "9.png")
    written(root, "manifest.json", b'{"call": {"labels": [0, 1]}}')
    read = read_samples(root, ["a", "b"])
    assert read.labels is not None
    assert read.labels.tolist() == [0, 0, 0, 1, 1]
    assert read.notes == ("manifest.json has 2 labels for 5 pictures; they are not used",)


def test_statistics_name_what_is_not_known(tmp_path: Path) -> None:
    for k in range(10):
        place = tmp_path / "root" / "ab"[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
    out = tmp_path / "out.npz"
    meta, messages = opened(
        lambda: write_reference(tmp_path / "root", out, features="digits-classifier", cuda=False)
    )
    assert (meta["class_names"], messages) == (["a", "b"], [])
    (tmp_path / "root" / "a" / "0.png").rename(tmp_path / "root" / "0.png")
    meta, messages = opened(
        lambda: write_reference(tmp_path / "root", out, features="digits-classifier", cuda=False)
    )
    assert meta["class_names"] == []
    assert "labels are not known: 1 of 10 pictures, such as 0.png, are in no sub-folder" in messages[0]


def table(folder: Path, labels: list[Any], kind: Any = None, images: list[Any] | None = None) -> str:
    datasets = pytest.importorskip("datasets", reason="the extra dinit[datasets]")
    pictures = [Image.new("RGB", (8, 8), (k, 255 - k, 7)) for k in range(len(labels))]
    kinds = {"words": datasets.ClassLabel(names=["a", "b", "c"])}
    feature = kinds.get(kind) or (
        datasets.Value(kind) if isinstance(kind, str) else datasets.List(datasets.Value("int64"))
    )
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": pictures if images is None else images, "label": labels}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "kind", "names", "message"),
    [
        ([0, 1, 2], "words", ("a", "b", "c"), None),
        ([0, 1, 1], "words", ("a", "b", "c"), r"1 of 3 classes have no image \('c'; labels are 0 .. 1\)"),
        ([0, 1, 2], "int64", ("0", "1", "2"), None),
        ([0.0, 1.0, 2.0], "float32", ("0", "1", "2"), None),
        ([False, True, True], "bool", ("0", "1"), None),
        (["x", "z", "y"], "string", ("x", "y", "z"), None),
        (["0", "1", "10"], "string", tuple(map(str, range(11))), "8 of 11 classes have no image"),
        ([1, 2, 3], "int64", ("0", "1", "2", "3"), "counts? from 1 have to be stored from 0"),
    ],
)
def test_labels_of_tables(tmp_path: Path, labels: list[Any], kind: str, names: tuple, message: str | None) -> None:
    path = table(tmp_path / "t", labels, kind)
    data, messages = opened(lambda: HuggingFace(path, 8))
    assert data.class_names == names
    assert data.labels.tolist() == [names.index(one) if isinstance(one, str) else int(one) for one in labels]
    assert numbers(data) == [0, 1, 2]
    assert len(messages) == (message is not None)
    assert message is None or re.search(message, messages[0])


@pytest.mark.parametrize(
    ("labels", "kind", "images", "message"),
    [
        ([0, None, 2], "int64", None, "1 of 3 images have no label, the first of them image 1"),
        ([0, None, None], "words", None, "2 of 3 images have no label"),
        ([0, -1, 2], "int64", None, "labels must be >= 0, got -1 for 1 of 3"),
        ([0.5, 1.0, 2.0], "float32", None, "among them is 0.5"),
        ([[0], [1], [2]], None, None, r"among them is \[0\]"),
        (
            [0, 1, 2],
            "int64",
            [Image.new("L", (8, 8)), None, None],
            "2 of 3 rows of .* have no image, the first of them row 1",
        ),
    ],
)
def test_tables_that_lack_labels_or_images(
    tmp_path: Path, labels: list[Any], kind: str | None, images: list[Any] | None, message: str
) -> None:
    path = table(tmp_path / "t", labels, kind, images)
    with pytest.raises(ValueError, match=message):
        HuggingFace(path, 8)


def test_pictures_of_tables_are_read_as_those_of_files_are(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra dinit[datasets]")
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:4] = 200
    frames = [Image.fromarray(stripes), Image.new("RGB", (8, 8), (9, 9, 9))]
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("gif", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("png", frames[0].transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
        ("png", Image.fromarray(stripes[..., 0].astype(np.uint16) * 257), {}),
        ("png", frames[0].quantize(2), {}),
        ("png", frames[0].convert("LA"), {}),
        ("tiff", frames[0].convert("CMYK"), {}),
    ]
    stored = []
    for kind, picture, options in pictures:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        stored.append({"bytes": stream.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": stored, "label": [k % 2 for k in range(len(stored))]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "t"))
    data = HuggingFace(str(tmp_path / "t"), 8)
    images, messages = opened(lambda: data.uint8_images())
    assert np.array_equal(images.numpy(), np.broadcast_to(stripes.transpose(2, 0, 1), images.shape))
    assert len(messages) == 1
    assert re.search(r"t/row 0: it has several frames; the first one is read", messages[0])
