"""Tars of other programs: links, other formats, other labels, read right or named."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged
from PIL import Image

from dinit.data.tar_index import SUFFIX, read_index
from dinit.data.webdataset import WebDataset

Member = tuple[str, Any]  # name, and bytes, or ("hard" | "soft", target), or "folder"


def picture(number: int, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(stream, kind)
    return stream.getvalue()


def number_of(data: WebDataset, row: int) -> int:
    return round((float(data.image(row)[0, 0, 0]) + 1) * 127.5)


def write(path: Path, members: Sequence[Member], form: int = tarfile.GNU_FORMAT) -> Path:
    for file in (path, path.with_name(path.name + SUFFIX)):
        file.unlink(missing_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                continue
            info.type = tarfile.DIRTYPE
            if isinstance(content, tuple):
                info.type = {"hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE}[content[0]]
                info.linkname = content[1]
            tar.addfile(info)
    return path


def opened(path: Path, **options: Any) -> tuple[WebDataset, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = WebDataset(path, size=8, **options)
    messages = [str(one.message) for one in caught]
    assert all(str(path) in message and "\n" not in message for message in messages)
    return data, messages


def three(suffix: str = "png", part: str = "cls", values: Sequence[str] = ("0", "1", "2")) -> list[Member]:
    """Three samples of the pictures 0, 1, 2."""
    kind = {"jpg": "jpeg", "JPG": "jpeg", "tif": "tiff", "PNG": "png", "image.png": "png"}.get(suffix, suffix)
    found: list[Member] = []
    for k, value in enumerate(values):
        found += [(f"{k}.{suffix}", picture(k, kind)), (f"{k}.{part}", value.encode())]
    return found


def by(replaced: dict[str, Any], members: list[Member]) -> list[Member]:
    return [(name, replaced.get(name, content)) for name, content in members]


def field(name: str, *values: Any) -> list[str]:
    return [json.dumps({name: value, "width": 8}) for value in values]


RIGHT: dict[str, tuple[list[Member], dict[str, Any]]] = {
    "plain": (three(), {}),
    "upper case": (three("PNG"), {}),
    "bmp": (three("bmp"), {}),
    "tiff": (three("tif"), {}),
    "gif": (three("gif"), {}),
    "numbers in txt": (three(part="txt"), {}),
    "numbers in .label": (three(part="label"), {}),
    "numbers in .class": (three(part="class"), {}),
    "a newline, a space, a mark, a zero byte": (three(values=("0\n", " 1 ", "\ufeff2", "0\0"))[:6], {}),
    "whole numbers with a point": (three(values=("0.0", "1.0", "2.0")), {}),
    "json": (three(part="json", values=field("label", 0, 1, 2)), {}),
    "json floats": (three(part="json", values=field("label", 0.0, 1.0, 2.0)), {}),
    "json numbers as words": (three(part="json", values=field("cls", "0", "1", "2")), {}),
    "json under another name": (three(part="json", values=field("class_id", 0, 1, 2)), {}),
    "json that is the number": (three(part="json", values=("0", "1", "2")), {}),
    "nested json": (three(part="json", values=field("a", {"b": 0}, {"b": 1}, {"b": 2})), {"label": "a.b"}),
    "a field with a dot": (three(part="json", values=field("a.b", 0, 1, 2)), {"label": "a.b"}),
    "one kind with a dot": (three("image.png", values=("0", "1", "2")), {}),
    "a label with a dot": (three(part="label.txt"), {"label": "label.txt"}),
    "hard link": (by({"1.png": ("hard", "x.bin")}, [("x.bin", picture(1)), *three()]), {}),
    "symbolic link": (by({"1.png": ("soft", "x.bin")}, [*three(), ("x.bin", picture(1))]), {}),
    "symbolic link from a folder": (
        [("d/0.png", ("soft", "../more/a")), ("d/0.cls", b"0"), *three()[2:], ("more/a", picture(0))],
        {},
    ),
    "a link to a link": (
        by({"1.png": ("soft", "a")}, [*three(), ("a", ("hard", "./b")), ("b", picture(1))]),
        {},
    ),
    "a linked label": (by({"2.cls": ("hard", "x")}, [("x", b"2"), *three()]), {}),
    "folders, ./ and what macOS adds": (
        [
            ("./", "folder"),
            *((f"./{name}", one) for name, one in three()),
            ("._0.png", b""),
            ("__MACOSX/1.png", b""),
        ],
        {},
    ),
    "long names": ([("n" * 150 + f"/{'m' * 120}{name}", one) for name, one in three()], {}),
    "names of other letters": ([(f"ä/猫{name}", one) for name, one in three()], {}),
}
LEFT = {"hard link", "symbolic link", "symbolic link from a folder", "a link to a link", "a linked label"}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", RIGHT)
def test_samples_are_read_whatever_wrote_them(tmp_path: Path, name: str, form: int) -> None:
    members, options = RIGHT[name]
    data, messages = opened(write(tmp_path / "a.tar", members, form), **options)
    assert data.labels.tolist() == [0, 1, 2]
    assert data.class_names == ("0", "1", "2")
    assert [number_of(data, k) for k in range(3)] == pytest.approx([0, 1, 2], abs=0)
    assert (messages == []) is (name not in LEFT)
    assert opened(tmp_path / "a.tar", **options)[0].labels.tolist() == [0, 1, 2]  # by the kept index


def words(*values: str) -> list[Member]:
    return three(part="txt", values=values)


ABC = ["0", "1", "2"]
LONELY = r"samples without a picture \(1, such as '%s'\)"
USED: list[tuple[list[Member], dict[str, Any], list[str], str | None]] = [
    (words("cat", "dog", "cat", "dog"), {}, ["cat", "dog"], None),
    (words("cat", "dog", "owl"), {"label": "txt"}, ["cat", "dog", "owl"], None),
    (words("a cat on a mat", "a dog", "no"), {}, [], r"taken without labels: label='txt' takes .*label='none'"),
    (words("a cat", "a dog", "no"), {"label": "none"}, [], None),
    (words("2024", "7", "2024"), {"class_names": [7, 2024]}, ["7", "2024"], None),
    (words("18-25", "60+", "18-25", "60+"), {}, ["18-25", "60+"], None),
    (three(part="json", values=("[1]", "[2]", "[3]")), {}, [], "taken without labels: label='none' states"),
    ([*three(), ("9.png", picture(9)), ("9.cls", b"1")], {}, ABC, None),
    ([*three(), ("2.seg.png", picture(9))], {}, ABC, r"\.seg\.png \(1, such as '2.seg.png'\)"),
    ([*three(), ("3.cls", b"1")], {}, ABC, LONELY % "3.cls"),
    ([*three(), ("3.heic", b"x"), ("3.cls", b"1")], {}, ABC, LONELY % "3.heic"),
    ([*three(), ("README", b"x"), (".a", b"x")], {}, ABC, r"hidden or of no kind \(2, such as 'README'\)"),
    ([*three(), ("3.png", ("soft", "/data/3.png"))], {}, ABC, r"links to what .* not hold \(1, such as '3.png'\)"),
    ([*three(), ("3.png", ("soft", "3.png"))], {}, ABC, r"links to what .* not hold \(1"),
    (three(part="json", values=field("text", "x", "y", "z")), {}, [], r"fields 'text', 'width' of the \.json"),
    (three(part="json", values=field("a", {"b": 0}, {"b": 1}, {"b": 2})), {}, [], "the fields 'a.b', 'width'"),
    ([*three(), ("2.json", b"{}"), ("2.txt", b"a")], {}, ABC, r"\.json \(1, such as '2.json'\), \.txt \(1"),
    ([*three(), ("2.tif", picture(9, "tiff")), ("3.tif", picture(1, "tiff"))], {}, ABC, LONELY % "3.tif"),
    (three(values=("1", "2", "3")), {}, ["0", "1", "2", "3"], r"1 of 4 classes .* \('0';.*stored from 0"),
    (three(values=("0", "1", "255")), {}, [str(k) for k in range(256)], r"253 of 256 classes.*is 255 one\?"),
    (three(values=("0", "1", "255")), {"num_classes": 256}, [str(k) for k in range(256)], None),
]


@pytest.mark.parametrize(("members", "options", "classes", "message"), USED)
def test_what_is_not_used_is_counted_and_named(
    tmp_path: Path, members: list[Member], options: dict, classes: list[str], message: str | None
) -> None:
    data, messages = opened(write(tmp_path / "a.tar", members), **options)
    assert list(data.class_names) == classes
    assert len(messages) == (message is not None)
    assert message is None or re.search(message, messages[0])


def test_the_advice_of_a_set_without_labels_works(tmp_path: Path) -> None:
    values = field("a", {"id": 0}, {"id": 1}, {"id": 2})
    path = write(tmp_path / "a.tar", three(part="json", values=values))
    assert opened(path, label="a.id")[0].labels.tolist() == [0, 1, 2]
    assert opened(path, label="none")[1] == []
    path = write(tmp_path / "b.tar", words("a cat", "a dog", "no"))
    assert opened(path, label="txt")[0].num_classes == 3


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([*three(), ("3.png", picture(3))], {}, r"1 of 4 samples have no \.cls, as '3'"),
        ([*three(), ("3.png", b""), ("3.cls", b"0")], {}, "1 pictures of .* are empty, the first that of .* '3'"),
        ([("1.5.png", picture(1)), ("1.6.png", picture(2))], {}, r"it has '1\.5\.png', but .* at the first dot"),
        ([("0.heic", b"x"), ("0.cls", b"0")], {}, r"no images; wanted: members such as .*; it has '0\.heic'"),
        ([*three()[:2], ("0.png", picture(2))], {}, "has the member '0.png' twice"),
        (three(values=("0", "1", "cat")), {}, "all be whole numbers, or all names of classes; among them is 'cat'"),
        (three(values=("0", "1", "-1")), {}, r"labels must be >= 0, got -1 for 1 of 3"),
        (three(values=("0", "1", "9" * 12)), {}, "the largest label is 999999999999: images"),
        (three(values=("0", "1", "9" * 30)), {}, "labels must be integers"),
        (three(part="json", values=field("label", 0, 1, [1, 2])), {}, r"among them is \[1, 2\]"),
        (three(part="json", values=field("label", 0, 1, {"id": 2})), {}, r"among them is \{'id': 2\}"),
        (three(part="json", values=field("label", 0, 1, 1.5)), {}, "among them is 1.5"),
        (three(part="json", values=("[" * 10000,) * 3), {}, "is not JSON"),
        (three(), {"label": "txt"}, "have no field 'txt' in a .json"),
        (three(), {"label": 3}, "a.tar: label must be a text or None, got 3"),
        (three(values=("[0]", "[1]", "[2]")), {}, r"among them is '\[0\]'"),
        (three(values=("a", "b", "3 7")), {}, "among them is '3 7'"),
        (three(values=("0.5", "1.5", "2.5")), {}, "among them is '0.5'"),
        (three(values=("1e0", "2e0", "3e0")), {}, "among them is '1e0'"),
        ([("0.cls", b"0")], {}, "has no images"),
        ([], {}, "has no images"),
    ],
)  # fmt: skip
def test_samples_that_mean_nothing_are_refused(
    tmp_path: Path, members: list[Member], options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        opened(write(tmp_path / "a.tar", members), **options)
    assert (
        str(tmp_path) in str(caught.value)
        or "labels must" in message
        or "among them" in message
        or "label is" in message
    )
    assert "a.tar" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", three())
    content = bytearray(path.read_bytes())
    content[156] = ord("S")  # GNU's type of a sparse file
    content[386:410] = b"00000000000\0" + f"{len(picture(0)):011o}".encode() + b"\0"
    content[483:495] = f"{len(picture(0)):011o}".encode() + b"\0"
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sparse member '0\.png'; make it again without --sparse"):
        opened(path)


def test_tars_that_are_compressed_hidden_or_deeper_are_named(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "c.tar", three())
    (tmp_path / "._a.tar").write_bytes(b"macOS")
    (tmp_path / "b.tar.gz").write_bytes(b"packed")
    rest = (
        r"1 compressed tars, such as 'b.tar.gz', have to be unpacked, 1 tars in sub-folders, such as 'more/c.tar'"
    )
    with pytest.raises(ValueError, match=f"has no tars: {rest}"):
        opened(tmp_path)
    write(tmp_path / "a.tar", three())
    data, messages = opened(tmp_path)
    assert len(data) == 3
    assert len(messages) == 1
    assert re.search(rest, messages[0])


def test_folders_in_a_tar_are_classes_where_that_is_stated(tmp_path: Path) -> None:
    members = [(f"set/{folder}/{k}.png", picture(k)) for k, folder in enumerate(("cat", "cat", "dog", "dog"))]
    path = write(tmp_path / "a.tar", members)
    data, messages = opened(path)
    assert data.num_classes == 0
    assert re.search("taken without labels: label='folder' takes the names of folders, such as 'cat'", messages[0])
    data, messages = opened(path, label="folder")
    assert (data.class_names, data.labels.tolist(), messages) == (("cat", "dog"), [0, 0, 1, 1], [])


def test_an_index_of_an_earlier_version_is_made_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", by({"1.png": ("hard", "0.png")}, three()))
    facts = path.stat()
    old = {"keys": ["0"], "offsets": [512], "lengths": [9], "cls": ["0"], "json": [None]}
    beside = path.with_name(path.name + SUFFIX)
    beside.write_text(json.dumps({"stamp": [1, facts.st_size, facts.st_mtime_ns], **old}))
    assert read_index(path).keys == ["0", "1", "2"]
    kept = json.loads(beside.read_text())
    kept["lengths"].pop()
    beside.write_text(json.dumps(kept))
    assert len(read_index(path).lengths) == 3


def test_sixty_damaged_tars_are_read_right_or_refused(tmp_path: Path) -> None:
    members = by({"1.png": ("hard", "0.png")}, [*three(), *((f"d/{name}", one) for name, one in three())])
    path = write(tmp_path / "a.tar", members)
    good = path.read_bytes()
    with tarfile.open(path) as tar:
        texts = [one.offset_data for one in tar if one.name.endswith(".cls")]
    expected = {f"{folder}{k}": (k if k != 1 or folder else 0, k) for folder in ("", "d/") for k in range(3)}
    expected["d/1"] = (1, 1)
    read = refused = 0
    for what, content in damaged(5, good):
        path.write_bytes(content)
        path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
        if len(content) == len(good) and any(content[at] != good[at] for at in texts):
            continue  # a label has no checksum, so that another digit cannot be noticed
        try:
            data, messages = opened(path)
            found = {key: (number_of(data, k), int(data.labels[k])) for k, key in enumerate(data._indexes[0].keys)}
        except ValueError as error:
            refused += 1
            assert str(error).count("\n") < 10, what
            assert path.name in str(error), what
            assert 10 < len(str(error)) < 1000, what
            continue
        read += 1
        assert found.items() <= expected.items(), what
        assert found == expected or messages or len(content) < len(good), what
    assert refused >= 20
    assert read + refused >= 50
