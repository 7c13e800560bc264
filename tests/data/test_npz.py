from pathlib import Path

import numpy as np
import pytest
import torch

from dinit.data import DATASETS
from dinit.data.arrays import NpzImages

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def test_both_layouts_and_both_dtypes_are_the_same_images(tmp_path: Path) -> None:
    floats = (BYTES / 127.5 - 1).astype(np.float64)
    files = [
        write(tmp_path / "a.npz", images=BYTES, labels=LABELS),
        write(tmp_path / "b.npz", arr_0=BYTES.transpose(0, 3, 1, 2), arr_1=LABELS),
        write(tmp_path / "c.npz", images=floats, labels=LABELS.astype(np.int32)),
    ]
    expected = torch.from_numpy(BYTES.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    for file in files:
        data = DATASETS.create({"name": "npz", "path": str(file)})
        assert (data.num_classes, data.channels, data.image_size) == (3, 3, 8)
        images = torch.stack([image for image, _ in data])
        torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
        assert [label for _, label in data] == LABELS.tolist()
        assert torch.equal(data.uint8_images([2]), torch.from_numpy(BYTES[2:3].transpose(0, 3, 1, 2)))


def test_npy_and_files_without_labels_are_unconditional(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES[..., 0])
    data = NpzImages(tmp_path / "x.npy")
    assert (data.num_classes, data.channels, data[5][1]) == (0, 1, 0)
    assert torch.equal(data.uint8_images()[:, 0], torch.from_numpy(BYTES[..., 0]))
    assert NpzImages(write(tmp_path / "y.npz", images=BYTES)).class_names == ()


def test_a_shape_that_reads_both_ways_needs_the_layout(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    path = write(tmp_path / "a.npz", images=images)
    with pytest.raises(ValueError, match="both ways"):
        NpzImages(path)
    assert torch.equal(NpzImages(path, layout="nchw").uint8_images(), torch.from_numpy(images))
    assert torch.equal(NpzImages(path, "nhwc").uint8_images(), torch.from_numpy(images).permute(0, 3, 1, 2))


def test_classes_may_be_named_or_more_than_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", images=BYTES, labels=LABELS)
    assert NpzImages(path, num_classes=5).class_names == ("0", "1", "2", "3", "4")
    assert NpzImages(path, class_names=["x", "y", "z"]).class_names == ("x", "y", "z")
    with pytest.raises(ValueError, match="largest label is 2, out of range for 2"):
        NpzImages(path, num_classes=2)
    with pytest.raises(ValueError, match="num_classes is 4, but there are 3"):
        NpzImages(path, num_classes=4, class_names=["x", "y", "z"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": BYTES}, "has the arrays pictures"),
        ({"images": BYTES.astype(np.int64)}, "got int64"),
        ({"images": BYTES.astype(np.float32)}, r"within \[-1, 1\], got values from 0 to 255"),
        ({"images": np.full((2, 8, 8, 1), np.nan)}, r"within \[-1, 1\]"),
        ({"images": BYTES[0, 0]}, "must have the shape"),
        ({"images": BYTES[:0]}, "none of them 0"),
        ({"images": BYTES[:, :6]}, "height 6 and width 8"),
        ({"images": np.zeros((2, 8, 8, 5), np.uint8)}, "1 to 4 channels"),
        ({"images": BYTES, "labels": LABELS[:5]}, r"shape \(6,\)"),
        ({"images": BYTES, "labels": LABELS + 0.5}, "integers"),
        ({"images": BYTES, "labels": LABELS - 1}, ">= 0, got -1"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_what_is_no_image_set_is_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NpzImages(write(tmp_path / "a.npz", **arrays))


def test_files_that_are_not_numpy_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        NpzImages(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    good = write(tmp_path / "good.npz", images=BYTES).read_bytes()
    (tmp_path / "cut.npz").write_bytes(good[:200])
    for name in ("text.npz", "cut.npz"):
        with pytest.raises(ValueError, match="cannot be read as numpy arrays"):
            NpzImages(tmp_path / name)
    with pytest.raises(ValueError, match="need labels"):
        NpzImages(tmp_path / "good.npz", num_classes=3)


def test_the_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    first = NpzImages(write(tmp_path / "a.npz", images=BYTES, labels=LABELS)).fingerprint()
    assert NpzImages(write(tmp_path / "b.npz", images=BYTES, labels=LABELS)).fingerprint() == first
    changed = BYTES.copy()
    changed[5, 7, 7, 2] ^= 1
    others = [
        NpzImages(write(tmp_path / "c.npz", images=changed, labels=LABELS)).fingerprint(),
        NpzImages(write(tmp_path / "d.npz", images=BYTES, labels=LABELS[::-1].copy())).fingerprint(),
    ]
    assert len({first, *others}) == 3
