"""Runs of the page: same noise, frames that can be looked at again, several visitors, and a run that is ended."""

from __future__ import annotations

import os
import threading
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinit import Pipeline
from dinit.app.board import Board, Card
from dinit.app.request import Column, Request, image_names
from dinit.app.running import Frame, Pipelines, names_to_offer, run

FOUR = Request(
    "digits-dico",
    (Column("ddim", 5), Column("heun", 3), Column("ancestral", 4), Column("euler", 2)),
    (1, 8),
    2,
    ("cfg:scale=2.0",),
    3,
)
OTHER = Request("digits-dico", (Column("dpmpp-2m", 4), Column("ancestral", 4)), (4,), 3, (), 9)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("digits-dico")


def pixels(frame: Frame) -> np.ndarray:
    return np.stack([np.asarray(one) for one in frame.pictures])


def last(frames: list[Frame]) -> list[bytes]:
    ended = sorted((one for one in frames if one.generated is not None), key=lambda one: one.column)
    return [pixels(one).tobytes() for one in ended]


class Lock:
    """A lock that counts how often it is taken and never is taken twice at once."""

    def __init__(self) -> None:
        self.held, self.times = False, 0

    def __enter__(self) -> None:
        assert not self.held
        self.held, self.times = True, self.times + 1

    def __exit__(self, *error: Any) -> None:
        self.held = False


def test_all_samplers_begin_with_the_same_noise(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    firsts = []
    honest = Pipeline.iterate

    def watched(self: Pipeline, call: Any) -> Any:
        for step in honest(self, call):
            if step.index == 0:
                firsts.append(step.x_t)
            yield step

    monkeypatch.setattr(Pipeline, "iterate", watched)
    list(run(pipe, FOUR.calls(pipe), Lock()))
    assert len(firsts) == 4
    unit = [x / x.std() for x in firsts]  # heun's prior has another scale only where its first time differs
    for x in unit[1:]:
        assert torch.allclose(x, unit[0], atol=1e-5)


def test_frames_come_in_turns_and_the_last_is_the_result(pipe: Pipeline) -> None:
    frames = list(run(pipe, FOUR.calls(pipe), Lock()))
    assert [one.column for one in frames[:4]] == [0, 1, 2, 3]
    assert [one.done for one in frames if one.column == 0] == [1, 2, 3, 4, 5]
    assert all(len(one.pictures) == 4 for one in frames)
    ends = [one for one in frames if one.generated]
    assert [one.done == one.total for one in frames] == [one.generated is not None for one in frames]
    assert sorted((one.column, one.nfe) for one in ends) == [(0, 5), (1, 5), (2, 4), (3, 2)]
    for one in ends:
        again = pipe.run(one.generated.call)  # type: ignore[union-attr]
        assert pixels(one).tobytes() == np.stack([np.asarray(picture) for picture in again.images]).tobytes()
    assert len(frames) - frames.index(ends[0]) <= 6  # they end together


def test_scrubber_has_every_step_and_ends_with_the_result(pipe: Pipeline) -> None:
    board = Board([Card(one.sampler, "") for one in FOUR.columns], image_names(FOUR, pipe))
    for frame in run(pipe, FOUR.calls(pipe), Lock()):
        board.add(frame)
    assert board.positions == 5
    assert [[shown.frame.done for shown in board.at(k) if shown] for k in (1, 3, 5)] == [
        [1, 1, 1, 1],
        [3, 2, 3, 1],
        [5, 3, 4, 2],
    ]
    assert board.at(5) == board.at(None) == [card.shown[-1] for card in board.cards]
    assert board.at(99) == board.at(5)
    assert board.at(1) != board.at(5)
    assert board.to_html(5).count("<img ") == 16
    assert all(one in board.to_html(5) for one in ("step 5&thinsp;/&thinsp;5", ">1</span>", ">8</span>"))


def test_two_visitors_in_turns_see_what_each_sees_alone(pipe: Pipeline) -> None:
    alone = [last(list(run(pipe, one.calls(pipe), Lock()))) for one in (FOUR, OTHER)]
    lock = Lock()
    both = [run(pipe, one.calls(pipe), lock) for one in (FOUR, OTHER)]
    frames: tuple[list[Frame], list[Frame]] = ([], [])
    for pair in zip_longest(*both):
        for kept, one in zip(frames, pair, strict=True):
            if one is not None:
                kept.append(one)
    assert [last(list(one)) for one in frames] == alone
    assert lock.times == len(list(chain(*frames)))


def test_two_visitors_in_threads(pipe: Pipeline) -> None:
    alone = [last(list(run(pipe, one.calls(pipe), Lock()))) for one in (FOUR, OTHER)]
    lock, found = threading.Lock(), {}

    def visit(name: int, request: Request) -> None:
        found[name] = last(list(run(pipe, request.calls(pipe), lock)))

    threads = [threading.Thread(target=visit, args=pair) for pair in enumerate((FOUR, OTHER))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[0], found[1]] == alone


def test_an_ended_run_evaluates_nothing_more(pipe: Pipeline) -> None:
    evaluations = []
    hook = pipe.backbone.register_forward_hook(lambda *_: evaluations.append(1))
    try:
        lock = Lock()
        calls = OTHER.calls(pipe)
        assert evaluations == []
        frames = run(pipe, calls, lock)
        assert [next(frames).nfe, next(frames).nfe, next(frames).nfe] == [1, 1, 2]
        assert not lock.held  # between frames
        assert len(evaluations) == 3
        frames.close()
        assert len(evaluations) == 3
        assert not lock.held
        assert list(frames) == []
    finally:
        hook.remove()


def test_a_sampler_that_fails_ends_alone_with_its_reason(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Pipeline.iterate

    def failing(self: Pipeline, call: Any) -> Any:
        for step in honest(self, call):
            if step.index == 1 and call.sampler.registry_name == "ancestral":
                raise ValueError("images hold NaN\nmore of it")
            yield step

    monkeypatch.setattr(Pipeline, "iterate", failing)
    frames = list(run(pipe, OTHER.calls(pipe), Lock()))
    assert [one.error for one in frames if one.error] == ["images hold NaN"]
    assert [one.column for one in frames if one.generated] == [0]
    board = Board([Card("a", ""), Card("b", "")], image_names(OTHER, pipe))
    for frame in frames:
        board.add(frame)
    assert '<p class="error" role="alert">images hold NaN</p>' in board.to_html()


def test_dropout_stays_off_and_training_mode_comes_back() -> None:
    pipe = Pipeline.from_pretrained("digits-dico")
    pipe.backbone.train()
    one, two = (pipe.iterate(call) for call in OTHER.calls(pipe))
    for _ in range(4):
        next(one), next(two)
        assert pipe.backbone.training
    assert (list(one), list(two)) == ([], [])


def test_pipelines_are_opened_once_and_by_their_names(tmp_path: Any) -> None:
    opened = []

    def opener(name: str) -> Any:
        opened.append(name)
        return object()

    pipelines = Pipelines(["digits-dico", str(tmp_path), "digits-dico"], opener)
    assert pipelines.names == ("digits-dico", str(tmp_path))
    assert pipelines.open("digits-dico") is pipelines.open("digits-dico")
    assert opened == ["digits-dico"]
    assert pipelines.find(str(tmp_path / "." / "")) == str(tmp_path)
    with pytest.raises(ValueError, match="the picture was made by glyphs-32, which is not one"):
        pipelines.find("glyphs-32")
    with pytest.raises(ValueError, match="glyphs-32 is not one of the pipelines of this page"):
        pipelines.open("glyphs-32")
    first = pipelines.open(str(tmp_path))
    (tmp_path / "weights").write_text("changed")
    assert pipelines.open(str(tmp_path)) is not first


def test_runs_are_offered_with_the_shipped_ones(tmp_path: Path) -> None:
    """A finished run and one with a checkpoint are offered as runs, and opened; a run without weights is not."""
    pipe = Pipeline.from_pretrained("digits-dico")
    finished, begun, empty, alone = (tmp_path / name for name in ("a", "b", "c", "d"))
    for run_folder in (finished, begun, empty):
        run_folder.mkdir()
        (run_folder / "recipe.yaml").write_text("{}")
    pipe.save_pretrained(finished / "pipeline")
    pipe.save_pretrained(begun / "model")
    step = begun / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    (step / "state.json").write_text('{"step": 7}')
    weights = begun / "model" / "backbone" / "diffusion_pytorch_model.safetensors"
    weights.rename(step / "ema.safetensors")
    pipe.save_pretrained(alone / "pipeline")
    for age, file in enumerate((step / "ema.safetensors", finished / "pipeline" / "model_index.json")):
        os.utime(file, (10 - age, 10 - age))
    names = names_to_offer("given", tmp_path)
    assert names[:4] == ["given", str(alone / "pipeline"), str(begun), str(finished)]
    assert not any(str(empty) in name for name in names)
    assert "digits-dico" in names[4:]
    assert names_to_offer("digits-dico", tmp_path / "none").count("digits-dico") == 1

    pipelines = Pipelines(names, Pipeline.from_pretrained)
    for recorded in (finished, finished / "pipeline"):
        assert pipelines.find(str(recorded)) == str(finished)
    with pytest.warns(UserWarning, match="is not finished: this is step 7"):
        opened = pipelines.open(str(begun))
    assert opened.name_or_path == str(step)
    assert pipelines.find(opened.name_or_path) == str(begun)
    (begun / "events.jsonl").write_text("{}")
    assert pipelines.open(str(begun)) is opened
    assert torch.equal(opened([3], steps=2, output_type="raw").images, pipe([3], steps=2, output_type="raw").images)
