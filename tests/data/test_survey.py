"""Survey of pictures: counts, sizes, colour, orientation and broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinit.data.survey import shared_asymmetry, survey

RNG = np.random.default_rng(0)


def noise(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)


def test_shared_asymmetry_of_equal_and_of_mirrored_pictures() -> None:
    one = noise(1)
    same = np.repeat(one, 4, 0)
    assert shared_asymmetry(same, np.zeros(4, np.int64)) == pytest.approx(1.0)
    half = same.copy()
    half[2:] = half[2:, :, :, ::-1]
    # Of the pairs of two facing and two mirrored pictures, a third agrees and two thirds are opposite: -1/3, so 0.
    assert shared_asymmetry(half, np.zeros(4, np.int64)) == 0.0
    assert shared_asymmetry(half, np.array([0, 0, 1, 1])) == pytest.approx(1.0)  # 'left' and 'right' are classes
    assert shared_asymmetry(one, np.zeros(1, np.int64)) == 0.0


def test_shared_asymmetry_of_half_of_the_energy() -> None:
    shape = np.zeros((8, 8), np.float32)
    shape[2:6, 5:7] = 20
    pictures = np.stack([128 + shape, 128 + shape, 128 - shape, 128 - shape])[:, None].astype(np.uint8)
    # Brightness is opposite in half of the pictures, and its squared deviation from the mean the same in all.
    assert shared_asymmetry(pictures, np.zeros(4, np.int64)) == pytest.approx(1.0, abs=0.02)
    spread = noise(4000)
    assert shared_asymmetry(spread, np.zeros(4000, np.int64)) < 0.01  # an unbiased estimate of 0


def test_letters_face_one_way_and_symmetric_letters_do_not() -> None:
    assert survey({"name": "digits"}).one_way > 0.2
    assert survey({"name": "glyphs", "characters": "EFGLRPJ", "count": 400}).one_way > 0.08
    assert survey({"name": "glyphs", "characters": "AHIMOTUVWXY8", "count": 400}).one_way < 0.03


def test_a_folder_with_odd_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
    for k in range(6):
        Image.fromarray(RNG.integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(tmp_path / "a" / f"{k}.jpg")
    turned = Image.new("RGB", (10, 90), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned: 90×10
    turned.save(tmp_path / "b" / "turned.jpg", exif=exif)
    whole = (tmp_path / "a" / "0.jpg").read_bytes()
    (tmp_path / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "middle.jpg").write_bytes(whole[:300] + b"\xff\xd9")  # complete by its end, broken inside
    (tmp_path / "b" / "text.png").write_text("hello")
    (tmp_path / "b" / "deep" / "sixteen.png").parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((40, 50), 30_000, np.uint16)).save(tmp_path / "b" / "deep" / "sixteen.png")
    Image.new("RGBA", (30, 30), (0, 200, 0, 100)).save(tmp_path / "b" / "alpha.png")
    Image.new("L", (30, 30), 7).save(tmp_path / "b" / "grey.png")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "a" / "5.jpg").write_bytes(
        (tmp_path / "a" / "5.jpg").read_bytes() + bytes(9000)
    )  # a film behind it
    calls: list[tuple[str, int, int]] = []
    with pytest.warns(UserWarning, match=r"not used: files that are no pictures .*notes\.txt"):
        found = survey({"name": "folder", "path": str(tmp_path), "size": 8}, lambda *call: calls.append(call))
    assert found.spec == {"name": "folder", "path": str(tmp_path)}
    assert dict(found.counts) == {"a": 6, "b": 4}
    assert sorted(map(tuple, found.sides.tolist()))[-1] == (90, 10)
    assert (found.short_side, found.channels, found.shape, found.complete) == (48, 3, None, True)
    assert found.aspect == pytest.approx(64 / 48)
    assert found.grey == pytest.approx(0.2)  # of ten readable pictures two
    assert sorted(file.name for file, _ in found.unreadable) == ["cut.jpg", "middle.jpg", "text.png"]
    assert ("headers", 13, 13) in calls
    assert calls[-1][1] == calls[-1][2]


def test_grey_pictures_and_classes_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), (90, 92, 95)).save(tmp_path / name / "1.jpg")
    assert survey({"name": "folder", "path": str(tmp_path)}).channels == 1
    (tmp_path / "b" / "1.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"no picture in class 'b' of .* can be read, such as .*1\.jpg"):
        survey({"name": "folder", "path": str(tmp_path)})


def test_of_many_pixels_a_sample_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for k in range(8):
        Image.new("RGB", (40, 40), (200, k, 0)).save(tmp_path / "a" / f"{k}.png")
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:-20])  # ends too early
    monkeypatch.setattr("dinit.data.survey._DECODED_PIXELS", 100)
    monkeypatch.setattr("dinit.data.survey._SAMPLE", 3)
    calls: list[tuple[str, int, int]] = []
    found = survey({"name": "folder", "path": str(tmp_path)}, lambda *call: calls.append(call))
    assert (found.images, found.complete) == (7, False)
    assert [file.name for file, _ in found.unreadable] == ["1.png"]
    assert calls[-1] == ("pictures", 4, 4)  # three that are spread evenly, and the one without an end


def test_a_data_set_of_one_shape() -> None:
    found = survey({"name": "digits", "split": "test"})
    assert (found.shape, found.channels, found.short_side, found.seconds) == (8, 1, 8, 0.0)
    assert len(found.counts) == 10
    assert found.images == sum(found.counts.values())
