"""The memory estimate against what training really holds, and the whole of a dry run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinit.pipelines.runs import dry_run as pipelines
from dinit.pipelines.runs.dry_run import dry_run
from dinit.training import Recipe, parse_recipe
from dinit.training.averaging.ema import EMA
from dinit.training.build import make_backbone, make_data, make_network
from dinit.training.optimizer import make_optimizer
from dinit.training.run.memory import estimate_memory

RECIPE = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 2, hidden_size: 16, depth: 3, num_heads: 2}
training: {steps: 4000, batch_size: 16, checkpoint_every: 100, sample_every: 1000}
sampling: {steps: 2}
tracker: null
"""


def tiny(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_memory_is_what_a_step_holds(kind: str) -> None:
    """Tensors of a real step on the CPU, counted one by one; only the batch is another's."""
    recipe = tiny(f"optimizer.kind={kind}")
    data = make_data(recipe)
    network = make_network(recipe, make_backbone(recipe, data))
    optimizer = make_optimizer(network, recipe.optimizer)
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(torch.randn(16, 1, 8, 8), torch.rand(16), torch.zeros(16, dtype=torch.int64))
        loss = output.prediction.square().mean()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    activations = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    loss.backward()
    optimizer.step()
    state = [v for values in optimizer.state.values() for v in values.values() if v.numel() > 1]
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    found = estimate_memory(recipe, data)
    assert found.parameters == size(network.parameters())
    assert found.gradients == size(p.grad for p in network.parameters() if p.grad is not None)
    assert found.optimizer == pytest.approx(size(state), rel=0.01)  # scalars have state too
    assert found.averages == size(EMA(network.backbone).network.parameters())
    assert found.activations == pytest.approx(activations, rel=0.15)  # CPUs have GELUs in place


def test_memory_follows_the_recipe() -> None:
    data = make_data(tiny())
    plain = estimate_memory(tiny(), data)
    assert plain.activations is not None
    assert estimate_memory(tiny("training.batch_size=32"), data).activations == pytest.approx(
        2 * plain.activations, rel=0.02
    )
    for override in ("training.gradient_accumulation=2", "training.precision=bf16"):
        assert estimate_memory(tiny(override), data).activations == pytest.approx(plain.activations / 2, rel=0.02)
    spared = estimate_memory(tiny("training.gradient_checkpointing=true"), data).activations
    assert spared is not None
    assert spared < plain.activations / 2
    assert estimate_memory(tiny("ema.widths=[0.05, 0.1]"), data).averages == 3 * plain.averages
    spread = estimate_memory(tiny("training.sharding=fsdp2"), data, processes=4)
    assert spread.parameters == plain.parameters // 4


def test_dry_run_tries_everything_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = tiny()
    found = dry_run(recipe, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert found.fits
    assert found.images == 1438
    assert min(found.step, found.checkpoint, found.grid) > 0
    weights = found.memory.parameters
    assert 4 * weights < found.checkpoint_bytes < 4 * weights + 60_000  # raw, averages and two moments
    # 4000 steps, 40 checkpoints, previews at 0, 1000, 2000, 3000 and 4000
    assert found.seconds == pytest.approx(4000 * found.step + 40 * found.checkpoint + 5 * found.grid)
    assert any("about" in line and "4,000 steps" in line for line in found.lines(recipe))


def test_a_recipe_that_does_not_fit_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "_available", lambda: 1000)
    monkeypatch.setattr(pipelines, "train", lambda *_, **__: pytest.fail("it was run"))
    found = dry_run(tiny(), tmp_path / "run")
    assert not found.fits
    assert any("will not fit" in line for line in found.lines(tiny()))


def test_a_dry_run_takes_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        dry_run(tiny(), tmp_path / "run")


PEAK = """
import sys
from dinit.pipelines.train import train
from dinit.training import parse_recipe
from dinit.training.build import make_data
from dinit.training.run.memory import estimate_memory

def held(key):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
    return 1024 * int(line.split()[1])

folder, text, *size = sys.argv[1:]
short = ["training.steps=3", "training.sample_every=0"]
small, recipe = parse_recipe(text, short), parse_recipe(text, [*short, *size])
train(small, folder + "/small", progress=False)  # every module is imported
program = held("VmRSS")
train(recipe, folder + "/large", progress=False)
print(estimate_memory(recipe, make_data(recipe)).total, held("VmHWM") - program)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("width", "batch"), [(512, 16), (192, 128)])
def test_memory_is_the_peak_of_a_run(width: int, batch: int, tmp_path: Path) -> None:
    """Mostly weights, and mostly activations: within 10 % of what the process takes more, checkpoint included."""
    size = (f"backbone.hidden_size={width}", f"training.batch_size={batch}")
    command = [sys.executable, "-c", PEAK, str(tmp_path), RECIPE, *size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    estimated, measured = map(int, done.stdout.split()[-2:])
    assert estimated == pytest.approx(measured, rel=0.1)
