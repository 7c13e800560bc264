"""Manifests and replay: the same picture is called the same, any other is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from dinit.models.base import BACKBONES
from dinit.pipelines.call import make_sampler
from dinit.pipelines.generate import Pipeline, Trajectory
from dinit.pipelines.outputs.files import save_animation, save_folder, save_sheet
from dinit.pipelines.outputs.manifest import read_manifest, weights_sha256
from dinit.pipelines.outputs.replay import replay
from dinit.pipelines.outputs.sheets import lay_out, to_pil
from dinit.samplers import Restart, Sampler, Unified
from dinit.samplers.multistep.rules import Extrapolate, SingleStep
from dinit.samplers.ode.restart import Interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = BACKBONES["dit"].preset("tiny")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    defaults = {"sampler": "ddpm", "steps": 3, "guidance": [{"name": "cfg", "scale": 2.0}, "cads"]}
    pipe = Pipeline(network, {"name": "vp"}, {"name": "v"}, defaults=defaults)
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def made(folder: Path):
    pipe = Pipeline.from_pretrained(folder)
    return pipe, pipe([3, 3, 1, 1, 7], seed=2, batch_size=2, output_type="raw")


def rewrite(path: Path, change=None, pixel: tuple[int, int] | None = None) -> None:
    """The PNG again, with its manifest changed or one pixel one level off."""
    with Image.open(path) as picture:
        picture.load()
        manifest = json.loads(picture.info["dinit"])
    if pixel is not None:
        value = picture.getpixel(pixel)
        picture.putpixel(pixel, value - 1 if value else 1)
    if change is not None:
        change(manifest)
    info = PngInfo()
    info.add_text("dinit", json.dumps(manifest))
    picture.save(path, pnginfo=info)


def test_sheet_replays_the_same(made, tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", *made)
    result = replay(tmp_path / "sheet.png")
    assert (result.same, result.max_abs_diff, result.pictures, result.notes) == (True, 0, 6, ())


def test_folder_and_each_of_its_pictures_replay_the_same(made, tmp_path: Path) -> None:
    save_folder(tmp_path, *made)
    assert replay(tmp_path).same
    for index in range(5):
        picture = tmp_path / f"{index:06d}.png"
        assert replay(picture).same
        own = read_manifest(picture)
        assert own.call["labels"][own.picture["index"]] == [3, 3, 1, 1, 7][index]
        assert own.call["seeds"][own.picture["index"]] == [2, index]
    with Image.open(tmp_path / "000004.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(to_pil(made[1].images)[4]))


@pytest.mark.parametrize(
    "sampler",
    [
        Unified((Extrapolate("v", 2, variable="own", difference_weights=(0.9,)), SingleStep("x0", (0.5,)))),
        Restart((Interval(0.1, 0.5, 2, 1), Interval(1.0, 2.0, 2, 1))),
    ],
    ids=["unified", "restart"],
)
def test_a_sampler_of_parts_replays(folder: Path, sampler: Sampler, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    save_sheet(tmp_path / "sheet.png", pipe, pipe([3, 1], sampler=sampler, steps=4, output_type="raw"))
    result = replay(tmp_path / "sheet.png")
    assert (result.same, result.max_abs_diff, result.notes) == (True, 0, ())
    assert make_sampler(read_manifest(tmp_path / "sheet.png").call["sampler"]) == sampler


def test_letters_are_not_compared_where_a_call_is_written_otherwise_today(made, tmp_path: Path) -> None:
    """As after an option got another name, or a new one came: the title spells them."""
    path = tmp_path / "sheet.png"
    save_sheet(path, *made)
    rewrite(path, lambda m: m["call"]["sampler"].pop("variance"), pixel=(1, 1))
    result = replay(path)
    assert (result.same, result.pictures) == (True, 5)


@pytest.mark.parametrize("where", ["tile", "label"])
def test_one_pixel_of_one_level_is_different(made, where: str, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    save_sheet(path, *made)
    x, y = read_manifest(path).picture["cells"][2] if where == "tile" else (1, 1)
    rewrite(path, pixel=(x + 1, y + 1) if where == "tile" else (1, 1))
    result = replay(path)
    assert (result.same, result.max_abs_diff) == (False, 1)
    assert replay(path, tolerance=1).same


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["call"]["seeds"].__setitem__(0, [9, 9]),
        lambda m: m["call"]["labels"].__setitem__(0, 8),
        lambda m: m["call"].update(steps=2),
        lambda m: m["call"]["guidance"][0].update(scale=3.0),
        lambda m: m.update(nfe=99),
        lambda m: m["weights"].update(backbone="0" * 64),
        lambda m: m["process"].update(beta_max=19.0),
    ],
)
def test_a_manifest_that_says_otherwise_is_different(made, change, tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", *made)
    rewrite(tmp_path / "sheet.png", change)
    assert not replay(tmp_path / "sheet.png").same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("call"), "damaged: missing or unknown call"),
        (lambda m: m.update(format=99), "format 99"),
        (lambda m: m["call"].pop("seeds"), "damaged: 'seeds'"),
        (lambda m: m["call"].update(sampler={"name": "gone"}), "unknown sampler 'gone'"),
        (lambda m: m["picture"].update(kind="film"), "unknown kind 'film'"),
        (lambda m: m.update(pipeline=""), "names no pipeline"),
    ],
)
def test_a_damaged_manifest_is_told(made, change, message: str, tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", *made)
    rewrite(tmp_path / "sheet.png", change)
    with pytest.raises(ValueError, match=re.escape(message)):
        replay(tmp_path / "sheet.png")


def test_pictures_without_a_manifest_are_told(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "text.png").write_text("hello")
    for name, message in {"foreign": "no dinit manifest", "text": "is a text, wanted: a PNG"}.items():
        with pytest.raises(ValueError, match=message):
            replay(tmp_path / f"{name}.png")


def test_weights_hash_sees_one_bit() -> None:
    layer = nn.Linear(3, 2)
    before = weights_sha256(layer)
    with torch.no_grad():
        layer.bias[1] = torch.nextafter(layer.bias[1], torch.tensor(9.0))
    assert weights_sha256(layer) != before


def test_sheet_rows_are_classes_in_order() -> None:
    layout = lay_out(["b", "a", "b", "a", "a"], side=8, title="t")
    rows = {y for _, y in layout.cells}
    assert layout.scale == 6
    assert len(rows) == 2
    assert [layout.cells[k][1] for k in (0, 2)] == [min(rows)] * 2  # b came first
    assert sorted(layout.cells[k][0] for k in (1, 3, 4)) == [layout.cells[k][0] for k in (1, 3, 4)]
    assert len(set(layout.cells)) == 5


def test_sheet_shows_the_pictures(made, tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", *made)
    cells = read_manifest(tmp_path / "sheet.png").picture["cells"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        for (x, y), picture in zip(cells, to_pil(made[1].images), strict=True):
            shown = np.asarray(sheet)[y : y + 48 : 6, x : x + 48 : 6]
            assert np.array_equal(shown, np.asarray(picture))


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animation_has_a_frame_a_step(folder: Path, kind: str, tmp_path: Path) -> None:
    pipe, trajectory = Pipeline.from_pretrained(folder), Trajectory()
    generated = pipe([1, 2, 2], steps=4, output_type="raw", callback_on_step_end=trajectory)
    save_animation(tmp_path / f"x.{kind}", pipe, generated.call, trajectory.frames, generated.nfe)
    save_sheet(tmp_path / "sheet.png", pipe, generated)
    with Image.open(tmp_path / f"x.{kind}") as film, Image.open(tmp_path / "sheet.png") as sheet:
        assert film.n_frames == 4  # type: ignore[attr-defined]
        film.seek(3)
        last = np.asarray(film.convert("L"), dtype=int)
        assert np.abs(last - np.asarray(sheet, dtype=int)).max() <= 2
