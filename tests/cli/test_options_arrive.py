"""Every option of every command changes the arguments of what it calls, as said in OPTIONS, and no others.

A new option needs a row there, or the test that compares the table with the commands fails.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from torch import Tensor

import dinit
from dinit.app.running import names_to_offer
from dinit.cli.app import app
from dinit.cli.options import Opening
from dinit.evaluation.metrics.base import METRICS
from dinit.training import Recipe
from dinit.training.recipe.model import LoopSection

RECIPE = (
    "data: digits\nbackbone: {name: dit, patch_size: 2}\ntraining: {steps: 10}\nfinetune: {init_from: digits-dit}\n"
)
RECORDED = b"\x89PNG\r\n\x1a\n\0\0\0\x06tEXtdinit\0\0\0\0\0\0\0\0\0IEND"  # of a PNG with a record
PLACE = str(Path(dinit.__file__).parent / "pretrained" / "digits-dit")
STATS = ("stats", "digits")
GENERATE = ("generate", "some")
SET = ("generate", "some", "--out", "folder")
DINO, DINO_SPEC = "dinov2-vit-l-14:weights=d.pth", {"name": "dinov2-vit-l-14", "weights": "d.pth"}
EVALUATE = ("evaluate", "some")
IMAGES = ("evaluate", "pictures.npz")

# What a command line calls: the function that is spied on, and the command without options.
BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("dinit.pipelines.train:train", ("train", "recipe.yaml")),
    "train dry": ("dinit.pipelines.runs.dry_run:dry_run", ("train", "recipe.yaml", "--dry-run")),
    "ema": ("dinit.pipelines.runs.posthoc:pipeline_of_width", ("ema", "run", "--sigma-rel", "0.1", "--to", "new")),
    "combine": ("dinit.pipelines.runs.combine:combine_run", ("combine", "run", "--to", "new")),
    "stats": ("dinit.pipelines.statistics:write_reference", STATS),
    "classifier": ("dinit.pipelines.classifier:train_classifier", ("classifier", "digits")),
    "encode": ("dinit.pipelines.weights.encode:encode", ("encode", "vae", "--data", "digits", "--out", "latents")),
    "convert": ("dinit.pipelines.weights.convert:convert", ("convert", "a.pt", "--to", "new")),
    "export": ("dinit.pipelines.weights.export:export", ("export", "some", "--format", "dit", "--to", "new")),
    "replay": ("dinit.pipelines.outputs.replay:replay", ("replay", "picture.png")),
    "verify": ("dinit.conformance:verify", ("verify",)),
    "verify posterior": ("dinit.posterior_conformance:verify_posterior", ("verify", "--posterior")),
    "restore": ("dinit.cli.restore:_make", ("restore", "some", "levels.png", "--operator", "identity")),
    "edit": ("dinit.cli.edit:_make", ("edit", "some", "levels.png", "--from", "3", "--to", "8")),
    "app": ("dinit.app.serving:serve", ("app", "some", "--no-browser")),
    "generate": ("dinit.cli.generate:_make", GENERATE),
    "generate set": ("dinit.pipelines.outputs.sets:generate_set", SET),
    "evaluate": ("dinit.pipelines.evaluate:evaluate_pipeline", EVALUATE),
    "evaluate images": ("dinit.pipelines.evaluate:evaluate_samples", IMAGES),
    "evaluate run": ("dinit.pipelines.runs.watch:watch", (*EVALUATE, "--during-training")),
}

CALL = {  # of what several commands share: the option's arguments, and what changes
    "sampler": (["--sampler", "heun"], {"sampler": {"name": "heun"}}),
    "sampler_option": (["--sampler-option", "eta=0.5"], {"sampler": {"name": "ddim", "clip": 3, "eta": 0.5}}),
    "steps": (["--steps", "7"], {"steps": 7}),
    "end": (["--end", "state"], {"end": "state"}),
    "grid": (["--grid", "karras:rho=5"], {"grid": {"name": "karras", "rho": 5}}),
    "guidance": (["--guidance", "2.5", "--guidance", "cads"], {"guidance": [2.5, {"name": "cads"}]}),
    "seed": (["--seed", "3"], {"seed": 3}),
    "batch_size": (["--batch-size", "5"], {"batch_size": 5}),
    "cache": (["--cache", "deepcache:interval=2"], {"cache": {"name": "deepcache", "interval": 2}}),
    "edits": (
        ["--edits", "freeu:b1=1.3", "--edits", "skip-tuning"],
        {"edits": [{"name": "freeu", "b1": 1.3}, {"name": "skip-tuning"}]},
    ),
    "device": (["--device", "cpu"], {"opened": ("some", "cpu", "float32")}),
    "dtype": (["--dtype", "bfloat16"], {"opened": ("some", "auto", "bfloat16")}),
}
MEASURING = {
    "data": (["--data", "glyphs:count=9"], {"dataset_name": {"name": "glyphs", "count": 9}}),
    "reference": (["--reference", "ref.npz"], {"reference": Path("ref.npz")}),
    "protocol": (["--protocol", "adm"], {"protocol": "adm"}),
    "features": (
        ["--features", "dinov2-vit-l-14:weights=d.pth"],
        {"features": {"name": "dinov2-vit-l-14", "weights": "d.pth"}},
    ),
    "metrics": (["--metrics", "fid, kid"], {"metrics": ["fid", "kid"]}),
    "bootstrap": (["--bootstrap", "50"], {"report_options.bootstrap": 50}),
    "curve": (["--curve"], {"report_options.curve": True}),
}
WRITTEN = {
    "json": (["--json", "a.json"], {"output": Path("a.json")}),
    "html": (["--html", "a.html"], {"page": Path("a.html")}),
    "seed": (["--seed", "3"], {"seed": 3}),
}
EIGHTY = [label for label in range(10) for _ in range(8)]

LOOP = LoopSection(steps=10).model_dump(mode="json")

OPTIONS: dict[str, dict[str, tuple[list[str], dict[str, Any]]]] = {
    "train": {
        "recipe": (  # in place of the first
            ["second.yaml"],
            {"recipe.seed": 5, "recipe.name": "second", "out": Path("runs/second")},
        ),
        "overrides": (["seed=3"], {"recipe.seed": 3}),
        "init_from": (["--init-from", PLACE], {"recipe.finetune.init_from": PLACE}),
        "data": (
            ["--data", "glyphs:count=9"],
            {"recipe.data": {"name": "glyphs", "count": 9}, "recipe.name": "glyphs", "out": Path("runs/glyphs")},
        ),
        "extend": (["--extend", "20"], {"extend": 20}),
        "device": (["--device", "cpu"], {"recipe.training": {**LOOP, "device": "cpu"}}),
        "precision": (["--precision", "bf16"], {"recipe.training": {**LOOP, "precision": "bf16"}}),
        "out": (["--out", "there"], {"out": Path("there")}),
        "no_resume": (["--no-resume"], {"resume": False}),
        "profile": (["--profile"], {"profile": True}),
    },
    "train dry": {"out": (["--out", "there"], {"out": Path("there")})},
    "ema": {
        "run": (["other"], {"run": Path("other")}),
        "sigma_rel": (["--sigma-rel", "0.2"], {"sigma_rel": 0.2}),
        "to": (["--to", "there"], {"to": Path("there")}),
        "step": (["--step", "40"], {"step": 40}),
    },
    "combine": {
        "run": (["other"], {"run": Path("other")}),
        "to": (["--to", "there"], {"to": Path("there")}),
        "metric": (["--metric", "fid"], {"metric": "fid"}),
        "of": (["--of", "raw"], {"of": "raw"}),
        "num_samples": (["--num-samples", "64"], {"num_samples": 64}),
        "evaluations": (["--evaluations", "9"], {"how.evaluations": 9}),
        "seed": (["--seed", "3"], {"how.seed": 3}),
    },
    "app": {
        "name": (["other"], {"names": names_to_offer("other", Path("none"))}),
        "port": (["--port", "8000"], {"port": 8000}),
        "device": (["--device", "cuda"], {"device": "cuda"}),
        "browser": (["--open"], {"open_browser": True}),
    },
    "stats": {
        "what": (["glyphs"], {"what": "glyphs"}),
        "out": (["--out", "b.npz"], {"out": Path("b.npz")}),
        "protocol": (["--protocol", "adm"], {"protocol": "adm"}),
        "features": (
            ["--features", "dinov2-vit-l-14:weights=d.pth"],
            {"features": {"name": "dinov2-vit-l-14", "weights": "d.pth"}},
        ),
        "device": (["--device", "cuda:7"], {"cuda": True}),
        "overwrite": (["--out", "there.npz", "--overwrite"], {"out": Path("there.npz")}),  # refused without
    },
    "classifier": {
        "what": (["glyphs:count=9"], {"what": "glyphs:count=9"}),
        "out": (["--out", "there"], {"out": Path("there")}),
        "size": (["--size", "16"], {"size": 16}),
        "flip": (["--flip"], {"flip": True}),
        "steps": (["--steps", "40"], {"steps": 40}),
        "minutes": (["--minutes", "2.5"], {"minutes": 2.5}),
        "seed": (["--seed", "3"], {"seed": 3}),
        "device": (["--device", "cuda:7"], {"device": "cuda"}),
        "overwrite": (["--overwrite"], {"overwrite": True}),
    },
    "encode": {
        "autoencoder": (["other"], {"autoencoder": "other"}),
        "data": (["--data", "glyphs:count=9"], {"data": {"name": "glyphs", "count": 9}}),
        "out": (["--out", "there"], {"out": Path("there")}),
        "flips": (["--flips"], {"options.flips": True}),
        "store": (["--store", "float16"], {"options.store": "float16"}),
        "measure": (["--measure", "7"], {"options.measure": 7}),
        "shard_size": (["--shard-size", "8"], {"options.shard_size": 8}),
        "batch_size": (["--batch-size", "9"], {"options.batch_size": 9}),
        "workers": (["--workers", "1"], {"options.workers": 1}),
        "dtype": (["--dtype", "bfloat16"], {"options.dtype": "bfloat16"}),
        "device": (["--device", "cpu"], {"device": "cpu"}),
    },
    "convert": {
        "source": (["b.pt"], {"source": Path("b.pt")}),
        "to": (["--to", "there"], {"to": Path("there")}),
        "layout": (["--layout", "sit"], {"layout": "sit"}),
        "weights": (["--weights", "model"], {"weights": "model"}),
        "option": (["--option", "num_heads=6"], {"options": {"num_heads": 6}}),
        "process": (["--process", "flow:shift=2"], {"process": {"name": "flow", "shift": 2}}),
        "parameterization": (["--parameterization", "v"], {"parameterization": {"name": "v"}}),
        "vae": (["--vae", "folder"], {"vae": "folder"}),
        "sha256": (["--sha256", "abc"], {"sha256": "abc"}),
        "overwrite": (["--overwrite"], {"overwrite": True}),
    },
    "export": {
        "name": (["other"], {"opened": ("other", "cpu", "float32")}),
        "format": (["--format", "sit"], {"format": "sit"}),
        "to": (["--to", "there"], {"to": Path("there")}),
        "overwrite": (["--overwrite"], {"overwrite": True}),
    },
    "replay": {
        "path": (["b.png"], {"path": Path("b.png")}),
        "pipeline": (["--pipeline", "some"], {"pipe": "some"}),
        "tolerance": (["--tolerance", "2"], {"tolerance": 2}),
    },
    "verify": {
        "sampler": (["--sampler", "ddim", "--sampler", "heun"], {"samplers": ["ddim", "heun"]}),
        "process": (["--process", "vp"], {"processes": ["vp"]}),
        "full": (["--full"], {"quick": False}),
        "quick": (["--quick"], {"quick": True}),  # the default
    },
    "verify posterior": {
        "sampler": (["--sampler", "ddim", "--sampler", "heun"], {"samplers": ["ddim", "heun"]}),
        "process": (["--process", "vp"], {"processes": ["vp"]}),
        "method": (["--method", "dps", "--method", "mmps"], {"methods": ["dps", "mmps"]}),
        "full": (["--full"], {"quick": False}),
    },
    "restore": {
        **CALL,
        "name": (["other"], {"opened": ("other", "auto", "float32")}),
        "image": (["other-levels.png"], {"measurement": ("identity", 0.0, 1.0)}),
        "operator": (["--operator", "mask:box=0,0,1,8"], {"measurement": ("mask", 0.0, -0.875)}),
        "noise": (["--noise", "0.25"], {"measurement": ("identity", 0.25, -1.0)}),
        "input_": (["--input", "image"], {"truth": -1.0}),
        "method": (["--method", "dps:zeta=2"], {"method": "dps:zeta=2"}),
        "class_": (["--class", "3"], {"labels": "3"}),
        "num_images": (["--num-images", "2"], {"num_images": 2}),
        "truth": (["--truth", "other-levels.png"], {"truth": 1.0}),
        "out": (["--out", "a.png"], {"out": Path("a.png")}),
        "trajectory": (["--trajectory", "a.gif"], {"trajectory": Path("a.gif")}),
        "overwrite": (["--out", "there.png", "--overwrite"], {"out": Path("there.png")}),  # refused without
    },
    "edit": {
        **{
            name: row
            for name, row in CALL.items()
            if name not in ("sampler", "sampler_option", "end", "cache", "edits")
        },
        "name": (["other"], {"opened": ("other", "auto", "float32")}),
        "image": (["other-levels.png"], {"labels": Path("other-levels.png")}),
        "from_": (["--from", "4"], {"source": "4"}),
        "to": (["--to", "d9"], {"target": "d9"}),
        "method": (["--method", "sdedit:strength=0.5"], {"method": "sdedit:strength=0.5"}),
        "out": (["--out", "a.png"], {"out": Path("a.png")}),
        "trajectory": (["--trajectory", "a.gif"], {"trajectory": Path("a.gif")}),
        "overwrite": (["--out", "there.png", "--overwrite"], {"out": Path("there.png")}),  # refused without
    },
    "generate": {
        **CALL,
        "name": (["other"], {"opened": ("other", "auto", "float32")}),
        "classes": (["--classes", "2,5", "--classes", "d7"], {"labels": ["2", "5", "d7"], "times": 10}),
        "per_class": (["--per-class", "8"], {"labels": EIGHTY}),
        "labels": (["--labels", "3,1,4"], {"labels": ["3", "1", "4"]}),
        "num_images": (["--num-images", "2"], {"labels": [None, None]}),
        "image": (["--image", "levels.png"], {"image": Path("levels.png")}),
        "strength": (
            ["--image", "levels.png", "--strength", "0.5"],
            {"image": Path("levels.png"), "strength": 0.5},
        ),
        "mask": (
            ["--image", "levels.png", "--mask", "other-levels.png"],
            {"image": Path("levels.png"), "mask": Path("other-levels.png")},
        ),
        "out": (["--out", "a.png"], {"files.out": Path("a.png")}),
        "out_dir": (["--out-dir", "singles"], {"files.out_dir": Path("singles"), "files.out": None}),
        "trajectory": (["--trajectory", "a.gif"], {"files.trajectory": Path("a.gif")}),
        "latents": (["--latents", "a.safetensors"], {"files.latents": Path("a.safetensors"), "files.out": None}),
        "overwrite": (["--out", "there.png", "--overwrite"], {"files.out": Path("there.png")}),  # refused without
    },
    "generate set": {
        **{name: row for name, row in CALL.items() if name != "device"},
        "device": (["--device", "cpu"], {"opened": ("some", "cpu", "float32")}),
        "out": (["--out", "there"], {"folder": Path("there")}),
        "labels_from": (["--labels-from", "labels.txt"], {"labels": ["4", "2"]}),
        "class_order": (["--num-images", "3", "--class-order", "none"], {"labels": [None] * 3}),
        "group": (["--group", "5"], {"group": 5}),
        "pack": (["--no-pack"], {"make_pack": False}),
    },
    "evaluate": {
        **CALL,
        **MEASURING,
        **WRITTEN,
        "what": (["other"], {"opened": ("other", "auto", "float32")}),
        "num_samples": (["--num-samples", "64"], {"num_samples": 64}),
        "overwrite": (["--json", "there.json", "--overwrite"], {"output": Path("there.json")}),  # refused without
    },
    "evaluate images": {
        **MEASURING,
        **WRITTEN,
        "what": (["others.npz"], {"samples": "others.npz"}),
        "device": (["--device", "cuda:7"], {"cuda": True}),
    },
    "evaluate run": {
        **MEASURING,
        "what": (["other"], {"run": Path("other")}),
        "num_samples": (["--num-samples", "64"], {"num_samples": 64}),
        "device": (["--device", "cuda:7"], {"device": "cuda"}),
        "during_training": (["--during-training"], {}),  # what makes the command one of this kind
    },
}
# Options that choose which function is called, or are used after it; commands that only print.
CHOOSING = {
    ("verify", "posterior"),
    ("verify", "out"),
    ("train", "dry_run"),
    ("generate", "dry_run"),
    ("evaluate", "during_training"),
}
PRINTING = {
    "info": "tests/cli/test_commands.py reads what it prints",
    "list": "the same",
    "recipe": "tests/cli/test_recipe_command.py reads what it writes",
}


class Reached(Exception):
    """The spied function was called."""


class Prepared(dict[str, Any]):
    """A call in parts, whose labels are counted."""

    labels = property(lambda self: self["labels"])


class Stub:
    """A pipeline that is opened and asked what it would run."""

    defaults = {"sampler": {"name": "ddim", "clip": 3}}  # noqa: RUF012
    class_names = tuple(f"d{k}" for k in range(10))
    num_classes = 10
    decoded_shape = (1, 8, 8)

    def __init__(self, opened: tuple[str, str, str]) -> None:
        self.opened = opened

    def prepare(self, labels: Any, **options: Any) -> Prepared:
        if (seen := options.get("measurement")) is not None:
            level = seen.y.mean().item() if not seen.noise_std else round(seen.y.mean().item())
            options["measurement"] = (seen.operator.registry_name, seen.noise_std, level)
        return Prepared(labels=labels, **options)

    prepare_edit = prepare


def flat(value: Any, prefix: str) -> dict[str, Any]:
    """Dataclasses and recipes by their fields."""
    if isinstance(value, Recipe):
        return nested(value.to_dict(), prefix, ("recipe", "finetune"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {key: one for name, part in parts.items() for key, one in flat(part, f"{prefix}.{name}").items()}
    if isinstance(value, Stub):
        return {"opened": value.opened}
    if isinstance(value, Tensor):
        return {prefix: value.mean().item()}
    return {prefix: value}


def nested(values: Mapping[str, Any], prefix: str, opened: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and key in opened
        found |= nested(value, f"{prefix}.{key}", opened) if inner else {f"{prefix}.{key}": value}
    return found


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a command line; the arguments with which it calls the function at `place`."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("recipe", 0), ("second", 5)):
        Path(f"{name}.yaml").write_text(RECIPE + f"seed: {seed}\n")
    Path("labels.txt").write_text("4\n2\n")
    for name in ("there.npz", "there.png", "there.json", "pictures.npz", "others.npz", "ref.npz"):
        Path(name).touch()
    for name, level in (("levels.png", 0), ("other-levels.png", 255)):
        Image.new("L", (8, 8), level).save(name)
    for name in ("a.pt", "b.pt"):
        Path(name).touch()
    for name in ("picture.png", "b.png"):
        Path(name).write_bytes(RECORDED)
    for name in ("some", "other", "run", "vae"):  # where a pipeline, a run or an autoencoder is needed
        Path(name).mkdir()
        Path(name, "model_index.json").write_text("{}")
    monkeypatch.setattr(Opening, "open", lambda one, to_generate=False: Stub((one.name, one.device, one.dtype)))
    for module in ("stats", "evaluate", "classifier"):
        cuda = lambda name: "cuda" if name == "cuda:7" else "cpu"  # noqa: E731
        monkeypatch.setattr(importlib.import_module(f"dinit.cli.{module}"), "torch_device", cuda)

    def call(place: str, arguments: list[str]) -> dict[str, Any]:
        module, _, name = place.partition(":")
        loaded = importlib.import_module(module)
        signature = inspect.signature(getattr(loaded, name))
        seen: dict[str, Any] = {}

        def spy(*given: Any, **options: Any) -> Any:
            bound = signature.bind(*given, **options)
            bound.apply_defaults()
            for key, value in bound.arguments.items():
                kind = signature.parameters[key].kind
                if kind is inspect.Parameter.VAR_KEYWORD or key == "call":
                    seen.update(one for name, part in value.items() for one in flat(part, name).items())
                elif key == "spec":  # how to measure: an EvaluationSpec
                    parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
                    seen.update(one for name, part in parts.items() for one in flat(part, name).items())
                elif not callable(value):
                    seen.update(flat(value, key))
            raise Reached

        with monkeypatch.context() as patched:
            patched.setattr(loaded, name, spy)
            with pytest.raises(Reached):
                app(args=arguments, standalone_mode=False)
        return seen

    return call


def commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_option_has_a_row() -> None:
    assert set(OPTIONS) == set(BASES)
    rows = {(base.split()[0], option) for base, options in OPTIONS.items() for option in options}
    known = {
        (name, one.name) for name, command in commands().items() for one in command.params if one.name != "help"
    }
    assert {row for row in known if row[0] not in PRINTING} == rows | CHOOSING


PLAIN: dict[str, dict[str, Any]] = {}  # what the commands without options call, once it is known
ROWS = [(base, option) for base, options in OPTIONS.items() for option in options]


@pytest.mark.parametrize(("base", "option"), ROWS, ids=lambda one: one)
def test_an_option_changes_what_it_says_and_nothing_else(
    base: str, option: str, called: Callable[..., dict[str, Any]]
) -> None:
    place, command = BASES[base]
    more, expected = OPTIONS[base][option]
    if base not in PLAIN:
        PLAIN[base] = called(place, list(command))
    changed, plain = list(command), PLAIN[base]
    if not more[0].startswith("-") and option != "overrides":
        changed[1 + (option == "image")] = more[0]  # in place of the positional argument
    elif more[0] in command and len(more) == 2:
        changed[command.index(more[0]) + 1] = more[1]
    else:
        changed += more
    found = called(place, changed)
    expected = dict(expected)
    times = expected.pop("times", None)
    if times:  # each of the labels so many times
        expected["labels"] = [label for label in expected["labels"] for _ in range(times)]
    for key, value in expected.items():
        assert found[key] == value, key
    different = {key for key in plain.keys() | found.keys() if plain.get(key) != found.get(key)}
    assert different == {key for key, value in expected.items() if plain.get(key) != value}
    assert different or option in ("during_training", "class_order", "quick")


def test_all_metrics_and_no_guidance(called: Callable[..., dict[str, Any]]) -> None:
    place, command = BASES["evaluate"]
    assert called(place, [*command, "--metrics", "all"])["metrics"] == METRICS.names()
    assert called(place, [*command, "--guidance", "none"])["guidance"] == []
