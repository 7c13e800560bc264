from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.data import DATASETS
from dinit.data.folder import CorruptImages, ImageFolder
from dinit.data.images import read_image, square

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def halves(width: int = 8, height: int = 8) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "dog" / "b.png", halves())
    save(tmp_path / "dog" / "deep" / "a.png", Image.new("RGB", (9, 12), GREEN))
    save(tmp_path / "cat" / "x.JPG", Image.new("RGB", (8, 8), BLUE))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    return tmp_path


def test_classes_are_the_sorted_sub_folders(folder: Path) -> None:
    data = DATASETS.create("folder", path=str(folder), size=8)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 1]
    assert [p.name for p in data.files] == ["x.JPG", "b.png", "a.png"]
    image, label = data[1]
    assert label == 1
    assert torch.equal(image[:, :, 0], torch.tensor([1.0, -1.0, -1.0])[:, None].expand(3, 8))
    assert torch.equal(image[:, :, 7], torch.tensor([-1.0, -1.0, 1.0])[:, None].expand(3, 8))


def test_a_flip_is_decided_by_the_key_alone(folder: Path) -> None:
    data = ImageFolder(folder, size=8, horizontal_flip=True)
    plain = data[1][0]
    assert torch.equal(plain, ImageFolder(folder, size=8)[1][0])
    flipped = []
    for key in range(400):
        image = data.sample(1, key)[0]
        assert torch.equal(image, data.sample(1, key)[0])
        flipped.append(torch.equal(image, plain.flip(-1)))
        assert flipped[-1] or torch.equal(image, plain)
    assert 150 < sum(flipped) < 250  # 10 standard deviations of a fair coin


def test_all_broken_files_are_in_one_report(folder: Path) -> None:
    good = (folder / "dog" / "b.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "text.webp").write_text("hello")
    with pytest.raises(CorruptImages) as caught:
        ImageFolder(folder, size=8)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "3 images cannot be read" in message
    assert all(name in message for name in ("cut.png", "empty.png", "text.webp"))
    assert "x.JPG" not in message
    unchecked = ImageFolder(folder, size=8, check=False)
    with pytest.raises(ValueError, match=r"empty\.png"):
        unchecked[0]


def test_broken_files_can_be_left_out(folder: Path) -> None:
    (folder / "dog" / "cut.png").write_bytes((folder / "dog" / "b.png").read_bytes()[:40])
    (folder / "dog" / "aa.webp").write_text("hello")
    with pytest.warns(
        UserWarning, match=r"left out, as they cannot be read: dog/aa\.webp \(not an image .*, dog/cut\.png"
    ):
        data = ImageFolder(folder, size=8, check="skip")
    assert [p.name for p in data.files] == ["x.JPG", "b.png", "a.png"]
    assert data.labels.tolist() == [0, 1, 1]
    (folder / "dog" / "cut.png").unlink()
    (folder / "dog" / "aa.webp").unlink()
    whole = ImageFolder(folder, size=8, check=False)
    assert data.fingerprint() == whole.fingerprint()
    for index in range(3):
        assert torch.equal(data[index][0], whole[index][0])


def test_a_class_of_broken_files_alone_is_refused(folder: Path) -> None:
    (folder / "cat" / "x.JPG").write_text("hello")
    (folder / "dog" / "c.png").write_text("hello")
    with pytest.raises(CorruptImages) as caught:
        ImageFolder(folder, size=8, check="skip")
    assert [file.name for file, _ in caught.value.problems] == ["x.JPG"]
    with pytest.raises(ValueError, match="check must be true, false or 'skip', got 'skp'"):
        ImageFolder(folder, size=8, check="skp")  # type: ignore[arg-type]


def test_what_the_check_decoded_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, plain = ImageFolder(folder, size=8, horizontal_flip=True), ImageFolder(folder, size=8, check=False)
    assert all(torch.equal(data[k][0], plain[k][0]) for k in range(3))
    monkeypatch.setattr("dinit.data.folder.KEPT_BYTES", 3 * 3 * 64 - 1)
    many = ImageFolder(folder, size=8)
    for file in data.files:
        file.unlink()
    assert data[2][0].shape == (3, 8, 8)
    with pytest.raises(ValueError, match="No such file"):
        many[2]


def test_layouts_without_classes_are_refused(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path, what in (
        (tmp_path / "none", "does not exist"),
        (bare, "no sub-folders"),
        (save(tmp_path / "flat" / "1.png", halves()).parent, "images but no sub-folders"),
        (save(tmp_path / "file.png", halves()), "is a file"),
    ):
        with pytest.raises(ValueError, match=f"{what}; wanted: one sub-folder a class"):
            ImageFolder(path, size=8)
    (tmp_path / "mixed" / "empty-class").mkdir(parents=True)
    save(tmp_path / "mixed" / "full" / "1.png", halves())
    with pytest.raises(ValueError, match="no images in class 'empty-class'"):
        ImageFolder(tmp_path / "mixed", size=8)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 8.0}, {"size": 8, "channels": 2}])
def test_bad_options_are_refused(folder: Path, options: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        ImageFolder(folder, **options)


def test_the_fingerprint_follows_contents_names_and_options(folder: Path) -> None:
    first = ImageFolder(folder, size=8).fingerprint()
    assert ImageFolder(folder, size=8).fingerprint() == first
    assert ImageFolder(folder, size=4).fingerprint() != first
    (folder / "cat" / "x.JPG").rename(folder / "cat" / "y.JPG")
    renamed = ImageFolder(folder, size=8).fingerprint()
    save(folder / "dog" / "b.png", halves().transpose(Image.Transpose.ROTATE_180))
    assert len({first, renamed, ImageFolder(folder, size=8).fingerprint()}) == 3


@pytest.mark.parametrize("row", [0, 255])  # a BMP begins with its lowest row
def test_the_fingerprint_sees_both_ends_of_a_large_file(tmp_path: Path, row: int) -> None:
    image = halves(256, 256)
    path = save(tmp_path / "a" / "large.bmp", image)
    before = ImageFolder(tmp_path, size=8).fingerprint()
    image.putpixel((0, row), GREEN)
    save(path, image)
    assert ImageFolder(tmp_path, size=8).fingerprint() != before


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    path = save(tmp_path / "turned.png", halves(), exif=exif)
    pixels = read_image(path, 8, 3)
    assert (pixels[:, 0].T == RED).all()  # the left half comes to the top
    assert (pixels[:, 7].T == BLUE).all()


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("palette.png", Image.new("RGB", (8, 8), GREEN).convert("P", palette=Image.Palette.ADAPTIVE), GREEN),
        ("cmyk.tiff", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), RED),
        ("grey.png", Image.new("L", (8, 8), 77), (77, 77, 77)),
        ("bits.png", Image.new("1", (8, 8), 1), (255, 255, 255)),
        ("clear.png", Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        ("half.png", Image.new("RGBA", (8, 8), (0, 0, 255, 128)), (127, 127, 255)),
        ("deep.png", Image.fromarray(np.full((8, 8), 100 * 257 + 100, np.uint16)), (100, 100, 100)),
        ("deepest.png", Image.fromarray(np.full((8, 8), 65535, np.uint16)), (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_arrives_as_rgb(
    tmp_path: Path, name: str, image: Image.Image, expected: tuple[int, int, int]
) -> None:
    pixels = read_image(save(tmp_path / name, image), 8, 3)
    assert (pixels == np.array(expected)[:, None, None]).all()


def test_a_transparent_palette_colour_shows_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 255, 255, 0, 0])
    pixels = read_image(save(tmp_path / "p.png", image, transparency=0), 8, 3)
    assert (pixels == 255).all()


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "f.tiff", Image.fromarray(np.zeros((8, 8), np.float32)))
    with pytest.raises(ValueError, match="no agreed range"):
        read_image(path, 8, 3)


def test_grey_is_one_channel(tmp_path: Path) -> None:
    pixels = read_image(save(tmp_path / "g.png", Image.new("RGB", (16, 8), GREEN)), 4, 1)
    assert pixels.shape == (1, 4, 4)
    assert (pixels == 150).all()  # ITU-R 601 luma of green: 0.587 · 255


def test_scaling_down_averages_instead_of_picking() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    for size in (32, 16, 24):
        pixels = np.asarray(square(stripes, size)).astype(float)
        assert abs(pixels.mean() - 127.5) < 2
        assert pixels.std() < 12  # one in two picked would give 0 or 255


def test_a_half_is_the_mean_of_two_by_two() -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    half = values.reshape(16, 2, 16, 2).mean((1, 3))
    assert (
        np.abs(np.asarray(square(Image.fromarray(values), 16)) - half).max() <= 1.0
    )  # Pillow rounds twice: rows, then columns
    quarter = half.reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(np.asarray(square(Image.fromarray(values), 8)) - quarter).max() <= 2.0


def test_the_crop_is_the_centre() -> None:
    image = Image.new("L", (20, 8), 0)
    image.paste(200, (6, 0, 14, 8))
    assert (np.asarray(square(image, 8)) == 200).all()
    assert np.asarray(square(image.transpose(Image.Transpose.ROTATE_90), 8)).min() == 200
    assert square(image, 5).size == (5, 5)
    assert square(image, 30).size == (30, 30)
