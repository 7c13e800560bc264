"""WebDataset's tars: what is read, in which order, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.data import DATASETS
from dinit.data.folder import CorruptImages
from dinit.data.tar_index import SUFFIX, read_index
from dinit.data.webdataset import WebDataset, expand, windowed_order
from dinit.training.batches import Share, batches


def picture(number: int, kind: str = "png") -> bytes:
    """8×8 pixels of one colour that says which it is."""
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(stream, kind, **options)
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_tars(folder: Path, tars: int = 3, each: int = 4, label: str = "cls") -> Path:
    """Sample k of all is the picture of k, its class k modulo 3."""
    for tar in range(tars):
        members = []
        for k in range(tar * each, (tar + 1) * each):
            said = str(k % 3) if label == "cls" else json.dumps({"label": "abc"[k % 3], "no": k})
            members += [(f"./{k:04d}.png", picture(k)), (f"./{k:04d}.{label}", said.encode())]
        write_tar(folder / f"train-{tar:03d}.tar", members)
    return folder


def number_of(image: torch.Tensor) -> int:
    return round((float(image[0, 0, 0]) + 1) * 127.5)


def test_samples_and_labels_are_those_of_the_tars(tmp_path: Path) -> None:
    data = DATASETS.create("webdataset", path=str(write_tars(tmp_path / "w")), size=8)
    assert len(data) == 12
    assert [number_of(data[k][0]) for k in range(12)] == list(range(12))
    assert [data[k][1] for k in range(12)] == [k % 3 for k in range(12)]
    assert data.class_names == ("0", "1", "2")
    assert torch.equal(data[5][0], torch.tensor([5, 250, 7])[:, None, None].expand(3, 8, 8) / 127.5 - 1)
    grey = WebDataset(tmp_path / "w", size=4, channels=1)
    assert grey[3][0].shape == (1, 4, 4)
    assert sorted(p.name for p in (tmp_path / "w").glob(f"*{SUFFIX}"))[0] == "train-000.tar" + SUFFIX


def test_labels_of_a_json_and_names_for_numbers(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "w", label="json")
    data = WebDataset(folder, size=8)
    assert data.class_names == ("a", "b", "c")
    assert data.labels.tolist() == [k % 3 for k in range(12)]
    numbered = WebDataset(folder, size=8, label="no", num_classes=20)
    assert numbered.labels.tolist() == list(range(12))
    assert numbered.num_classes == 20
    ordered = WebDataset(folder, size=8, class_names=["c", "b", "a", "d"])
    assert ordered.labels.tolist() == [2 - k % 3 for k in range(12)]
    none = WebDataset(folder, size=8, label="none")
    assert (none.num_classes, none.labels.tolist()) == (0, [0] * 12)
    with pytest.raises(ValueError, match="'c' is not among the class_names"):
        WebDataset(folder, size=8, class_names=["a", "b"])


def test_every_form_of_a_path(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "w", tars=3)
    for path, count in (("train-{000..001}.tar", 8), ("train-*.tar", 12), ("train-002.tar", 4), ("", 12)):
        assert len(WebDataset(f"{folder}/{path}" if path else str(folder), size=8)) == count
    assert expand("a-{08..10}") == ["a-08", "a-09", "a-10"]
    assert expand("{1..2}/{9..10}") == ["1/9", "1/10", "2/9", "2/10"]
    for path, message in (
        ("train-{001..004}.tar", r"train-003.tar and 1 more does not exist"),
        ("other-*.tar", "has no tars; wanted: a folder"),
        ("train-{3..1}.tar", "runs down"),
    ):
        with pytest.raises(ValueError, match=message):
            WebDataset(f"{folder}/{path}", size=8)


def test_names_with_dots_folders_and_other_kinds(tmp_path: Path) -> None:
    """The key ends at the first dot of the last part; samples of the same name in two folders are two."""
    members = [
        ("a.b/0001.jpg", picture(1, "jpeg")),
        ("a.b/0001.CLS", b"0"),
        ("a.b/0001.seg.png", picture(99)),
        ("c/0001.webp", picture(2, "webp")),
        ("c/0001.cls", b"1\n"),
        ("c/notes.txt", b"no image, no sample"),
        ("c/.hidden", b""),
    ]
    data = WebDataset(write_tar(tmp_path / "w" / "a.tar", members), size=8)
    assert read_index(tmp_path / "w" / "a.tar").keys == ["a.b/0001", "c/0001"]
    assert data.labels.tolist() == [0, 1]
    assert number_of(data[1][0]) == 2
    assert abs(number_of(data[0][0]) - 1) <= 4  # jpeg


def test_an_epoch_reads_every_sample_once_and_few_tars_at_a_time() -> None:
    counts, window = [5, 9, 1, 7, 4, 6, 8, 3], 3
    tar_of = np.repeat(np.arange(8), counts)
    orders = [windowed_order(seed, epoch, counts, window) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(43))

        first_use = {int(t): k for k, t in reversed(list(enumerate(tar_of[order])))}
        last_use = {int(t): k for k, t in enumerate(tar_of[order])}
        open_at = [sum(first_use[t] <= k <= last_use[t] for t in range(8)) for k in range(43)]
        assert max(open_at) <= window
    assert len({tuple(order) for order in orders}) == 4
    mixed = windowed_order(0, 0, [50, 50], 2)
    assert 0.3 < np.mean(mixed[:50] < 50) < 0.7  # the two are shuffled together
    again = [windowed_order(0, epoch, [50], 2) for epoch in (0, 1)]
    assert np.mean(again[0] == again[1]) < 0.2  # a tar alone in its window is shuffled again


def test_a_run_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    data = WebDataset(write_tars(tmp_path / "w", tars=5), size=8, window=2, horizontal_flip=True)
    run = data.indices(7, 0, 50)
    assert sorted(run[:20]) == sorted(run[20:40]) == list(range(20))
    assert run[:20] != run[20:40]
    assert [data.indices(7, k, 1)[0] for k in range(50)] == run
    whole = list(batches(data, 7, Share(4), 1, 9, workers=0))
    assert [number_of(x) for images, _ in whole for x in images] == run[:36]
    for rank in (0, 1):  # each sample is read by one of two processes, from any step on, by workers or not
        share = Share(4, processes=2, rank=rank)
        for (images, _), (mine, _) in zip(whole[4:], batches(data, 7, share, 5, 9, workers=1), strict=True):
            assert torch.equal(mine, images[share.rows(0)])
    assert torch.equal(pickle.loads(pickle.dumps(data))[3][0], data[3][0])


def test_the_index_is_kept_and_made_again_when_the_tar_changes(tmp_path: Path) -> None:
    tar = write_tars(tmp_path / "w", tars=1) / "train-000.tar"
    first = read_index(tar)
    beside = tar.with_name(tar.name + SUFFIX)
    kept = json.loads(beside.read_text())
    kept["keys"][0] = "told by the file beside"
    beside.write_text(json.dumps(kept))
    assert read_index(tar).keys[0] == "told by the file beside"
    write_tar(tar, [("9999.png", picture(9)), ("9999.cls", b"0")])
    assert read_index(tar).keys == ["9999"]
    beside.write_text("{ torn")
    assert read_index(tar).keys == ["9999"]
    assert first.keys == ["./0000", "./0001", "./0002", "./0003"]


def test_a_folder_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dinit.data.tar_index.write_atomically", refuse)
    folder = write_tars(tmp_path / "w")
    assert len(WebDataset(folder, size=8)) == 12
    assert not list(folder.glob(f"*{SUFFIX}"))


def test_tars_that_are_damaged_are_named(tmp_path: Path) -> None:
    tar = write_tars(tmp_path / "w", tars=1) / "train-000.tar"
    whole = tar.read_bytes()
    data_ends = 8 * 1024  # 4 samples of 2 members, each a header and a block
    cases = {
        "is damaged or no plain tar": (b"not a tar at all" * 100, whole[: data_ends - 500], b""),
        "is cut short at byte": (whole[: data_ends - 1024],),
        "holds no header at byte 4096": (whole[:4096] + b"x" * 512 + whole[4608:],),
    }
    for message, damaged in cases.items():
        for content in damaged:
            tar.write_bytes(content)
            with pytest.raises(ValueError, match=rf"train-000.tar {message}"):
                WebDataset(tmp_path / "w", size=8)
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(__file__, "a.png")
    with pytest.raises(ValueError, match=r"no plain tar.*unpack a .tar.gz"):
        WebDataset(packed, size=8)


def test_samples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    a, b = ("a.png", picture(1)), ("b.png", picture(2))
    cases: list[tuple[list[tuple[str, bytes]], str]] = [
        ([a, ("a.cls", b"0"), b], r"1 of 2 samples have no .cls, as 'b' of .*t.tar; give every sample one"),
        ([("a.txt", b"x")], r"has no images; wanted: members such as"),
        ([a, ("a.jpg", picture(1, "jpeg"))], r"sample 'a' of .*t.tar has .*images \(png, jpg\)"),
        ([a, b, ("a.cls", b"0")], r"sample 'a' of .* do not follow each other"),
        ([a, ("a.cls", b"\xff\xfe\x00")], "label of sample 'a' of .* is no text"),
        ([a, ("a.json", b"{")], r"\.json of sample 'a' of .* is not JSON"),
        ([a, ("a.cls", b"0"), b, ("b.cls", b"dog")], "all be whole numbers, or all names.*'dog'"),
        ([a, ("a.cls", b"-1")], "labels must be >= 0"),
    ]
    for members, message in cases:
        tar = write_tar(tmp_path / "t.tar", members)
        (tmp_path / ("t.tar" + SUFFIX)).unlink(missing_ok=True)
        with pytest.raises(ValueError, match=message):
            WebDataset(tar, size=8)
    tar = write_tar(tmp_path / "u.tar", [a, ("a.json", b'{"label": 0}')])
    with pytest.raises(ValueError, match=r"1 of 1 samples have no field 'wnid' in a .json"):
        WebDataset(tar, size=8, label="wnid")
    for options, message in (({"size": 0}, "size must be"), ({"size": 8, "window": 0}, "window must be")):
        with pytest.raises(ValueError, match=message):
            WebDataset(tar, **options)


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(tmp_path: Path) -> None:
    data = WebDataset(write_tar(tmp_path / "t.tar", [("x/a.png", picture(1)[:40])]), size=8)
    with pytest.raises(CorruptImages, match=r"t\.tar/x/a: "):
        data[0]
    tar = write_tars(tmp_path / "w", tars=1) / "train-000.tar"
    data = WebDataset(tar, size=8)
    os.truncate(tar, 6000)
    with pytest.raises(CorruptImages, match=r"train-000.tar/0003: the tar ends within it: 0 of"):
        data[3]


def test_the_fingerprint_knows_contents_and_options(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "w")
    plain = WebDataset(folder, size=8).fingerprint()
    assert WebDataset(write_tars(tmp_path / "again"), size=8).fingerprint() == plain
    others = [
        WebDataset(folder, size=4).fingerprint(),
        WebDataset(folder, size=8, channels=1).fingerprint(),
        WebDataset(folder, size=8, label="none").fingerprint(),
        WebDataset(f"{folder}/train-{{000..001}}.tar", size=8).fingerprint(),
    ]
    changed = write_tars(tmp_path / "changed")
    content = bytearray((changed / "train-001.tar").read_bytes())
    at = content.index(b"IDAT") + 6
    content[at] ^= 1
    (changed / "train-001.tar").write_bytes(content)
    assert len({plain, *others, WebDataset(changed, size=8).fingerprint()}) == 6
