"""Sheets and animations by their pixels and times, and the figures of progress."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.pipelines.callbacks import Trajectory
from dinit.pipelines.outputs.sets import Progress
from dinit.pipelines.outputs.sheets import animation_bytes, draw_sheet, enlargement, lay_out


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
