"""Combinations of saved weights: the search finds the known best of a quadratic, and a run's pipeline gets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from dinit.cli.app import app
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.runs.combine import combine_run
from dinit.pipelines.train import train
from dinit.training import parse_recipe
from dinit.training.averaging.combination import Search, combine, saved_weights, search

RECIPE = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2}
optimizer: {lr: 1e-2}
ema: {decay: 0.5, widths: [0.1], snapshot_every: 3}
training: {steps: 6, batch_size: 8, checkpoint_every: 2, keep: 9}
sampling: {steps: 2}
tracker: null
"""


class Quadratic:
    """|sum c_k w_k - target|^2 of vectors w_k (rows of `saved`); its least on sum c = 1 by Lagrange's equations."""

    def __init__(self, count: int, width: int = 12) -> None:
        generator = torch.Generator().manual_seed(count)
        self.saved, self.target = torch.randn(count + 1, width, dtype=torch.float64, generator=generator).split(
            [count, 1]
        )
        self.asked: list[Tensor] = []
        gram, ones = self.saved @ self.saved.T, torch.ones(count, 1, dtype=torch.float64)
        system = torch.cat([torch.cat([2 * gram, ones], 1), torch.cat([ones.T, torch.zeros(1, 1)], 1)])
        right = torch.cat([2 * self.saved @ self.target.T, torch.ones(1, 1)])
        self.best = torch.linalg.solve(system, right)[:count, 0]

    def __call__(self, coefficients: Tensor) -> float:
        self.asked.append(coefficients)
        return float((coefficients @ self.saved - self.target).square().sum())


@pytest.mark.parametrize("count", [2, 4, 6])
def test_search_finds_the_best_of_a_quadratic(count: int) -> None:
    metric = Quadratic(count)
    least = metric(metric.best)
    found = search(metric, count, Search(evaluations=1000))
    assert found.score - least < 0.02 * (metric(torch.eye(count, dtype=torch.float64)[-1]) - least)
    torch.testing.assert_close(found.coefficients, metric.best, rtol=0, atol=0.1)
    assert bool((metric.best < 0).any()) or count == 2  # no average could be it


def test_search_keeps_its_word() -> None:
    """As many evaluations as said, all of sum 1, the newest weights first, the lowest given, all by the seed."""
    metric = Quadratic(5)
    found = search(metric, 5, Search(evaluations=60))
    assert len(metric.asked) == len(found.tried) == 60
    for coefficients in metric.asked:
        assert float(coefficients.sum()) == pytest.approx(1, abs=1e-12)
    assert found.tried[0][0].tolist() == [0, 0, 0, 0, 1]
    assert found.score == min(score for _, score in found.tried) == metric(found.coefficients)
    assert torch.equal(search(metric, 5, Search(evaluations=60)).coefficients, found.coefficients)
    assert not torch.equal(search(metric, 5, Search(evaluations=60, seed=1)).coefficients, found.coefficients)
    broken = search(lambda c: float("nan") if c[0] > 0 else metric(c), 5, Search(evaluations=60))
    assert float(broken.coefficients[0]) <= 0
    with pytest.raises(ValueError, match="not finite for any of 20 combinations"):
        search(lambda _: float("nan"), 5, Search(evaluations=20))
    with pytest.raises(ValueError, match="population must be at least 4, got 3"):
        Search(population=3)


def test_noise_of_the_search_shrinks_to_nothing() -> None:
    """Members that stay as they began, since every child is worse; each child is one of them plus noise."""
    worse = iter([*range(4), *[9.0] * 2000])
    found = search(lambda _: next(worse), 3, Search(evaluations=1004, population=4, step=1e-9, mutation=1000.0))
    children = torch.stack([coefficients for coefficients, _ in found.tried[4:]])
    left = 1 - torch.arange(4, 1004, dtype=torch.float64) / 1004
    noise = (children - 1 / 3).square().mean(1).sqrt() / (1000 * left)
    for part in noise[:900].chunk(3):  # in each part of the search, of the same size for the share that is left
        assert float(part.square().mean()) == pytest.approx(2 / 3, rel=0.2)  # of sum zero: 2 of 3 directions


def test_files_are_summed_with_their_coefficients(tmp_path: Path) -> None:
    weights = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), torch.tensor([100.0, 200.0])]
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, value in zip(files, weights, strict=True):
        save_file({"w": value, "count": torch.tensor(7)}, path)
    mixed = combine(files, torch.tensor([2.0, -0.5, -0.5], dtype=torch.float64))
    assert mixed["w"].tolist() == [2 - 5 - 50, 4 - 10 - 100]
    assert int(mixed["count"]) == 7
    save_file({"v": weights[0]}, files[2])
    with pytest.raises(ValueError, match="other tensors than"):
        combine(files, torch.ones(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("combination") / "run"
    train(parse_recipe(RECIPE), folder, progress=False)
    return folder


def test_run_s_pipeline_gets_the_combination(run: Path, tmp_path: Path) -> None:
    """Towards weights that are 1.5 times the newest less half the first, as far as a distance can lead."""
    files = saved_weights(run)
    assert [path.parent.name for path in files] == [f"step-{step:08d}" for step in (2, 4, 6)]
    wanted = torch.tensor([-0.5, 0.0, 1.5], dtype=torch.float64)
    target = combine(files, wanted)

    def distance(pipeline: Pipeline) -> float:
        state = pipeline.backbone.state_dict()
        return sum(float((state[name] - value).square().sum()) for name, value in target.items())

    found = combine_run(run, tmp_path / "to", distance, how=Search(evaluations=120))
    torch.testing.assert_close(found.coefficients, wanted, rtol=0, atol=0.1)
    state = Pipeline.from_pretrained(tmp_path / "to").backbone.state_dict()
    for name, value in combine(files, found.coefficients).items():
        assert torch.equal(state[name], value)
    facts = json.loads((tmp_path / "to" / "training.json").read_text())["combination"]
    assert facts["coefficients"]["checkpoints/step-00000006/ema.safetensors"] == float(found.coefficients[2])
    with pytest.raises(FileExistsError, match="is there already"):
        combine_run(run, tmp_path / "to")


def test_command_lowers_the_loss(run: Path, tmp_path: Path) -> None:
    arguments = ["combine", str(run), "--to", str(tmp_path / "to"), "--num-samples", "64", "--evaluations", "20"]
    done = CliRunner().invoke(app, [*arguments, "--of", "raw"])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "to" / "training.json").read_text())["combination"]
    newest = float(done.output.split("newest weights alone ")[1].split()[0])
    assert facts["score"] < newest
    assert facts["evaluations"] == 20
    weights = load_file(tmp_path / "to" / "backbone" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == load_file(saved_weights(run, "raw")[0]).keys()


def test_snapshots_are_weights_too(run: Path, tmp_path: Path) -> None:
    assert [path.name for path in saved_weights(run, "snapshots")] == [
        f"ema-0.1000-{step:08d}.safetensors" for step in (3, 6)
    ]
    found = combine_run(run, tmp_path / "to", "loss", "snapshots", 32, Search(evaluations=5))
    assert len(found.coefficients) == 2
    with pytest.raises(ValueError, match="the weights must be 'ema', 'raw' or 'snapshots', got 'model'"):
        saved_weights(run, "model")
    with pytest.raises(ValueError, match=r"has 0 saved weights.*training\.keep"):
        saved_weights(tmp_path)
