"""The training loop: it learns, it can be killed at any moment, and its pipeline is what was trained."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import ranks
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dinit.data.order import sample_indices
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.runs.posthoc import pipeline_of_width
from dinit.pipelines.train import train
from dinit.training import Objective, Recipe, parse_recipe
from dinit.training.build import make_backbone, make_data
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.divergence import TrainingDiverged
from dinit.training.run.folder import RunFolderError
from dinit.training.run.log import read_losses

TINY = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2, dropout: 0.1}
optimizer: {lr: 3e-3}
schedule: {kind: cosine, warmup_steps: 5}
ema: {decay: 0.9}
training: {steps: 60, batch_size: 16, gradient_accumulation: 2, checkpoint_every: 7, log_every: 3}
sampling: {steps: 3}
tracker: null
"""


def tiny(*overrides: str) -> Recipe:
    return parse_recipe(TINY, overrides)


def losses(folder: Path) -> list[tuple[int, float]]:
    return read_losses(folder / "losses.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(tiny(), folder, progress=False)
    return folder


def test_run_leaves_what_it_promises(uninterrupted: Path) -> None:
    assert [step for step, _ in losses(uninterrupted)] == list(range(1, 61))
    assert [path.name for path in list_checkpoints(uninterrupted / "checkpoints")] == [
        "step-00000056",
        "step-00000060",
    ]
    facts = json.loads((uninterrupted / "pipeline" / "training.json").read_text())
    assert facts["steps"] == 60
    assert facts["images"] == 960
    assert facts["final_loss"] == pytest.approx(sum(loss for _, loss in losses(uninterrupted)) / 60)
    for folder in (uninterrupted, uninterrupted / "pipeline"):
        assert Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text())) == tiny()


def test_loss_falls(uninterrupted: Path) -> None:
    values = [loss for _, loss in losses(uninterrupted)]
    assert sum(values[-15:]) < 0.87 * sum(values[:15])  # 0.84 here


def test_pipeline_holds_the_averaged_weights(uninterrupted: Path) -> None:
    checkpoint = list_checkpoints(uninterrupted / "checkpoints")[-1]
    ema, model = (load_file(checkpoint / f"{name}.safetensors") for name in ("ema", "raw"))
    pipeline = Pipeline.from_pretrained(uninterrupted / "pipeline")
    shipped = pipeline.backbone.state_dict()
    assert shipped.keys() == ema.keys()
    assert all(torch.equal(shipped[key], ema[key]) for key in ema)
    assert any(not torch.equal(model[key], ema[key]) for key in ema)
    assert pipeline.defaults["steps"] == 3
    assert pipeline([3, 1], seed=0, output_type="pt").images.isfinite().all()


def test_finished_run_is_returned_and_not_repeated(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    result = train(tiny(), uninterrupted, progress=False)
    assert result.steps == 60
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
    with pytest.raises(RunFolderError, match="another recipe"):
        train(tiny("seed=1"), uninterrupted)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(tiny("training.steps=6"), tmp_path / "run", progress=False)
    assert torch.equal(state, torch.get_rng_state())


def _train_in_child(folder: str) -> None:
    train(tiny(), folder, progress=False)


def killed_run(folder: Path, kills: int, seed: int) -> None:
    """Starts a run again and again, killing it `kills` times at random moments; the last one finishes."""
    chance = random.Random(seed)
    for attempt in range(kills + 1):
        reached = len(losses(folder)) if (folder / "losses.jsonl").exists() else 0
        (child,) = ranks.start(1, _train_in_child, str(folder))
        if attempt == kills:
            ranks.join([child])
            assert child.exitcode == 0
            return
        target = min(reached + chance.randint(0, max(60 // kills - 3, 1)), 45)  # well before the end
        log = folder / "losses.jsonl"
        ranks.wait_for(
            lambda child=child, log=log, target=target: (
                not child.is_alive() or (log.exists() and len(losses(folder)) >= max(target, 1))
            )
        )
        time.sleep(chance.uniform(0, 0.03))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        ranks.join([child])
        assert child.exitcode == -signal.SIGKILL, "the run ended before it could be killed"


def check_killed_run(folder: Path, uninterrupted: Path, kills: int, seed: int) -> None:
    killed_run(folder, kills, seed)
    assert losses(folder) == losses(uninterrupted)  # every float, bit for bit
    for name in ("raw", "ema", "optimizer", "random"):
        ours, theirs = (
            load_file(list_checkpoints(run / "checkpoints")[-1] / f"{name}.safetensors")
            for run in (folder, uninterrupted)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert not [path for path in folder.rglob("*") if path.name.startswith(".dinit-")]


def test_killed_and_resumed_run_is_the_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    check_killed_run(tmp_path / "run", uninterrupted, kills=2, seed=1)


@pytest.mark.slow
def test_ten_kills(uninterrupted: Path, tmp_path: Path) -> None:
    check_killed_run(tmp_path / "run", uninterrupted, kills=10, seed=2)


def test_a_run_killed_before_its_first_line_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".dinit-abc.tmp").write_text("half a recipe")
    train(tiny("training.steps=6"), folder, progress=False)
    assert len(losses(folder)) == 6


def test_torn_last_line_of_the_log_is_replaced(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny("training.steps=14", "schedule.kind=constant"), folder, progress=False)
    whole = losses(folder)
    (folder / "pipeline").rename(tmp_path / "away")
    path = folder / "losses.jsonl"
    path.write_text(path.read_text()[:-9])
    train(tiny("training.steps=14", "schedule.kind=constant"), folder, progress=False)
    assert losses(folder) == whole[:13]  # step 14's checkpoint is whole: its loss is not computed again


def test_accumulation_does_not_change_the_losses(tmp_path: Path) -> None:
    runs = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        overrides = [f"training.gradient_accumulation={parts}", "training.steps=10", "backbone.dropout=0.0"]
        train(tiny(*overrides), folder, progress=False)
        runs.append(torch.tensor([loss for _, loss in losses(folder)]))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=0)


def test_gradient_checkpointing_does_not_change_the_losses(tmp_path: Path) -> None:
    runs = []
    for checkpointing in ("false", "true"):
        folder = tmp_path / checkpointing
        train(
            tiny(f"training.gradient_checkpointing={checkpointing}", "training.steps=10"),
            folder,
            progress=False,
        )
        runs.append(torch.tensor([loss for _, loss in losses(folder)]))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=0)


def test_bf16_trains(tmp_path: Path) -> None:
    train(tiny("training.precision=bf16"), tmp_path / "run", progress=False)
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert sum(values[-15:]) < 0.87 * sum(values[:15])


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 runs on a GPU")
def test_fp16_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train(tiny("training.precision=fp16"), tmp_path / "run", progress=False)


def test_diverged_run_stops_and_says_so(tmp_path: Path) -> None:
    overrides = ("optimizer.lr=1e30", "training.clip_norm=null", "training.max_skipped=3")
    with pytest.raises(TrainingDiverged, match=r"3 consecutive steps.*Lower"):
        train(tiny(*overrides), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "pipeline").exists()


def test_a_step_without_a_finite_gradient_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after it are those before it, its images are named, and the run goes on."""
    folder, steps = tmp_path / "run", iter(range(1, 100))
    honest = Objective.losses

    def losses_of(self, network, *arguments):
        return honest(self, network, *arguments) * (math.nan if next(steps) == 3 else 1.0)

    monkeypatch.setattr(Objective, "losses", losses_of)
    overrides = ("training.steps=4", "training.checkpoint_every=1", "training.keep=9", "schedule.kind=constant")
    recipe = tiny(*overrides, "training.gradient_accumulation=1", "schedule.warmup_steps=0")
    train(recipe, folder, progress=False)
    models = [load_file(path / "raw.safetensors") for path in list_checkpoints(folder / "checkpoints")]
    same = [all(torch.equal(a[key], b[key]) for key in a) for a, b in itertools.pairwise(models)]
    assert same == [False, True, False]
    (line,) = (folder / "skipped.jsonl").read_text().splitlines()
    size = recipe.training.batch_size
    indices = sample_indices(recipe.seed, 2 * size, size, len(make_data(recipe)))
    assert json.loads(line) == {"step": 3, "loss": "nan", "indices": list(map(int, indices))}
    assert json.loads((folder / "pipeline" / "training.json").read_text())["skipped_steps"] == 1
    assert [math.isnan(loss) for _, loss in losses(folder)] == [False, False, True, False]


def test_a_resumed_run_s_files_hold_no_step_twice(tmp_path: Path) -> None:
    """What a killed run logged after its last checkpoint is taken out, since those steps are repeated."""
    folder = tmp_path / "run"
    overrides = ("training.steps=4", "training.checkpoint_every=2", "training.log_every=1", "training.keep=9")
    recipe = tiny(*overrides, "schedule.warmup_steps=0")
    train(recipe, folder, progress=False)
    shutil.rmtree(list_checkpoints(folder / "checkpoints")[-1])
    shutil.rmtree(folder / "pipeline")
    with open(folder / "skipped.jsonl", "w") as stream:
        stream.writelines(json.dumps({"step": step, "loss": "nan", "indices": []}) + "\n" for step in (2, 3))
    train(recipe, folder, progress=False)
    steps = {
        name: [json.loads(line)["step"] for line in (folder / name).read_text().splitlines()]
        for name in ("skipped.jsonl", "health.jsonl")
    }
    assert steps == {"skipped.jsonl": [2], "health.jsonl": [1, 2, 3, 4]}
    assert [step for step, _ in losses(folder)] == [1, 2, 3, 4]


def test_another_width_of_ema_after_the_training(tmp_path: Path) -> None:
    """A snapshot's own width gives the average that the checkpoint holds."""
    folder = tmp_path / "run"
    overrides = ("ema={widths: [0.05, 0.1], snapshot_every: 4}", "training.steps=10", "training.checkpoint_every=5")
    train(tiny(*overrides), folder, progress=False)
    kept = load_file(list_checkpoints(folder / "checkpoints")[-1] / "powers.safetensors")
    made = pipeline_of_width(folder, 0.1, tmp_path / "made")
    found = dict(Pipeline.from_pretrained(made).backbone.named_parameters())
    for name, value in found.items():
        torch.testing.assert_close(value, kept[f"0.1/{name}"], rtol=1e-4, atol=1e-6)
    assert json.loads((made / "training.json").read_text())["ema"] == {"sigma_rel": 0.1, "step": 10}
    names = sorted(path.name for path in (folder / "ema").iterdir())
    assert names == sorted(f"ema-{w}-{s:08d}.safetensors" for w in ("0.0500", "0.1000") for s in (4, 8, 10))
    with pytest.raises(FileExistsError, match="another folder"):
        pipeline_of_width(folder, 0.1, made)


def test_sample_grid_and_tracker(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny("training.steps=6", "training.sample_every=3", "tracker=tensorboard"), folder, progress=False)
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["step-00000000-ema.png", "step-00000003-ema.png", "step-00000006-ema.png"]
    width, height = Image.open(folder / "samples" / names[0]).size
    assert width == pytest.approx(8 * 76, abs=25)  # pictures of 72 pixels, and the names at their left
    assert height == 10 * 76 + 26  # and one line of title
    assert list((folder / "logs").rglob("events.out.tfevents.*"))


def test_the_optimizer_steps_at_the_schedules_rate(tmp_path: Path) -> None:
    """AdamW's first step moves each weight by the learning rate: here the floor of a cosine of one step."""
    overrides = ["training.steps=1", "schedule={kind: cosine, floor: 0.25}", "optimizer.lr=0.1"]
    recipe = tiny(*overrides, "optimizer.eps=1e-16")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        fresh = make_backbone(recipe, make_data(recipe)).state_dict()
    train(recipe, tmp_path / "run", progress=False)
    trained = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "raw.safetensors")
    largest = max(float((trained[key] - fresh[key]).abs().max()) for key in fresh)
    assert largest == pytest.approx(0.25 * 0.1, rel=1e-3)


def test_label_dropout_trains_the_null_class(tmp_path: Path) -> None:
    """Without dropout the null class's row gets no gradient and stays where it began; with it, it moves."""
    with torch.random.fork_rng():
        torch.manual_seed(tiny().seed)
        fresh = make_backbone(tiny(), make_data(tiny())).state_dict()
    (table,) = [key for key, value in fresh.items() if value.shape[:1] == (11,)]
    for dropout, moves in (("0.0", False), ("0.5", True)):
        folder = tmp_path / dropout
        train(tiny(f"label_dropout={dropout}", "training.steps=6"), folder, progress=False)
        trained = load_file(list_checkpoints(folder / "checkpoints")[-1] / "raw.safetensors")
        assert torch.equal(trained[table][-1], fresh[table][-1]) != moves
        assert not torch.equal(trained[table][:-1], fresh[table][:-1])
