"""Restorations: what is measured of a picture, sheets with their scores and inputs, and replay of all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from test_given import MASK, seen, tiny
from torch import Tensor

from dinit import Pipeline
from dinit.data.pixels import from_uint8
from dinit.inverse import Measurement
from dinit.pipelines.outputs.files import save_folder, save_sheet
from dinit.pipelines.outputs.manifest import read_manifest
from dinit.pipelines.outputs.replay import replay
from dinit.pipelines.outputs.restoration import as_picture, save_restoration, score, truth_rank
from dinit.pipelines.restoring import read_measurement, read_truth

METHOD = {"name": "mmps", "iterations": 1}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny().save_pretrained(folder)
    made = Pipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return from_uint8(torch.from_numpy(np.array(image)))[None, None]


def test_a_picture_is_a_measurement_by_its_size(pipe: Any, picture: Path, tmp_path: Path) -> None:
    whole = pixels(picture)
    known, truth = read_measurement(pipe, picture, "mask:box=2,2,6,6", 0.1)
    assert truth is None
    assert torch.equal(known.y[..., 2:6, 2:6], torch.zeros(1, 1, 4, 4))
    assert torch.equal(known.y[..., :2, :], whole[..., :2, :])
    small = tmp_path / "small.png"
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(small)
    known, truth = read_measurement(pipe, small, "downscale:factor=2", 0.0)
    assert truth is None
    assert torch.allclose(known.y, torch.full((1, 1, 4, 4), -0.6))
    known, truth = read_measurement(pipe, picture, "downscale:factor=2", 0.0)
    assert truth is not None
    assert torch.equal(truth, whole)
    assert torch.allclose(known.y, torch.nn.functional.avg_pool2d(whole, 2))


def test_an_image_is_measured_with_noise_of_the_seed(pipe: Any, picture: Path) -> None:
    whole = pixels(picture)
    noisy = [read_measurement(pipe, picture, "identity", 0.2, "image", seed)[0].y - whole for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    assert float(noisy[0].std()) == pytest.approx(0.2, rel=0.25)
    hidden = read_measurement(pipe, picture, "mask:box=2,2,6,6", 0.2, "image")[0].y
    assert torch.equal(hidden[..., 2:6, 2:6], torch.zeros(1, 1, 4, 4))
    assert torch.equal(read_truth(pipe, picture), whole)


def test_pictures_of_another_size_are_refused(pipe: Any, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (9, 9)).save(other)
    for operator, kind, message in (
        ("downscale:factor=2", "auto", r"9 x 9 pixels, and must be of 4 x 4 pixels, as a measurement, or 8 x 8"),
        ("downscale:factor=2", "measurement", "a measurement by this operator of 4 x 4"),
        ("random-projection:rows=5", "measurement", "is no picture"),
        ("blur:std=1", "auto", r"9 x 9 pixels, and must be of 8 x 8, as an image to measure or a measurement"),
        ("random-projection:rows=5", "auto", "must be of 8 x 8, as an image"),
        ("downscale:factor=3", "auto", "3"),
        ("grey", "auto", "3"),
    ):
        with pytest.raises(ValueError, match=message):
            read_measurement(pipe, other, operator, 0.0, kind)  # type: ignore[arg-type]
    known, truth = read_measurement(pipe, other, "downscale:factor=2", 0.0, "image")
    assert known.y.shape == (1, 1, 4, 4)
    assert truth is not None


def test_scores_are_those_of_their_formulas(picture: Path) -> None:
    truth = pixels(picture)
    images = torch.cat([truth, (truth + 0.1).clamp(-1, 1), -truth]).float()
    known = Measurement("mask:box=2,2,6,6", truth, 0.1)
    found = score(images, known, truth)
    seen_pixels = torch.ones(8, 8, dtype=torch.bool)
    seen_pixels[2:6, 2:6] = False
    expected = [float((one - truth)[..., seen_pixels].square().mean().sqrt()) for one in images]
    assert found.distance == pytest.approx(expected, abs=1e-6)
    assert found.psnr is not None
    assert found.psnr[0] == float("inf")
    error = float((images[1] - truth).double().square().mean())
    assert found.psnr[1] == pytest.approx(10 * np.log10(4 / error), abs=1e-6)
    assert found.ssim is not None
    ssim = structural_similarity(truth[0, 0].numpy(), images[2, 0].numpy(), data_range=2, win_size=7)
    assert found.ssim[2] == pytest.approx(float(ssim), abs=1e-5)
    assert found.rank == truth_rank(images.double(), truth.double())
    assert score(images, known).psnr is None


def test_the_rank_of_a_truth_like_the_samples_is_uniform() -> None:
    pool = torch.randn(400, 5, 3, generator=torch.Generator().manual_seed(0))
    counts = np.bincount([truth_rank(one[1:], one[:1]) for one in pool], minlength=6)[1:]
    assert float(((counts - 80) ** 2 / 80).sum()) < 13.3  # chi square of 4 degrees of freedom, 1 %
    far = pool.clone()
    far[:, 0] *= 10
    assert np.mean([truth_rank(one[1:], one[:1]) for one in far]) > 4.5


def test_a_restoration_replays_from_the_input_beside_it(pipe: Any, picture: Path, tmp_path: Path) -> None:
    known, truth = read_measurement(pipe, picture, "downscale:factor=2", 0.1)
    made = pipe(3, num_images=3, measurement=known, method=METHOD, steps=2, output_type="raw")
    sheet = tmp_path / "restored.png"
    scores = save_restoration(sheet, pipe, made, truth)
    manifest = read_manifest(sheet)
    assert manifest.picture["scores"]["psnr"] == list(scores.psnr or ())
    assert manifest.call["measurement"]["noise_std"] == 0.1
    assert (tmp_path / "restored.input.png").read_bytes()  # of the truth, which is of whole bytes
    result = replay(sheet)
    assert (result.same, result.max_abs_diff, result.pictures) == (True, 0, 8)

    image = pixels(tmp_path / "restored.input.png")
    assert truth is not None
    assert torch.equal(image, truth)
    changed = ((image + 1) * 127.5).round().byte()[0, 0].numpy().copy()
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(tmp_path / "restored.input.png")
    with pytest.raises(ValueError, match="has changed or is missing: restored"):
        replay(sheet)
    for name in ("restored.input.png", "restored.input.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="was made from an input, and there is neither"):
        replay(sheet)


@pytest.mark.parametrize("given", ["strength", "mask", "measurement"])
def test_sheets_and_folders_of_given_images_replay(pipe: Any, picture: Path, tmp_path: Path, given: str) -> None:
    options: dict[str, Any] = {
        "strength": {"image": torch.cat([pixels(picture), -pixels(picture)]), "strength": 0.5},
        "mask": {"image": picture, "mask": MASK, "method": METHOD},
        "measurement": {"measurement": seen(rows=2), "method": METHOD},
    }[given]
    made = pipe([3, 1], **options, steps=2, batch_size=1, output_type="raw")
    save_sheet(tmp_path / "sheet.png", pipe, made)
    assert replay(tmp_path / "sheet.png").same
    save_folder(tmp_path / "each", pipe, made)
    assert replay(tmp_path / "each").same
    assert replay(tmp_path / "each" / "000001.png").same
    (tmp_path / "each" / "input.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="was made from an input"):
        replay(tmp_path / "each" / "000001.png")


def test_pictures_of_plain_calls_have_no_inputs(pipe: Any, tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", pipe, pipe([3, 1], steps=1, output_type="raw"))
    assert [one.name for one in tmp_path.iterdir()] == ["sheet.png"]
    assert not {"image", "measurement"} & json.loads(read_manifest(tmp_path / "sheet.png").to_json())["call"].keys()


def test_a_measurement_is_shown_as_an_image() -> None:
    y = torch.linspace(-1, 1, 4).reshape(1, 1, 2, 2)
    shown = as_picture(Measurement("downscale:factor=4", y), (3, 8, 8))
    assert shown.shape == (1, 3, 8, 8)
    assert torch.equal(shown[0, 1, ::4, ::4], y[0, 0])
    projected = as_picture(seen(), (1, 8, 8))
    assert projected.shape == (1, 1, 8, 8)
