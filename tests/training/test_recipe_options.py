"""Every option of every weighting, time sampler and loss term, and every key of a recipe, away from its default.

It changes what is computed, it is written to the recipe, and it reaches the object that it is an option of. A new
option needs another value in one of the tables here, or the test that compares the tables with the code fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.continuous import VP
from dinit.diffusion.parameterization import Epsilon
from dinit.pipelines.launch import make_accelerator
from dinit.pipelines.runs import watch
from dinit.pipelines.runs.output import make_pipeline
from dinit.registry import Registry
from dinit.training import LOSS_TERMS, TIME_SAMPLERS, WEIGHTINGS, Recipe, parse_recipe
from dinit.training import step as loop_module
from dinit.training.batches import batches
from dinit.training.build import make_objective
from dinit.training.recipe.model import Named, Section
from dinit.training.step import TrainingLoop

PLACES: dict[str, tuple[Registry[Any], str]] = {
    "weighting": (WEIGHTINGS, "loss.weighting"),
    "time": (TIME_SAMPLERS, "time"),
    "term": (LOSS_TERMS, "loss.terms"),
    "process": (PROCESSES, "process"),
    "parameterization": (PARAMETERIZATIONS, "parameterization"),
}

# (place, entry, option): another value than the default
OTHER: dict[tuple[str, str, str], Any] = {
    ("weighting", "min-snr", "gamma"): 2.0,
    ("weighting", "p2", "k"): 0.25,
    ("weighting", "p2", "gamma"): 0.5,
    ("weighting", "sigmoid", "bias"): 1.5,
    ("time", "logit-normal", "mean"): 0.7,
    ("time", "logit-normal", "std"): 0.6,
    ("time", "log-normal", "mean"): -0.4,
    ("time", "log-normal", "std"): 0.7,
    ("time", "stratified", "base"): "logit-normal",
    ("time", "snr-shift", "scale"): 0.8,
    ("time", "snr-shift", "base"): "logit-normal",
    ("term", "direction", "weight"): 0.3,
    ("term", "contrastive", "weight"): 0.4,
    ("process", "vp", "beta_min"): 0.3,
    ("process", "vp", "beta_max"): 12.0,
    ("process", "sub-vp", "beta_min"): 0.3,
    ("process", "sub-vp", "beta_max"): 12.0,
    ("process", "ve", "sigma_min"): 0.03,
    ("process", "ve", "sigma_max"): 30.0,
    ("process", "edm", "sigma_min"): 0.01,
    ("process", "edm", "sigma_max"): 40.0,
    ("process", "flow", "shift"): 2.0,
    ("process", "ve-discrete", "sigma_min"): 0.03,
    ("process", "ve-discrete", "sigma_max"): 30.0,
    ("process", "ve-discrete", "num_steps"): 500,
    ("process", "vp-discrete", "schedule"): "scaled-linear",
    ("process", "vp-discrete", "num_steps"): 500,
    ("process", "vp-discrete", "beta_start"): 3e-4,
    ("process", "vp-discrete", "beta_end"): 0.01,
    ("process", "vp-discrete", "zero_terminal_snr"): True,
    ("process", "vp-betas", "betas"): [0.02, 0.05, 0.1],
    ("process", "vp-betas", "zero_terminal_snr"): True,
    ("parameterization", "edm", "sigma_data"): 0.7,
}
NEEDED = {("process", "vp-betas"): {"betas": [0.01, 0.05, 0.2]}}  # options without a default
TIMES = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)


def all_options() -> list[tuple[str, str, str]]:
    return [
        (place, name, field.name)
        for place, (registry, _) in PLACES.items()
        for name in registry.names()
        for field in (dataclasses.fields(registry[name]) if dataclasses.is_dataclass(registry[name]) else ())
        if field.init
    ]


def outcome(place: str, made: Any) -> Tensor:
    """What an object computes, as numbers."""
    k = VP().scales(TIMES)
    if place == "weighting":
        return made.on_output(k, Epsilon().posterior_mean_coefficients(k)[1])
    if place == "time":
        return made.times(64, VP(), VP().t_min, 1.0, torch.Generator().manual_seed(0))
    if place == "term":
        output, target = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        return made.loss(output, target)
    if place == "process":
        at = made.scales(TIMES)
        return torch.stack([at.alpha, at.sigma, made.noise_label(at), torch.full_like(TIMES, made.t_min)])
    return torch.stack(torch.broadcast_tensors(*made.coefficients(k), made.input_scale(k)))


def test_every_option_has_another_value() -> None:
    assert set(OTHER) == set(all_options())


@pytest.mark.parametrize(("place", "name", "option"), all_options())
def test_an_option_is_recorded_handed_on_and_changes_the_numbers(place: str, name: str, option: str) -> None:
    registry, key = PLACES[place]
    needed = {"name": name, **NEEDED.get((place, name), {})}
    spec = {**needed, option: OTHER[place, name, option]}
    recipe = parse_recipe(BASE, [f"{key}={yaml.safe_dump(spec, default_flow_style=True, width=999).strip()}"])
    again = parse_recipe(yaml.safe_dump(recipe.to_dict()))
    assert again == recipe
    objective = make_objective(again)
    made = {
        "weighting": objective.weighting,
        "time": objective.time_sampler,
        "term": objective.terms[0] if objective.terms else None,
        "process": objective.process,
        "parameterization": objective.parameterization,
    }[place]
    assert made == registry.create(spec)
    assert made != registry.create(needed)
    given = getattr(made, option)
    assert (list(given) if isinstance(given, tuple) else given) == spec[option]
    assert not torch.equal(outcome(place, made), outcome(place, registry.create(needed)))


BASE = """\
data: digits
backbone: {name: dit, patch_size: 2, hidden_size: 16, depth: 3, num_heads: 2}
training: {steps: 4, batch_size: 8, checkpoint_every: 4, keep: 9}
tracker: null
"""

# Keys that change what a short run computes: what is changed beside them, and the change.
TRAINED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "seed": ((), ("seed=1",)),
    "data": ((), ("data.layout=nchw", "data.path=OTHER")),
    "backbone": ((), ("backbone.depth=2", "backbone.hidden_size=24")),
    "process": ((), ("process=flow", "parameterization=velocity")),
    "parameterization": ((), ("parameterization=x0",)),
    "t_max": ((), ("t_max=0.5",)),
    "loss.weighting": ((), ("loss.weighting=min-snr",)),
    "loss.terms": ((), ("loss.terms=[direction, contrastive]",)),
    "loss.variational": (("backbone.learn_sigma=true",), ("loss.variational=0.5",)),
    "time": ((), ("time=logit-normal",)),
    "label_dropout": ((), ("label_dropout=0.9",)),
    "condition_noise.gamma": (("condition_noise.gamma=1.0",), ("condition_noise.gamma=3.0",)),
    "condition_noise.kind": (("condition_noise.gamma=1.0",), ("condition_noise.kind=uniform",)),
    "routing.ratio": (("routing={ratio: 0.5, start: 0, end: 2}",), ("routing.ratio=0.25",)),
    "routing.start": (("routing={ratio: 0.5, start: 0, end: 2}",), ("routing.start=1",)),
    "routing.end": (("routing={ratio: 0.5, start: 0, end: 2}",), ("routing.end=-2",)),
    "alignment.encoder": (("ALIGNED",), ("alignment.encoder={name: 'test_recipe_options:quarter_turned'}",)),
    "alignment.block": (("ALIGNED",), ("alignment.block=2",)),
    "alignment.weight": (("ALIGNED",), ("alignment.weight=2.0",)),
    "alignment.hidden": (("ALIGNED",), ("alignment.hidden=24",)),
    "optimizer.kind": ((), ("optimizer.kind=lion",)),
    "optimizer.lr": ((), ("optimizer.lr=0.01",)),
    "optimizer.betas": ((), ("optimizer.betas=[0.5, 0.9]",)),
    "optimizer.weight_decay": ((), ("optimizer.weight_decay=0.5",)),
    "optimizer.eps": ((), ("optimizer.eps=0.01",)),
    "schedule.kind": ((), ("schedule.kind=cosine",)),
    "schedule.warmup_steps": ((), ("schedule.warmup_steps=3",)),
    "schedule.floor": (("schedule.kind=cosine",), ("schedule.floor=0.5",)),
    "ema.decay": (("ema.warmup=false",), ("ema.decay=0.5",)),
    "ema.warmup": ((), ("ema.warmup=false",)),
    "ema.widths": ((), ("ema.widths=[0.1]",)),
    "ema.snapshot_every": (("ema.widths=[0.1]",), ("ema.snapshot_every=1",)),
    "training.steps": ((), ("training.steps=3",)),
    "training.extended": (("schedule.kind=cosine",), ("training.extended=[[2, 100]]",)),
    "training.batch_size": ((), ("training.batch_size=4",)),
    "training.clip_norm": ((), ("training.clip_norm=0.01",)),
    "training.precision": ((), ("training.precision=bf16",)),
    "training.checkpoint_every": ((), ("training.checkpoint_every=1",)),
    "training.keep": (("training.checkpoint_every=1",), ("training.keep=1",)),
    "training.sample_every": ((), ("training.sample_every=2",)),
    "training.log_every": ((), ("training.log_every=1",)),
    "evaluation.every": ((), ("evaluation.every=3",)),
}

# Keys that change no number of a run: where they arrive instead, in a function below, and why.
ARRIVES: dict[str, tuple[str, str]] = {
    "name": ("name=other", "the run's title on its page and in its tracker"),
    "tracker": ("tracker=tensorboard", "the accelerator logs to it; tests/training/test_health.py reads what"),
    "training.gradient_accumulation": ("training.gradient_accumulation=2", "the same gradient in parts"),
    "training.gradient_checkpointing": ("training.gradient_checkpointing=true", "the same numbers in less memory"),
    "training.workers": ("training.workers=1", "the same batches, read by other processes"),
    "training.max_skipped": ("training.max_skipped=3", "acts where gradients are not finite"),
    "training.device": ("training.device=cpu", "the same numbers elsewhere"),
    "training.sharding": ("training.sharding=fsdp2", "acts where there are several processes"),
    "sampling.sampler": ("sampling.sampler={name: ddim, eta: 0.5}", "of the pipeline"),
    "sampling.steps": ("sampling.steps=7", "of the pipeline"),
    "sampling.grid": ("sampling.grid=log-snr", "of the pipeline"),
    "sampling.end": ("sampling.end=clean", "of the pipeline"),
    "sampling.guidance": ("sampling.guidance={name: cfg, scale: 2.0}", "of the pipeline"),
    "evaluation.num_samples": ("evaluation.num_samples=64", "of the evaluator"),
    "evaluation.metrics": ("evaluation.metrics=[fid]", "of the evaluator"),
    "evaluation.protocol": ("evaluation.protocol=digits", "of the evaluator"),
    "evaluation.reference": ("evaluation.reference=some.npz", "of the evaluator"),
    "evaluation.data": ("evaluation.data={name: digits, split: all}", "of the evaluator"),
}

# Each is tested where its section is, with numbers: tests/training/test_finetune.py and test_adapters.py.
ELSEWHERE = {f"finetune.{key}" for key in ("init_from", "mode", "classes", "new_rows", "rank", "alpha", "targets")}

ALIGNED = "alignment={encoder: {name: 'test_recipe_options:quarter'}, block: 0, weight: 0.5, hidden: 8}"


def quarter() -> Any:
    return lambda images: (
        torch.nn.functional.avg_pool2d(images, 2).expand(-1, 3, -1, -1)
        * torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1)
    )


def quarter_turned() -> Any:
    return lambda images: quarter()(images).flip(-1, 1)


def leaves(section: Any = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a recipe that are no section."""
    for name, field in section.model_fields.items():
        options = [field.annotation, *get_args(field.annotation)]
        inner = [one for one in options if isinstance(one, type) and issubclass(one, Section)]
        if inner and not issubclass(inner[0], Named):
            yield from leaves(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_of_a_recipe_has_another_value() -> None:
    tables = [set(TRAINED), set(ARRIVES), ELSEWHERE]
    assert set(leaves()) == set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small data sets: data.npz and other.npz."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name in ("data", "other"):
        drawn = draw.integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=drawn, labels=np.arange(24) % 3)
    return folder


def made_recipe(images: Path, *overrides: str) -> Recipe:
    data = f"data={{name: npz, path: {images / 'data.npz'}, layout: nchw}}"
    said = [ALIGNED if one == "ALIGNED" else one.replace("OTHER", str(images / "other.npz")) for one in overrides]
    recipe = parse_recipe(BASE, [data, *said])
    assert parse_recipe(yaml.safe_dump(recipe.to_dict())) == recipe
    return recipe


def flat(values: Any) -> list[Tensor]:
    return [value.detach().double().flatten() for value in values]


def run(recipe: Recipe, out: Path) -> dict[str, Any]:
    """All that a run leaves: weights, averages, losses, the files' names, when its hooks were called."""
    calls: list[tuple[str, int]] = []
    accelerator = make_accelerator(recipe, out)
    loop = TrainingLoop(
        recipe,
        out,
        accelerator,
        progress=False,
        on_step=lambda loop, result: calls.append(("step", loop.step)),
        preview=lambda loop, network: calls.append(("preview", loop.step)),
        evaluate=lambda loop, network: calls.append(("evaluate", loop.step)),
    )
    out.mkdir()
    try:
        loop.run()
    finally:
        loop.close()
        type(accelerator.state)._reset_state(reset_partial_state=True)
    state = loop.state
    kept = [*flat(state.parameters), *flat(state.ema.state().values())]
    kept += [value for power in state.powers for value in flat(power.averages.values())]
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    reported = len((out / "health.jsonl").read_text().splitlines())
    return {"kept": torch.cat(kept), "files": names, "calls": calls, "reported": reported}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    plain = all(one[key] == other[key] for key in ("files", "calls", "reported"))
    return plain and one["kept"].shape == other["kept"].shape and torch.equal(one["kept"], other["kept"])


@pytest.fixture(scope="module")
def plain_runs() -> dict[tuple[str, ...], dict[str, Any]]:
    return {}


@pytest.mark.parametrize("key", sorted(TRAINED))
def test_a_key_of_a_recipe_changes_a_run(key: str, images: Path, tmp_path: Path, plain_runs: Any) -> None:
    beside, change = TRAINED[key]
    if beside not in plain_runs:
        plain_runs[beside] = run(made_recipe(images, *beside), tmp_path / "plain")
    assert not same(plain_runs[beside], run(made_recipe(images, *beside, *change), tmp_path / "changed"))


def test_a_run_of_the_same_recipe_is_the_same(images: Path, tmp_path: Path) -> None:
    """Without this the test above could not fail."""
    first, second = (run(made_recipe(images), tmp_path / name) for name in ("first", "second"))
    assert same(first, second)


class Asked:
    """Stands for the evaluator, and keeps what it was made with."""

    reference_set = None

    def __init__(self, spec: Any, count: int) -> None:
        self.options = {**vars(spec), "num_samples": count}


@pytest.mark.parametrize("key", sorted(ARRIVES))
def test_a_key_of_a_recipe_arrives(key: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, plain = made_recipe(images, ARRIVES[key][0]), made_recipe(images)
    section, _, name = key.rpartition(".")
    wanted = getattr(getattr(recipe, section) if section else recipe, name)
    assert wanted != getattr(getattr(plain, section) if section else plain, name)
    monkeypatch.setattr(watch, "Evaluator", Asked)
    if section == "evaluation":
        given: Any = watch.Evaluations.of(recipe, tmp_path).evaluator
        arrived = given.options[{"data": "dataset_name"}.get(name, name)]
        assert arrived == (wanted.spec() if isinstance(wanted, Named) else wanted)
        return
    seen: dict[str, Any] = {}

    def watched(*arguments: Any) -> Any:
        seen["workers"] = arguments[-1]
        return batches(*arguments)

    monkeypatch.setattr(loop_module, "batches", watched)
    page = loop_module.HealthPage
    monkeypatch.setattr(loop_module, "HealthPage", lambda out, name: seen.update(name=name) or page(out, name))
    accelerator = make_accelerator(recipe, tmp_path)
    try:
        loop = TrainingLoop(recipe, tmp_path, accelerator, progress=False)
        if key in ("name", "training.workers"):
            loop.run()
        pipeline = make_pipeline(loop.averaged(), recipe, loop.objective, loop.data, accelerator.device)
        loop.close()
        seen |= {
            "tracker": str(accelerator.log_with[0]) if accelerator.log_with else None,
            "training.gradient_accumulation": loop.train_step.share.parts,
            "training.gradient_checkpointing": loop.state.backbone.gradient_checkpointing,
            "training.workers": seen.get("workers"),
            "training.device": accelerator.device.type,
            "training.max_skipped": loop.skips.limit,
            "sampling.steps": pipeline.steps,
            "sampling.sampler": getattr(pipeline.sampler, "eta", None),
            "sampling.grid": type(pipeline.grid).__name__,
            "sampling.end": pipeline.end,
            "sampling.guidance": [getattr(one, "scale", None) for one in pipeline.guidance],
        }
    finally:
        type(accelerator.state)._reset_state(reset_partial_state=True)
    expected = {"sampling.sampler": 0.5, "sampling.grid": "LogSNR", "sampling.guidance": [2.0]}
    if key != "training.sharding":  # read where there are several processes: tests/pipelines/test_sharded.py
        assert seen[key] == expected.get(key, wanted)
