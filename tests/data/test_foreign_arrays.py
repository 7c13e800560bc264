"""Arrays of other programs: under other names, with other labels and of other ranges, read right or named."""

from __future__ import annotations

import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged
from numpy.typing import NDArray

from dinit.data import DATASETS
from dinit.data.arrays import NpzImages
from dinit.evaluation.samples import read_samples

BYTES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
PIXELS = BYTES.transpose(0, 3, 1, 2) / 127.5 - 1
LABELS = np.arange(12) % 3


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def opened(path: Path, **options: Any) -> tuple[NpzImages, list[str]]:
    """The data set, and the warnings that opening it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = DATASETS.create({"name": "npz", "path": str(path), **options})
    assert isinstance(data, NpzImages)
    messages = [str(one.message) for one in caught]
    assert all(str(path) in message and "\n" not in message for message in messages)
    return data, messages


def images_of(data: NpzImages) -> NDArray:
    return np.stack([data.image(k).numpy() for k in range(len(data))])


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images", "labels"),
        ("arr_0", "arr_1"),
        ("images", "label"),
        ("x", "y"),
        ("X", "Y"),
        ("data", "targets"),
        ("data", "classes"),
        ("imgs", "target"),
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("image", "class_id"),
        ("samples", "cls"),
    ],
)
def test_arrays_of_usual_names_are_read(tmp_path: Path, image: str, label: str) -> None:
    data, messages = opened(write(tmp_path / "a.npz", **{image: BYTES, label: LABELS}))
    assert (data.labels.tolist(), data.class_names) == (LABELS.tolist(), ("0", "1", "2"))
    assert np.allclose(images_of(data), PIXELS, atol=1e-6)
    assert messages == []


LABEL_FORMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a column": (LABELS[:, None], ("0", "1", "2")),
    "a row": (LABELS[None], ("0", "1", "2")),
    "one-hot": (np.eye(3)[LABELS], ("0", "1", "2")),
    "one-hot bytes": (np.eye(3, dtype=np.uint8)[LABELS], ("0", "1", "2")),
    "one-hot booleans": (np.eye(3, dtype=bool)[LABELS], ("0", "1", "2")),
    "whole floats": (LABELS.astype(np.float32), ("0", "1", "2")),
    "unsigned": (LABELS.astype(np.uint8), ("0", "1", "2")),
    "words": (np.array(["ant", "bee", "cat"])[LABELS], ("ant", "bee", "cat")),
    "words of bytes": (np.array([b"ant", b"bee", b"cat"])[LABELS], ("ant", "bee", "cat")),
    "words of numbers": (np.array(["0", "1", "2"])[LABELS], ("0", "1", "2")),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_labels_of_every_form_are_the_same_classes(tmp_path: Path, form: str) -> None:
    labels, names = LABEL_FORMS[form]
    data, messages = opened(write(tmp_path / "a.npz", images=BYTES, labels=labels))
    assert (data.labels.tolist(), data.class_names, messages) == (LABELS.tolist(), names, [])
    pack = write(tmp_path / "pack.npz", arr_0=BYTES, arr_1=labels)
    found = read_samples(pack, names).labels
    assert found is not None
    assert found.tolist() == LABELS.tolist()


def test_booleans_are_two_classes(tmp_path: Path) -> None:
    data, messages = opened(write(tmp_path / "a.npz", images=BYTES, labels=LABELS == 1))
    assert (data.labels.tolist(), data.num_classes, messages) == ((LABELS == 1).tolist(), 2, [])


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS + 1, {}, r"1 of 4 classes have no image \('0'; labels are 1 .. 3\).*stored from 0"),
        (LABELS * 2, {}, r"2 of 5 classes have no image \('1', '3';"),
        (np.where(LABELS == 2, 255, LABELS), {}, r"253 of 256 .*\('2', '3', '4', '5', '6', ….*is 255 one\?"),
        (np.eye(4)[LABELS], {}, r"1 of 4 classes have no image \('3';"),
        (LABELS, {"class_names": ["a", "b", "c", "d"]}, r"no image \('d';.*num_classes=4 states"),
    ],
)
def test_classes_without_an_image_are_named(tmp_path: Path, labels: Any, options: dict, message: str) -> None:
    path = write(tmp_path / "a.npz", images=BYTES, labels=labels)
    data, messages = opened(path, **options)
    assert len(messages) == 1
    assert re.search(message, messages[0])
    assert opened(path, **options, num_classes=data.num_classes)[1] == []  # as the message has it
    if labels is not LABELS and labels.ndim == 1 and labels.min() == 1:
        assert opened(write(path, images=BYTES, labels=labels - 1))[1] == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:7], r"labels must have the shape \(12,\).* got \(7,\)"),
        (np.zeros((12, 2)), "one-hot rows; got"),
        (np.random.default_rng(0).random((12, 3)), "one-hot rows"),
        (LABELS + 0.25, "labels must be integers 0, 1, 2, …, got 0.25"),
        (np.where(LABELS == 2, np.nan, LABELS), "labels must be integers .* got nan"),
        (LABELS - 1, ">= 0, got -1 for 4 of 12 images"),
        (LABELS + 2**40, r"largest label is 1099511627778: images of a label"),
        (LABELS.astype(np.complex64), "labels must be integers"),
        (np.array(7), r"shape \(12,\)"),
        (np.array(["a", None, 3] * 4, dtype=object), "the array 'labels' of .* cannot be read .*allow_pickle"),
        (np.array(["1", "bee", "2"])[LABELS], "all be whole numbers, or all names.* 'bee'"),
        (np.array([b"\xff", b"a", b"b"])[LABELS], "UTF-8"),
    ],
)
def test_labels_that_mean_nothing_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        opened(write(tmp_path / "a.npz", images=BYTES, labels=labels))
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "options", "labels", "message"),
    [
        ({"images": BYTES, "kind": LABELS}, {}, None, "arrays that are not used: kind; label='NAME' takes one"),
        ({"images": BYTES, "kind": LABELS}, {"label": "kind"}, LABELS, None),
        ({"images": BYTES, "labels": LABELS, "y": LABELS}, {}, LABELS, "not used: y$"),
        ({"images": BYTES, "labels": LABELS, "mean": BYTES[0]}, {}, LABELS, "not used: mean$"),
        ({"images": BYTES, "labels": LABELS}, {"label": "none"}, None, None),
        ({"pictures": BYTES, "labels": LABELS}, {"image": "pictures"}, LABELS, None),
        (
            {"x_train": BYTES, "x_test": BYTES[:2], "y_train": LABELS, "y_test": LABELS[:2]},
            {"image": "x_train"},
            LABELS,
            "not used: x_test, y_test$",
        ),
    ],
)
def test_what_a_file_has_besides_is_named(
    tmp_path: Path, arrays: dict, options: dict, labels: Any, message: str | None
) -> None:
    data, messages = opened(write(tmp_path / "a.npz", **arrays), **options)
    assert data.labels.tolist() == ([0] * 12 if labels is None else labels.tolist())
    assert data.num_classes == (0 if labels is None else 3)
    assert len(messages) == (message is not None)
    assert message is None or re.search(message, messages[0])


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": BYTES, "data": BYTES}, {}, "x, data, each of which may be the images; image='x' takes one"),
        ({"images": BYTES, "y": LABELS, "targets": LABELS}, {}, "may be the labels; label='y' takes one"),
        ({"images": BYTES, "fine_labels": LABELS, "coarse_labels": LABELS}, {}, "label='fine_labels' takes one"),
        ({"pictures": BYTES}, {}, "has the arrays pictures; wanted.*image='NAME'"),
        ({"images": BYTES}, {"label": "y"}, "has the arrays images; got label='y'"),
        ({"images": BYTES}, {"image": "x"}, "has the arrays images; got image='x'"),
    ],
)
def test_where_two_arrays_may_be_meant_the_option_is_named(
    tmp_path: Path, arrays: dict, options: dict, message: str
) -> None:
    path = write(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        opened(path, **options)
    if "takes one" in message:  # the advice works
        option, name = message.split("; ")[-1].removesuffix(" takes one").split(" ")[-1].split("=")
        assert len(opened(path, **{option: name.strip("'")})[0]) == 12


def test_labels_of_a_npy_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x_train.npy", BYTES)
    np.save(tmp_path / "y_train.npy", LABELS)
    np.save(tmp_path / "other.npy", LABELS)
    data, messages = opened(tmp_path / "x_train.npy")
    assert data.num_classes == 0
    assert "y_train.npy in the same folder is not used; label='y_train.npy' takes it" in messages[0]
    data, messages = opened(tmp_path / "x_train.npy", label="y_train.npy")
    assert (data.labels.tolist(), messages) == (LABELS.tolist(), [])
    assert opened(tmp_path / "x_train.npy", label="none")[1] == []
    for options, message in (
        ({"label": "y"}, "name of a .npy in the folder"),
        ({"image": "x"}, "which is for a .npz"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / "x_train.npy", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 10**12}, "num_classes must be a whole number in 1 .. 10000000"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"num_classes": "3"}, "num_classes must be .* got '3'"),
        ({"num_classes": 3.0}, "num_classes must be .* got 3.0"),
        ({"num_classes": True}, "num_classes must be .* got True"),
        ({"class_names": "abc"}, "class_names must be a list of .*, got 'abc'"),
        ({"class_names": [None, "b", "c"]}, "class_names must be a list of "),
        ({"class_names": ["a", "b"]}, "largest label is 2, out of range for 2"),
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(write(tmp_path / "a.npz", images=BYTES, labels=LABELS), **options)


def test_names_that_yaml_reads_as_numbers_are_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", images=BYTES, labels=LABELS)
    assert opened(path, class_names=[2024, 7, "x"])[0].class_names == ("2024", "7", "x")


FLOATS = BYTES / 255
RANGES: dict[str, tuple[NDArray, Any, int]] = {  # array, stated range, number of warnings
    "bytes": (BYTES, None, 0),
    "bytes, stated": (BYTES, "0..255", 0),
    "-1 .. 1": ((FLOATS * 2 - 1).astype(np.float32), None, 0),
    "0 .. 1": (FLOATS.astype(np.float32), None, 1),
    "0 .. 1, stated": (FLOATS, "0..1", 0),
    "0 .. 1, channels first": (FLOATS.transpose(0, 3, 1, 2).astype(np.float64), None, 1),
    "-0.5 .. 0.5": (FLOATS - 0.5, None, 1),
    "-0.5 .. 0.5, stated": (FLOATS - 0.5, "-0.5..0.5", 0),
    "0 .. 255 floats": (FLOATS * 255, "0..255", 0),
    "16 bits": (BYTES.astype(np.uint16) * 257, "0..65535", 0),
    "whole numbers": (BYTES.astype(np.int64), "0..255", 0),
    "whole numbers, a pair": (BYTES.astype(np.int16), [0, 255], 0),
}


@pytest.mark.parametrize("name", RANGES)
def test_every_range_is_read_as_the_same_pixels(tmp_path: Path, name: str) -> None:
    images, stated, count = RANGES[name]
    options = {} if stated is None else {"value_range": stated}
    data, messages = opened(write(tmp_path / "a.npz", images=images, labels=LABELS), **options)
    assert np.allclose(images_of(data), PIXELS, atol=1e-6)
    assert len(messages) == count
    assert np.array_equal(data.uint8_images().numpy(), BYTES.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32])
def test_masks_of_0_and_1_are_black_and_white(tmp_path: Path, dtype: Any) -> None:
    data, messages = opened(write(tmp_path / "a.npz", images=(BYTES[..., 0] > 127).astype(dtype)))
    assert np.array_equal(images_of(data)[:, 0], np.where(BYTES[..., 0] > 127, 1.0, -1.0))
    assert len(messages) == (dtype is not np.bool_)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES // 16, "largest value of all its uint8 images is 15: almost black"),
        (FLOATS - 0.1, r"from -0.1 to 0.9, and -1 .. 1 is taken"),
        (FLOATS * 0.3 - 0.2, r"-1 .. 1 is taken"),
        (FLOATS * 0, r"from 0 to 0, and -1 .. 1"),
        (-FLOATS, r"from -1 to -?0, and -1 .. 1"),
    ],
)
def test_a_range_in_doubt_is_named(tmp_path: Path, images: NDArray, message: str) -> None:
    path = write(tmp_path / "a.npz", images=images)
    _, messages = opened(path)
    assert len(messages) == 1
    assert re.search(message + r".*; value_range='LOW..HIGH' states another range", messages[0])
    low, high = float(images.min()), float(images.max())
    assert opened(path, value_range=[low, high + (low == high)])[1] == []


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (FLOATS * 255, {}, r"from 0 to 255 .*value_range='0..255'"),
        (np.where(BYTES == 7, np.nan, FLOATS), {}, r"NaN or infinity in image \d+ of"),
        (np.where(BYTES == 7, np.inf, FLOATS), {"value_range": "0..1"}, "NaN or infinity"),
        (BYTES.astype(np.uint16) * 257, {}, r"got uint16 with values from 0 to 65535.*value_range"),
        (BYTES.astype(np.int64), {}, r"got int64 with values from 0 to 255"),
        (BYTES, {"value_range": "0..1"}, "value_range is 0 .. 1, but the values of .* from 0 to 255"),
        (BYTES, {"value_range": "1..0"}, "must be 'LOW..HIGH'"),
        (BYTES, {"value_range": "bytes"}, "must be 'LOW..HIGH'.* got 'bytes'"),
        (BYTES, {"value_range": [0, float("inf")]}, "must be 'LOW..HIGH'"),
        (BYTES, {"value_range": 255}, "value_range must be .*, got 255"),
        (BYTES.astype(np.complex64), {}, "got complex64"),
        (BYTES.astype("U3"), {}, "got <U3"),
    ],
)
def test_ranges_that_cannot_be_are_refused(tmp_path: Path, images: NDArray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(write(tmp_path / "a.npz", images=images), **options)


def test_the_range_is_of_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", images=FLOATS)
    prints = {opened(path, value_range=one)[0].fingerprint() for one in ("0..1", "-1..1", "-3..1")}
    assert len(prints) == 3
    assert opened(path)[0].fingerprint() == opened(path, value_range="0..1")[0].fingerprint()


@pytest.mark.parametrize(
    ("arrays", "labels", "message"),
    [
        ({"arr_0": BYTES, "y": LABELS}, LABELS, None),
        ({"images": BYTES, "label": LABELS[:, None]}, LABELS, None),
        ({"arr_0": BYTES, "mu": LABELS, "sigma": LABELS}, None, None),
        ({"arr_0": BYTES // 255}, None, "largest value of all images is 1, and 0 .. 255"),
        ({"arr_0": BYTES // 10}, None, "largest value of all images is 25"),
    ],
)
def test_packs_of_samples(tmp_path: Path, arrays: dict, labels: Any, message: str | None) -> None:
    path = write(tmp_path / "a.npz", **arrays)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = read_samples(path)
    found = next(iter(arrays.values()))
    assert np.array_equal(read.images[0:12].numpy(), found.transpose(0, 3, 1, 2))
    assert (None if read.labels is None else read.labels.tolist()) == (None if labels is None else labels.tolist())
    assert len(caught) == (message is not None)
    assert message is None or message in str(caught[0].message)


def test_a_changed_byte_of_a_large_pack_is_noticed(tmp_path: Path) -> None:
    """The pack is mapped and not read through numpy, which would compare the checksum."""
    images = np.random.default_rng(1).integers(0, 256, (90, 16, 16, 3), dtype=np.uint8)
    path = write(tmp_path / "a.npz", arr_0=images)
    content = bytearray(path.read_bytes())
    content[60_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as numpy arrays \(Bad CRC"):
        read_samples(path)


def restructured(path: Path) -> list[tuple[str, Callable[[], Any]]]:
    """Edits of the zip's own structure."""
    good = {"images": BYTES, "labels": LABELS}

    def member(name: str, content: bytes) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)

    def plain(**arrays: Any) -> Callable[[], Any]:
        return lambda: write(path, **{**good, **arrays})

    return [
        ("a member that is no array", lambda: (write(path, **good), member("README.txt", b"hello"))),
        ("an empty member", lambda: (write(path, **good), member("mask.npy", b""))),
        ("images of nothing", lambda: (write(path, labels=LABELS), member("images.npy", b""))),
        ("a folder", lambda: (write(path, **good), member("more/", b""))),
        ("no member", lambda: zipfile.ZipFile(path, "w").close()),
        ("a folder in place of the file", lambda: (path.unlink(missing_ok=True), path.mkdir())),
        ("images of one dimension", plain(images=LABELS)),
        ("images of five", plain(images=BYTES[None])),
        ("a structured dtype", plain(images=np.zeros(12, dtype=[("a", "u1", (8, 8, 3))]))),
        ("objects", plain(images=np.array([None] * 12, dtype=object))),
        ("times", plain(images=BYTES.astype("M8[s]"))),
        ("a column of words", plain(labels=np.array([["a"], ["b"]] * 6))),
        ("labels of three dimensions", plain(labels=LABELS[None, None])),
        ("the wrong byte order", plain(labels=LABELS.astype(">i4"))),
        ("Fortran order", plain(images=np.asfortranarray(BYTES))),
        ("labels of nothing", plain(labels=np.zeros(0))),
    ]


@pytest.mark.parametrize("reader", ["npz", "pack"])
def test_sixty_damaged_files_are_read_right_or_refused(tmp_path: Path, reader: str) -> None:
    good = write(tmp_path / "good.npz", images=BYTES, labels=LABELS).read_bytes()
    path = tmp_path / "a.npz"
    edits: list[tuple[str, Callable[[], Any]]] = [
        (what, lambda content=content: path.write_bytes(content)) for what, content in damaged(3, good)
    ]
    read = refused = 0
    for what, edit in edits + restructured(path):
        if path.is_dir():
            shutil.rmtree(path)
        edit()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if reader == "npz":
                    data = NpzImages(path)
                    images, labels = data.uint8_images().numpy(), data.labels.tolist()
                else:
                    pack = read_samples(path)
                    images = pack.images[0 : len(pack.images)].numpy()
                    labels = None if pack.labels is None else pack.labels.tolist()
        except (ValueError, OSError) as error:
            refused += 1
            assert path.name in str(error), what
            assert 10 < len(str(error)) < 1200, what
            assert str(error).count("\n") < 10, what
            continue
        read += 1
        assert np.array_equal(images, BYTES.transpose(0, 3, 1, 2)), what
        assert labels == LABELS.tolist() or "words" in what or caught, what
    assert refused >= 40
    assert read >= 4
