"""Sheets and animations by their pixels and times, and the figures of progress."""

from __future__ import annotations

import io
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from dinit.pipelines.call import Call, make_grid, make_guidance, make_sampler
from dinit.pipelines.callbacks import Trajectory
from dinit.pipelines.outputs.files import caption
from dinit.pipelines.outputs.sets import Progress
from dinit.pipelines.outputs.sheets import animation_bytes, draw_sheet, enlargement, lay_out
from dinit.pipelines.runs.output import preview_classes


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_shows_its_frames_in_order_and_rests_on_the_last(kind: str) -> None:
    shades = [0, 80, 160, 240]
    film: Any = Image.open(io.BytesIO(animation_bytes([Image.new("RGB", (8, 8), (s,) * 3) for s in shades], kind)))
    assert film.n_frames == 4
    seen, durations = [], []
    for index in range(4):
        film.seek(index)
        film.load()
        durations.append(film.info["duration"])
        seen.append(int(np.asarray(film.convert("L"))[0, 0]))
    assert seen == shades
    assert durations == [120, 120, 120, 1500]
    assert film.info["loop"] == 0


@pytest.mark.parametrize(("side", "times"), [(8, 6), (20, 2), (28, 2), (32, 2), (33, 1), (64, 1), (256, 1)])
def test_pictures_of_a_sheet_are_enlarged_to_about_48_pixels(side: int, times: int) -> None:
    assert enlargement(side) == times


@pytest.mark.parametrize("names", [["a", "b", "a", "b", "a"], ["a", "b", "c"], [""] * 5, ["a"] * 23])
def test_every_picture_of_a_sheet_is_drawn_where_the_layout_has_it(names: list[str]) -> None:
    values = torch.linspace(-1, 1, len(names) + 2)[1:-1]
    images = values[:, None, None, None].expand(-1, 1, 8, 8)
    layout = lay_out(names, 8, "title")
    sheet = np.asarray(draw_sheet(images, layout))
    bytes_ = ((values + 1) * 127.5).round().tolist()
    for (x, y), value in zip(layout.cells, bytes_, strict=True):
        tile = sheet[y : y + 8 * layout.scale, x : x + 8 * layout.scale]
        assert tile.shape == (8 * layout.scale, 8 * layout.scale)
        assert (tile == value).all()
    assert len(set(layout.cells)) == len(names)
    places = {name: [cell for cell, one in zip(layout.cells, names, strict=True) if one == name] for name in names}
    for cells in places.values():  # of one class: in reading order
        assert cells == sorted(cells, key=lambda cell: (cell[1], cell[0]))
    rows = {y for _, y in layout.cells}
    assert len(rows) == {5: 2, 3: 2, 23: 2}[len(names)]


@pytest.mark.parametrize("names", [["n" * 300, "b", "n" * 300], ["n" * 300, "b"], ["", ""]])
def test_long_names_and_titles_stay_on_the_sheet(names: list[str]) -> None:
    title = ", ".join(f"part {k} of the title" for k in range(30))
    layout = lay_out(names, 8, title)
    draw = ImageDraw.Draw(Image.new("L", layout.size))
    font = ImageFont.load_default(12)
    for x, y, text in layout.texts:
        assert x + draw.textlength(text, font) <= layout.size[0]
        assert y + 14 <= layout.size[1]
    lines = [text for _, y, text in layout.texts if y < min(y for _, y in layout.cells) - 14]
    assert " ".join(lines) == title
    assert layout.size[0] <= 800
    assert all(
        left >= x + draw.textlength(text, font) or y + 14 <= top or y >= top + 48
        for left, top in layout.cells
        for x, y, text in layout.texts
    )  # no letter on a picture


@pytest.mark.parametrize(("classes", "shown"), [(0, []), (3, [0, 1, 2]), (10, list(range(10)))])
def test_previews_show_every_class_of_few(classes: int, shown: list[int]) -> None:
    assert preview_classes(classes) == shown


@pytest.mark.parametrize("classes", [11, 200, 1000])
def test_previews_show_ten_classes_of_many_from_the_first_to_the_last(classes: int) -> None:
    chosen = preview_classes(classes)
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (10, 0, classes - 1)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps) - min(gaps) <= 1


def test_a_caption_has_the_values_used_and_no_defaults_by_name() -> None:
    pipe: Any = SimpleNamespace(backbone=SimpleNamespace(dtype=torch.bfloat16), class_names=None)
    call = Call(
        (1, 1), ((7, 0), (7, 1)), make_sampler("ddim"), 5, make_grid("uniform"), make_guidance("cfg:scale=1.5"), 2
    )
    text = caption(pipe, call, nfe=10)
    assert text == "ddim(eta=0), 5 steps, 10 NFE, grid uniform, cfg(scale=1.5, rescale=0), seed 7, bfloat16"


def test_a_trajectory_is_of_posterior_means_of_all_batches_step_by_step() -> None:
    class Step:
        def __init__(self, index: int, value: float) -> None:
            self.index, self.x0, self.x_s = index, torch.full((2, 1, 1, 1), value), torch.full((2, 1, 1, 1), -9.0)

    kept = Trajectory()
    for batch in (0, 1):
        for index in (0, 1, 2):
            kept(Step(index, 10.0 * batch + index))  # type: ignore[arg-type]
    assert [frame.flatten().tolist() for frame in kept.frames] == [[k, k, 10 + k, 10 + k] for k in (0, 1, 2)]


def test_time_left_of_a_set_is_that_of_the_images_that_are_missing() -> None:
    assert Progress(30, 100, 7.0).seconds_left == 10
    assert Progress(100, 100, 7.0).seconds_left == 0
    assert Progress(0, 100, 0.0).seconds_left == math.inf
