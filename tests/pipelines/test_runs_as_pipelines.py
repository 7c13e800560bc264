"""A run's folder stands for its pipeline: the finished one, or that of its newest whole checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dinit.checkpoints import locate
from dinit.checkpoints import runs as runs_module
from dinit.cli.app import app
from dinit.evaluation.samples import is_samples
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.training import Recipe, parse_recipe
from dinit.training.finetune.transfer import default_recipe, read_pretrained
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.folder import RunFolderError
from dinit.training.run.summary import run_summary

TINY = """\
name: tiny
backbone: {name: dit, patch_size: 4, hidden_size: 8, depth: 1, num_heads: 1}
training: {steps: 6, batch_size: 4, checkpoint_every: 2, log_every: 1, keep: 9, sample_every: 6, workers: 0}
sampling: {steps: 2}
tracker: null
"""


def data_in(folder: Path, count: int = 12, classes: int = 3) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "a.npz", images=images, labels=np.arange(count) % classes)
    return folder / "a.npz"


def tiny(data: Path, *overrides: str) -> Recipe:
    return parse_recipe(TINY, [f"data={{name: npz, path: {data}, layout: nchw}}", *overrides])


def stopped(folder: Path, recipe: Recipe, after: int) -> None:
    def stop(loop: Any, _: Any) -> None:
        if loop.step == after:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, folder, progress=False, on_step=stop)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/half: killed at step 5 of 6. runs/whole: finished."""
    folder = tmp_path_factory.mktemp("made")
    recipe = tiny(data_in(folder / "data"))
    stopped(folder / "half", recipe, 5)
    train(recipe, folder / "whole", progress=False)
    return folder


@pytest.fixture
def half(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs_module, "_made", {})
    return Path(shutil.copytree(made / "half", tmp_path / "half"))


def averages(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "ema.safetensors")


def same(pipe: Pipeline, weights: dict[str, torch.Tensor]) -> bool:
    own = pipe.backbone.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in weights)


def test_a_finished_run_is_its_pipeline(made: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert locate(made / "whole") == made / "whole" / "pipeline"
    pipe = Pipeline.from_pretrained(made / "whole", device="auto")
    assert same(pipe, averages(list_checkpoints(made / "whole" / "checkpoints")[-1]))
    assert not is_samples(made / "whole")  # which has previews


def test_a_run_without_a_pipeline_is_its_newest_whole_checkpoint(half: Path, made: Path) -> None:
    with pytest.warns(UserWarning, match="is not finished: this is step 4, with averaged weights"):
        pipe = Pipeline.from_pretrained(half)
    assert same(pipe, averages(half / "checkpoints" / "step-00000004"))
    assert pipe.defaults["steps"] == 2
    assert pipe.name_or_path == str(half / "checkpoints" / "step-00000004")  # for manifests
    whole = Pipeline.from_pretrained(made / "whole")
    config = [{k: v for k, v in one.config.items() if k != "_name_or_path"} for one in (pipe, whole)]
    assert config[0] == config[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        older = Pipeline.from_pretrained(half / "checkpoints" / "step-00000002")
    assert same(older, averages(half / "checkpoints" / "step-00000002"))


def test_a_damaged_checkpoint_is_left_out(half: Path) -> None:
    newest = half / "checkpoints" / "step-00000004"
    weights = newest / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="step 2"):
        assert same(Pipeline.from_pretrained(half), averages(half / "checkpoints" / "step-00000002"))
    with pytest.raises(ValueError, match="step-00000004 is damaged or incomplete"):
        locate(newest)
    (half / "checkpoints" / "step-00000002" / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no pipeline and no checkpoint yet.*dinit train"):
        locate(half)


def test_a_checkpoint_stays_readable_after_the_run_has_removed_it(half: Path) -> None:
    with pytest.warns(UserWarning, match="step 4"):
        folder = locate(half)
    kept = averages(half / "checkpoints" / "step-00000004")
    shutil.rmtree(half / "checkpoints")
    assert same(Pipeline.from_pretrained(folder), kept)


def test_a_run_that_is_longer_than_its_pipeline(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "whole", tmp_path / "run"))
    shutil.copytree(run / "checkpoints" / "step-00000006", run / "checkpoints" / "step-00000008")
    state = run / "checkpoints" / "step-00000008" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "step": 8}))
    with pytest.warns(UserWarning, match="step 8"):
        assert locate(run).name.startswith("dinit-run-")
    state.write_text(json.dumps({**json.loads(state.read_text()), "step": 6}))
    assert locate(run) == run / "pipeline"


def test_what_is_no_pipeline_yet(half: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no pipeline yet; give"):
        locate(half / "pipeline")
    shutil.rmtree(half / "model")
    with pytest.raises(ValueError, match=r"model/ is missing.*dinit train"):
        locate(half)


def test_fine_tuning_from_a_run_with_additions(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A LoRA run that is not finished: its checkpoint has the additions in the weights."""
    data = made / "data" / "a.npz"
    pretrained = read_pretrained(str(made / "half"))
    assert default_recipe(pretrained, {"name": "digits"})["name"] == "half-finetuned"
    spec = {"init_from": str(made / "half"), "mode": "lora", "rank": 2}
    recipe = parse_recipe(
        "training: {steps: 4, batch_size: 4, checkpoint_every: 2, keep: 9}\ntracker: null\n",
        [
            f"finetune={json.dumps(spec)}",
            f"data={{name: npz, path: {data}, layout: nchw}}",
            "optimizer.lr=0.1",
        ],
    )
    stopped(tmp_path / "tuned", recipe, 3)
    monkeypatch.setattr(runs_module, "_made", {})
    with pytest.warns(UserWarning, match="step 2"):
        pipe = Pipeline.from_pretrained(tmp_path / "tuned")
    kept = averages(tmp_path / "tuned" / "checkpoints" / "step-00000002")
    a, b = (next(kept[name] for name in kept if name.endswith(f"lora_{one}.weight")) for one in "AB")
    layer = next(name for name in kept if name.endswith("lora_A.weight")).removesuffix(".lora_A.weight")
    before = kept[f"{layer}.base_layer.weight"]
    expected = before.double() + (b.flatten(1).double() @ a.flatten(1).double()).reshape(before.shape)
    torch.testing.assert_close(pipe.backbone.state_dict()[f"{layer}.weight"], expected.float(), rtol=0, atol=1e-7)
    assert not torch.equal(pipe.backbone.state_dict()[f"{layer}.weight"], before)


def test_the_summary_of_a_run(half: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_summary(half)
    assert rows["state"] == "stopped; goes on after step 4"
    assert rows["step"].endswith(" of 6")
    assert rows["pictures"] == "12, 1×8×8"
    assert rows["classes"] == "3: 0, 1, 2"
    assert rows["next"].splitlines() == [f"dinit {what} {half}" for what in ("train", "generate", "evaluate")]
    assert "training.batch_size: 4" in rows["settings"]
    assert "label_dropout" not in rows["settings"]
    done = run_summary(made / "whole")
    losses = [json.loads(line)["loss"] for line in (made / "whole" / "losses.jsonl").read_text().splitlines()]
    assert done["loss"] == f"{sum(losses) / 6:.4f}, mean of the last 6 steps"
    assert (done["state"], done["step"]) == ("finished", "6 of 6")
    assert done["next"].splitlines()[-1] == f"dinit train {made / 'whole'} --extend 12"
    app(args=["info", str(half)], standalone_mode=False)
    assert "goes on after step 4" in capsys.readouterr().out
    for folder in ("checkpoints", "losses.jsonl", "model"):
        shutil.rmtree(half / folder) if (half / folder).is_dir() else (half / folder).unlink()
    assert run_summary(half)["state"] == "not begun"


def test_data_that_has_moved(half: Path, made: Path, tmp_path: Path) -> None:
    moved = data_in(tmp_path / "new place")
    more = data_in(tmp_path / "more", count=13)
    others = data_in(tmp_path / "others", classes=4)
    with pytest.raises(RunFolderError, match="not the same data: pictures: 12 there, 13 now; nothing was written"):
        train(tiny(more), half, progress=False)
    with pytest.raises(RunFolderError, match="is not the same data: with the new class '3'"):
        train(tiny(others), half, progress=False)
    changed = np.load(moved)
    np.savez(tmp_path / "more" / "b.npz", images=255 - changed["images"], labels=changed["labels"])
    with pytest.raises(RunFolderError, match="as many pictures, of other names or sizes"):
        train(tiny(tmp_path / "more" / "b.npz"), half, progress=False)
    assert train(tiny(moved), half, progress=False).steps == 6
    assert (half / "losses.jsonl").read_text() == (made / "whole" / "losses.jsonl").read_text()
    with pytest.raises(RunFolderError, match=r"data\.layout"):
        train(parse_recipe(TINY, [f"data={{name: npz, path: {moved}}}"]), half, progress=False)
    (half / "data.json").unlink()
    with pytest.raises(RunFolderError, match=r"data\.path: .* there"):
        train(tiny(more), half, progress=False)
