"""Scores while training: the run does not know that it is watched; they are those of its averaged weights."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinit.data.digits import Digits
from dinit.evaluation.reports.report import Report
from dinit.files import only_writer
from dinit.pipelines.evaluate import evaluate
from dinit.pipelines.runs.watch import Evaluations, read_evaluations, untouched_randomness, watch
from dinit.pipelines.train import train
from dinit.training import Recipe, parse_recipe
from dinit.training.recipe.file import RecipeError
from dinit.training.run.checkpoint import load_checkpoint
from dinit.training.run.folder import write_recipe
from dinit.training.run.log import read_losses

TINY = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2, dropout: 0.1}
ema: {decay: 0.9}
training: {steps: 9, batch_size: 16, checkpoint_every: 3, keep: 9, log_every: 3, workers: 0}
sampling: {steps: 2, sampler: ddpm}
tracker: null
"""
MEASURED = "evaluation={every: 4, num_samples: 40, metrics: [fid, precision]}"


def tiny(*overrides: str) -> Recipe:
    return parse_recipe(TINY, overrides)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Without and with evaluations."""
    plain, measured = (tmp_path_factory.mktemp(name) / "run" for name in ("plain", "measured"))
    train(tiny(), plain, progress=False)
    train(tiny(MEASURED), measured, progress=False)
    return plain, measured


def test_losses_and_weights_are_the_same_with_and_without(runs: tuple[Path, Path]) -> None:
    losses = [read_losses(run / "losses.jsonl") for run in runs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
    first, second = (load_checkpoint(run / "checkpoints" / "step-00000009") for run in runs)
    for part in ("model", "ema", "optimizer", "random"):
        one, two = getattr(first, part), getattr(second, part)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), part
    assert read_evaluations(runs[0]) == []


def test_every_nth_step_and_the_last_are_measured(runs: tuple[Path, Path]) -> None:
    lines = read_evaluations(runs[1])
    assert [line["step"] for line in lines] == [4, 8, 9]
    assert [line["images"] for line in lines] == [64, 128, 144]
    assert {line["protocol"] for line in lines} == {"digits"}
    assert len({line["metrics"]["fid"] for line in lines}) == 3
    assert len({line["real"]["fid"] for line in lines}) == 1


def test_the_scores_are_those_of_the_pipeline_that_is_written(runs: tuple[Path, Path]) -> None:
    last = read_evaluations(runs[1])[-1]
    report = evaluate(runs[1] / "pipeline", 40, metrics=["fid", "precision"], cuda=False)
    assert report.model.metrics["fid"] == pytest.approx(last["metrics"]["fid"], rel=1e-9)
    assert report.real.metrics["fid"] == pytest.approx(last["real"]["fid"], rel=1e-9)


@pytest.mark.slow
def test_a_run_is_watched_from_beside_it(runs: tuple[Path, Path]) -> None:
    plain, measured = runs
    found = dict(watch(plain, num_samples=40, metrics=["fid", "precision"], device="cpu"))
    assert list(found) == [9]  # the newest; those before it are not measured afterwards
    assert isinstance(found[9], Report)
    assert found[9].made_by["weights"] == "ema"
    assert read_evaluations(plain)[-1]["metrics"] == read_evaluations(measured)[-1]["metrics"]
    (measured / "evaluations.jsonl").unlink()
    assert list(dict(watch(measured, device="cpu"))) == [9]  # by the recipe's own section
    assert read_evaluations(measured)[-1] | {"seconds": 0} == read_evaluations(plain)[-1] | {"seconds": 0}
    assert dict(watch(plain, num_samples=40, device="cpu")) == {}  # done already
    with pytest.raises(ValueError, match="wanted: a run, the folder that"):
        next(watch(plain / "checkpoints"))


def _hold(folder: Path, held: Any, end: Any) -> None:
    with only_writer(folder):
        held.set()
        end.wait(60)


def test_watching_a_run_that_nobody_trains_ends(tmp_path: Path) -> None:
    write_recipe(tmp_path, tiny(MEASURED))
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(tmp_path, held, end))
    child.start()
    try:
        assert held.wait(30)
        began = time.monotonic()
        threading.Timer(1.0, end.set).start()  # until then a process trains
        with pytest.raises(TimeoutError, match="no process trains into it; start `dinit train` again"):
            next(watch(tmp_path, poll_seconds=0.01, patience_seconds=0.1, device="cpu"))
        assert time.monotonic() - began >= 1.0
    finally:
        child.kill()
        child.join(30)


def test_a_run_that_goes_back_measures_anew(runs: tuple[Path, Path], tmp_path: Path) -> None:
    evaluations = Evaluations(tiny(), tmp_path, 16, metrics=["fid"], cuda=False)
    for step, fid in ((2, 1.0), (4, 2.0), (6, 3.0), (4, 9.0)):
        report = evaluations.evaluator.report(Digits("train").uint8_images(list(range(16))))
        object.__setattr__(report.model, "metrics", {"fid": fid})
        evaluations._log(report, step, 0.0)
    assert [(line["step"], line["metrics"]["fid"]) for line in read_evaluations(tmp_path)] == [(2, 1.0), (4, 9.0)]


def test_generators_are_put_back_even_after_an_error() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])

    def draws_and_fails() -> None:
        with untouched_randomness():
            drawn()
            torch.manual_seed(5)
            raise KeyError

    with pytest.raises(KeyError):
        draws_and_fails()
    assert drawn() == expected


def test_mistakes_of_the_section_are_told_before_training() -> None:
    with pytest.raises(RecipeError) as caught:
        tiny("evaluation={every: 5, num_samples: 3}")
    assert "greater than or equal to 8" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        tiny("evaluation={every: 5, metrics: [fidd], protocol: adn, data: {name: digitz}}")
    for part in ("did you mean 'fid'", "did you mean 'adm'", "digitz"):
        assert part in str(caught.value)
