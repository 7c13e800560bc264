"""A run goes on to more steps, or ends after fewer; its numbers are those of the schedule's rule."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.training import Recipe, TrainingDiverged, load_recipe, parse_recipe
from dinit.training.optimizer import learning_rate
from dinit.training.recipe.model import ScheduleSection
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.folder import RunFolderError, check_run_folder, read_recipe
from dinit.training.run.log import read_losses
from dinit.training.step import StepResult, TrainingLoop

TINY = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2, dropout: 0.1}
optimizer: {lr: 3e-3}
schedule: {warmup_steps: 3}
ema: {decay: 0.9, widths: [0.1], snapshot_every: 5}
training: {steps: 8, batch_size: 16, checkpoint_every: 4, log_every: 2, keep: 9}
sampling: {steps: 2}
tracker: null
"""
COSINE = "schedule={kind: cosine, warmup_steps: 3, floor: 0.1}"


def tiny(*overrides: str) -> Recipe:
    return parse_recipe(TINY, overrides)


def losses(folder: Path) -> list[tuple[int, float]]:
    return read_losses(folder / "losses.jsonl")


def same_state(one: Path, other: Path) -> None:
    for name in ("raw", "ema", "optimizer", "random", "powers"):
        ours, theirs = (
            load_file(list_checkpoints(run / "checkpoints")[-1] / f"{name}.safetensors") for run in (one, other)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """short: 8 steps. long: 14 steps, without interruption. Both of a constant schedule."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(), folder / "short", progress=False)
    train(tiny("training.steps=14"), folder / "long", progress=False)
    return folder


@pytest.fixture
def short(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "short", tmp_path / "run"))


def test_a_constant_schedule_goes_on_as_if_it_had_been_longer_from_the_start(runs: Path, short: Path) -> None:
    result = train(tiny(), short, progress=False, extend=14)
    assert result.steps == 14
    assert losses(short) == losses(runs / "long")
    same_state(short, runs / "long")
    weights = (Pipeline.from_pretrained(run / "pipeline").backbone.state_dict() for run in (short, runs / "long"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*(w.values() for w in weights), strict=True))
    recorded = read_recipe(short)
    assert (recorded.training.steps, recorded.training.extended) == (14, [(8, 8)])
    facts = json.loads((short / "pipeline" / "training.json").read_text())
    assert (facts["steps"], facts["images"]) == (14, 14 * 16)


def stop_after(step: int) -> Any:
    def stop(loop: TrainingLoop, _: StepResult) -> None:
        if loop.step == step:
            raise RuntimeError("killed")

    return stop


def test_an_extension_that_is_killed_goes_on_without_being_named_again(runs: Path, short: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny(), short, progress=False, extend=14, on_step=stop_after(11))
    assert train(tiny(), short, progress=False, extend=14).steps == 14  # the same command
    assert losses(short) == losses(runs / "long")
    again = Path(shutil.copytree(runs / "short", short.parent / "again"))
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny(), again, progress=False, extend=14, on_step=stop_after(13))
    assert train(tiny(), again, progress=False).steps == 14  # that of the first 8 steps
    assert losses(again) == losses(runs / "long")
    same_state(again, runs / "long")
    assert train(tiny(), again, progress=False).steps == 14
    assert read_recipe(again).training.extended == [(8, 8)]


def rates(folder: Path, recipe: Recipe, **how: Any) -> list[float]:
    found: list[float] = []

    def note(loop: TrainingLoop, _: StepResult) -> None:
        found.append(loop.state.optimizer.param_groups[0]["lr"])

    train(recipe, folder, progress=False, on_step=note, **how)
    return found


def cosine(step: int, total: int) -> float:
    share = (1 + math.cos(math.pi * (step - 3) / (total - 3))) / 2
    return 3e-3 * (step / 4 if step <= 3 else 0.1 + 0.9 * share)


def test_learning_rates_of_an_extended_cosine_are_those_of_the_new_total(tmp_path: Path) -> None:
    recipe = tiny(COSINE)
    first = rates(tmp_path / "run", recipe)
    assert first == pytest.approx([cosine(step, 8) for step in range(1, 9)], rel=1e-12)
    assert first[-1] == pytest.approx(3e-4, rel=1e-12)
    more = rates(tmp_path / "run", recipe, extend=20)
    assert more == pytest.approx([cosine(step, 20) for step in range(9, 21)], rel=1e-12)
    assert more[-1] == pytest.approx(3e-4, rel=1e-12)
    last = rates(tmp_path / "run", recipe, extend=24)
    assert last == pytest.approx([cosine(step, 24) for step in range(21, 25)], rel=1e-12)
    recorded = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert recorded.training.extended == [(8, 8), (20, 20)]
    # The recorded recipe trains the same again, from the start and in one piece.
    assert rates(tmp_path / "again", recorded) == pytest.approx([*first, *more, *last], rel=0)
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    same_state(tmp_path / "again", tmp_path / "run")


def test_the_rule_of_learning_rates() -> None:
    schedule = ScheduleSection(kind="cosine", warmup_steps=2, floor=0.0)
    steps = range(1, 21)
    changed = [learning_rate(step, 20, 1.0, schedule, [(5, 10), (12, 15)]) for step in steps]
    totals = [10] * 5 + [15] * 7 + [20] * 8
    assert changed == [learning_rate(step, total, 1.0, schedule) for step, total in zip(steps, totals, strict=True)]
    constant = ScheduleSection(warmup_steps=2)
    assert [learning_rate(step, 20, 1.0, constant, [(5, 10)]) for step in steps] == [1 / 3, 2 / 3, *[1.0] * 18]


def interrupted(folder: Path, step: int, *overrides: str) -> Recipe:
    recipe = tiny("training.checkpoint_every=1", *overrides)
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, folder, progress=False, on_step=stop_after(step + 1))
    return recipe


def test_a_run_that_is_not_finished_is_extended_and_shortened(tmp_path: Path, runs: Path) -> None:
    recipe = interrupted(tmp_path / "run", 6)
    plan = check_run_folder(tmp_path / "run", recipe, True, extend=14)
    assert (plan.recipe.training.steps, plan.recipe.training.extended) == (14, [(6, 8)])
    assert train(recipe, tmp_path / "run", progress=False, extend=14).steps == 14
    assert losses(tmp_path / "run") == losses(runs / "long")


def test_fewer_steps_end_the_run_there(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = interrupted(tmp_path / "run", 4, "training.steps=14")
    fewer = tiny("training.checkpoint_every=1", "training.steps=8")
    assert train(fewer, tmp_path / "run").steps == 8
    assert "to 8 steps in place of 14" in capsys.readouterr().err
    assert losses(tmp_path / "run") == losses(runs / "short")
    assert train(recipe, tmp_path / "run", progress=False).steps == 8  # which 14 had been before
    assert train(recipe, tmp_path / "run", progress=False, extend=14).steps == 14
    assert losses(tmp_path / "run") == losses(runs / "long")


def test_steps_that_are_done_are_kept_where_fewer_are_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tmp_path / "run", 6)
    result = train(tiny("training.checkpoint_every=1", "training.steps=5"), tmp_path / "run")
    assert result.steps == 6
    assert "6 steps are done, not fewer than training.steps = 5" in capsys.readouterr().err
    ema = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "ema.safetensors")
    made = Pipeline.from_pretrained(result.pipeline).backbone.state_dict()
    assert all(torch.equal(made[name], ema[name]) for name in ema)
    assert read_recipe(tmp_path / "run").training.steps == 6
    before = result.pipeline.stat().st_mtime_ns
    assert train(tiny("training.checkpoint_every=1", "training.steps=2"), tmp_path / "run").steps == 6
    assert "all 6 steps are done already" in capsys.readouterr().err
    assert result.pipeline.stat().st_mtime_ns == before


def test_a_warm_up_of_the_begun_run_stays_where_it_is_ended_sooner(tmp_path: Path) -> None:
    long_start = tiny("training.steps=20", "schedule.warmup_steps=12")
    with pytest.raises(RuntimeError, match="killed"):
        train(long_start, tmp_path / "run", progress=False, on_step=stop_after(5))
    with pytest.warns(UserWarning, match="schedule.warmup_steps is 0 in place of 12"):
        fewer = parse_recipe(TINY.replace("warmup_steps: 3", "warmup_steps: 12"), ["training.steps=7"])
    assert rates(tmp_path / "run", fewer) == pytest.approx([3e-3 * step / 13 for step in (5, 6, 7)], rel=1e-12)


REFUSED = {
    "no run": (None, 9, "holds no run to extend; training.steps=9"),
    "done already": ({}, 8, None),
    "less than done": ({}, 7, "--extend 7: 8 steps of the run .* are done already; .* give more than 8"),
    "more steps without it": ({"training.steps": 9}, None, "add --extend 9"),
    "another key": ({"optimizer.lr": 0.1}, 14, "optimizer.lr: 0.003 there, 0.1 now"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_extended(case: str, short: Path, tmp_path: Path) -> None:
    changes, extend, message = REFUSED[case]
    folder = tmp_path / "new" if changes is None else short
    before = sorted(folder.rglob("*"))
    recipe = tiny(*(f"{key}={value}" for key, value in (changes or {}).items()))
    if message is None:
        assert train(recipe, folder, progress=False, extend=extend).steps == 8
    else:
        with pytest.raises(RunFolderError, match=message):
            train(recipe, folder, progress=False, extend=extend)
    assert sorted(folder.rglob("*")) == before


def test_an_unfinished_run_is_not_extended_to_fewer_than_it_has(tmp_path: Path) -> None:
    recipe = interrupted(tmp_path / "run", 4)
    with pytest.raises(RunFolderError, match=r"total of 8 steps already, of which 4 are done.*training\.steps=6"):
        train(recipe, tmp_path / "run", progress=False, extend=6)


def test_a_run_without_its_checkpoints(short: Path) -> None:
    shutil.rmtree(short / "checkpoints")
    assert train(tiny(), short, progress=False).steps == 8  # finished
    with pytest.raises(RunFolderError, match=r"no checkpoint left.*--init-from"):
        train(tiny(), short, progress=False, extend=14)
    shutil.rmtree(short / "pipeline")
    with pytest.raises(RunFolderError, match="has trained 8 steps and its checkpoints are gone"):
        train(tiny(), short, progress=False)
    assert len(losses(short)) == 8


def test_a_diverged_run_is_not_extended(tmp_path: Path) -> None:
    recipe = tiny("training.max_skipped=2", "training.checkpoint_every=2")

    def spoil(loop: TrainingLoop, _: StepResult) -> None:
        if loop.step == 5:
            with torch.no_grad():
                next(loop.state.backbone.parameters()).fill_(math.nan)

    with pytest.raises(TrainingDiverged):
        train(recipe, tmp_path / "run", progress=False, on_step=spoil)
    with pytest.raises(RunFolderError, match=r"diverged at step \d, after its last checkpoint at step 4"):
        train(recipe, tmp_path / "run", progress=False, extend=20)


def test_a_damaged_record_and_a_read_only_folder(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = short / "pipeline" / "training.json"
    whole = record.read_text()
    record.write_text(whole[:20])
    with pytest.raises(RunFolderError, match=r"training\.json is damaged; remove"):
        train(tiny(), short, progress=False)
    record.write_text(whole)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RunFolderError, match="is read-only"):
        train(tiny(), short, progress=False)
