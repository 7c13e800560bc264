"""Transfer from a pretrained pipeline to other classes: the weights that are loaded, and those that are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dinit.checkpoints.locating import INDEX, is_own_class, locate, read_json
from dinit.data import DATASETS
from dinit.data.class_names import find_name
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.files import user_path
from dinit.models.base import BACKBONES, Backbone
from dinit.training.finetune.adapters import adapt_difffit, adapt_lora, label_tables, trained
from dinit.training.recipe.model import FinetuneSection
from dinit.training.recipe.names import use_present_names
from dinit.training.recipe.yaml import Mistake

_OF_DATA = ("image_size", "in_channels", "num_classes")  # of a backbone's config: the data decides these
_FREE_TO_CHANGE = ("dropout",)  # changes no tensor


@dataclass(frozen=True)
class Pretrained:
    """A pipeline's folder, of which the JSON is read. init_from: the name given for it. own: its recipe, or {}."""

    init_from: str
    folder: Path
    index: Mapping[str, Any]
    backbone: type[Backbone]
    config: Mapping[str, Any]
    own: Mapping[str, Any]

    @property
    def class_names(self) -> list[str]:
        """Of its classes, numbers where they have no names."""
        count = int(self.config.get("num_classes") or 0)
        return list(self.index.get("class_names") or map(str, range(count)))

    def load(self) -> Backbone:
        """Its network. OSError for missing weights, ValueError for incomplete ones."""
        path: Any = self.folder / "backbone"
        loaded: Any = self.backbone.from_pretrained(path, use_safetensors=True, output_loading_info=True)
        network, info = loaded
        odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if odd:
            raise ValueError(
                f"the weights in {path} do not fit its config.json: {_some([str(key) for key in odd])}"
            )
        return network

    def settings(self) -> dict[str, Any]:
        """Sections of a recipe: backbone, process, parameterization and t_max, which a recipe cannot change, and
        sampling, time, loss and label_dropout for one that does not set them.
        """
        options = {key: value for key, value in self.config.items() if key not in _OF_DATA and key[0] != "_"}
        defaults = {key: value for key, value in (self.index.get("defaults") or {}).items() if value is not None}
        settings: dict[str, Any] = {
            "backbone": {"name": self.backbone.registry_name, **options},  # pyright: ignore
            "process": self.index["process"],
            "parameterization": self.index["parameterization"],
            "t_max": float(self.index.get("t_max", 1.0)),
            **({"sampling": defaults} if {"sampler", "steps"} <= defaults.keys() else {}),
            **{key: self.own[key] for key in ("time", "loss", "label_dropout") if key in self.own},
        }
        use_present_names(settings, warn=False)
        return settings


def read_pretrained(init_from: str) -> Pretrained:
    """A shipped pipeline, a folder, or a hub id. FileNotFoundError for none, ValueError for one of another kind."""
    folder = locate(init_from)
    index = read_json(folder / INDEX)
    entry = index.get("backbone")
    classes = {BACKBONES[name].__name__: BACKBONES[name] for name in BACKBONES}
    if not is_own_class(index) or not isinstance(entry, list) or entry[-1] not in classes:
        raise ValueError(
            f"{folder} is no pipeline of dinit, from which training can start; `dinit convert` makes one of a "
            "published checkpoint"
        )
    config = read_json(folder / "backbone" / "config.json")
    recipe = folder / "recipe.yaml"
    own = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.exists() else {}
    return Pretrained(init_from, folder, index, classes[entry[-1]], config, own)


def default_recipe(pretrained: Pretrained, data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that fine-tunes the pipeline on a data set: 1,000 steps of its optimiser, at half the rate.

    data: name and options, as in a recipe. All other settings are the pipeline's, or Recipe's defaults.
    """
    optimizer = pretrained.own.get("optimizer") or {}  # whose rate means nothing without its kind
    return {
        "name": f"{_name_of(pretrained.init_from)}-finetuned",
        "finetune": {"init_from": pretrained.init_from},
        "data": dict(data),
        "optimizer": {**optimizer, "lr": float(optimizer.get("lr", 2e-4)) / 2},
        "schedule": {"kind": "cosine"},
        "ema": {"decay": 0.99},
        "training": {"steps": 1000, "batch_size": 64, "sample_every": 250, "checkpoint_every": 250},
    }


def _name_of(init_from: str) -> str:
    """The last part of a pipeline's place that names it: runs/mine/pipeline is mine."""
    parts = [part for part in user_path(init_from).parts if part not in ("pipeline", "checkpoints")]
    named = [part for part in parts if not part.startswith("step-")]
    return (named or parts or [init_from])[-1]


def data_spec(text: str, pretrained: Pretrained | None) -> dict[str, Any]:
    """Name and options of the data set in a folder of images, in the pipeline's shape, or as in 'glyphs:size=32'.

    ValueError for an empty folder, a folder without a pipeline, or one that works on latents, and for text of
    another form.
    """
    if not user_path(text).is_dir():
        return DATASETS.parse(text)
    if not any(user_path(text).iterdir()):
        raise ValueError(f"the folder {text} is empty; wanted: one sub-folder of pictures for each class")
    if pretrained is None:
        raise ValueError(f"the size of the images is not known; give it, as in --data folder:path={text},size=32")
    vae = pretrained.index.get("vae") or [None]
    if vae[0] is not None or pretrained.index.get("vae_reference"):
        raise ValueError(
            f"{pretrained.init_from} works on latents: encode {text} with `dinit encode` and its autoencoder "
            "first, then give the cache as --data"
        )
    size, channels = (pretrained.config[key] for key in ("image_size", "in_channels"))
    return {"name": "folder", "path": text, "size": size, "channels": channels}


def inherit(data: dict[str, Any]) -> list[Mistake]:
    """Fill in the settings that a recipe takes from the pipeline of finetune.init_from. Returns contradictions."""
    section = data.get("finetune")
    init_from = section.get("init_from") if isinstance(section, dict) else None
    if not isinstance(init_from, str):
        return []  # the checks of types report what is wrong, if anything is
    try:
        pretrained = read_pretrained(init_from)
    except (OSError, ValueError) as error:
        return [Mistake(("finetune", "init_from"), str(error))]
    mistakes = []
    for key, value in pretrained.settings().items():
        if data.get(key) is None:
            data[key] = value
        elif key == "backbone":
            mistakes += _merge_backbone(data, value, init_from)
        elif key in ("process", "parameterization", "t_max") and not _same(key, data[key], value):
            message = f"{init_from} was trained with {value!r}, and the recipe has {data[key]!r}; leave it out"
            mistakes.append(Mistake((key,), message))
    return mistakes


def _merge_backbone(data: dict[str, Any], base: dict[str, Any], init_from: str) -> list[Mistake]:
    given = {"name": data["backbone"]} if isinstance(data["backbone"], str) else data["backbone"]
    if not isinstance(given, dict):
        return []
    odd = [
        key
        for key, value in given.items()
        if key not in (*_OF_DATA, *_FREE_TO_CHANGE) and _plain(base.get(key)) != _plain(value)
    ]
    data["backbone"] = base if "name" in odd else {**base, **given}
    return [
        Mistake(
            ("backbone", key), f"{init_from} has {base.get(key)!r}, and the recipe {given[key]!r}; leave it out"
        )
        for key in odd
    ]


def _same(key: str, given: Any, value: Any) -> bool:
    """Whether both make the same object. True where `given` makes none, which other checks report."""
    registries: Any = {"process": PROCESSES, "parameterization": PARAMETERIZATIONS}
    if key not in registries:
        return given == value
    try:
        ours, theirs = (registries[key].create(spec) for spec in (given, value))
    except (ValueError, TypeError):
        return True
    return ours.to_config() == theirs.to_config()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Transfer:
    """Weights that a network got from a pipeline. tensors: loaded unchanged. kept: new class -> the old class whose
    row it got. new: classes without one. dropped: old classes without a new one. fresh: tensors that the pipeline
    lacks. trained, parameters: trained numbers, and all.
    """

    init_from: str
    tensors: int
    kept: Mapping[str, str]
    new: Sequence[str]
    dropped: Sequence[str]
    fresh: Sequence[str]
    new_rows: str
    trained: int = 0
    parameters: int = 0

    def lines(self) -> list[str]:
        """The report."""
        same = [name for name, old in self.kept.items() if name == old]
        mapped = [f"{name} from {old}" for name, old in self.kept.items() if name != old]
        start = {"mean": "the mean of the old rows", "random": "random rows"}[self.new_rows]
        lines = [
            f"{self.tensors} tensors loaded from {self.init_from}",
            f"classes kept: {_some(same)}" if same else "",
            f"classes mapped: {_some(mapped)}" if mapped else "",
            f"new classes, from {start}: {_some(self.new)}" if self.new else "",
            f"old classes left out: {_some(self.dropped)}" if self.dropped else "",
            f"not in the pipeline, and random: {_some(self.fresh)}" if self.fresh else "",
            f"{self.trained:,} of {self.parameters:,} numbers are trained",
        ]
        return [line for line in lines if line]


def start_from(backbone: Backbone, class_names: Sequence[str], section: FinetuneSection) -> Transfer:
    """Loads the pipeline's weights into a fresh backbone for other classes, and adds what the mode trains.

    Rows of label tables are kept by the class's name, or as section.classes maps names; the null row is kept.
    ValueError for tensors of another shape, or a mapping that names no class.
    """
    pretrained = read_pretrained(section.init_from)
    old = pretrained.load()
    kept = _kept(section, class_names, pretrained.class_names)
    state, fresh = _combined(
        backbone, old, [_row(name, kept, pretrained.class_names) for name in class_names], section
    )
    backbone.load_state_dict(state)
    transfer = Transfer(
        section.init_from,
        tensors=len(state) - len(fresh) - len(label_tables(backbone)),
        kept=kept,
        new=[name for name in class_names if name not in kept],
        dropped=[name for name in pretrained.class_names if name not in kept.values()],
        fresh=fresh,
        new_rows=section.new_rows,
    )
    adapt(backbone, section)
    counts = trained(backbone)
    return Transfer(**{**transfer.__dict__, "trained": counts[0], "parameters": counts[1]})


def adapt(backbone: Backbone, section: FinetuneSection) -> None:
    """Freeze and add weights according to the mode. ValueError as `adapt_lora`."""
    if section.mode == "difffit":
        adapt_difffit(backbone)
    elif section.mode == "lora":
        adapt_lora(backbone, section.rank, section.alpha_or_rank, section.targets)


def _kept(section: FinetuneSection, new: Sequence[str], old: Sequence[str]) -> dict[str, str]:
    """New class -> the old one, each as its pipeline or data set spells it."""
    kept = {name: old[place] for name in new if (place := find_name(name, old)) is not None}
    for name, source in section.classes.items():
        row, old_row = find_name(name, new), find_name(source, old)
        if row is None or old_row is None:
            what, known = (name, new) if row is None else (source, old)
            raise ValueError(f"finetune.classes: {name}: {source} names {what!r}, which is none of {_some(known)}")
        kept[new[row]] = old[old_row]
    return kept


def _row(name: str, kept: Mapping[str, str], old: Sequence[str]) -> int | None:
    return list(old).index(kept[name]) if name in kept else None


def _combined(
    backbone: Backbone, old: Backbone, rows: Sequence[int | None], section: FinetuneSection
) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's state dict with the old one's tensors, and the names of those that it has alone."""
    state, theirs = dict(backbone.state_dict()), dict(old.state_dict())
    tables, theirs_tables = label_tables(backbone), label_tables(old)
    fresh, misfits = [], []
    for name, tensor in state.items():
        module = name.rpartition(".")[0]
        if name not in theirs:
            fresh.append(name)
        elif module in tables and module in theirs_tables:
            state[name] = _table(tensor, theirs[name], rows, old.num_classes, section.new_rows)
        elif theirs[name].shape != tensor.shape:
            misfits.append(f"{name} {list(theirs[name].shape)} there, {list(tensor.shape)} for this data")
        else:
            state[name] = theirs[name]
    lost = sorted(theirs.keys() - state.keys())
    if misfits or lost:
        misfits += [f"{name} only in the pipeline" for name in lost]
        raise ValueError(
            f"{section.init_from} is for other images than the data's ({_some(misfits)}): it takes "
            f"{old.in_channels} channels and {old.image_size}×{old.image_size} pixels; give the data that shape"
        )
    return state, fresh


@torch.no_grad()
def _table(ours: Tensor, theirs: Tensor, rows: Sequence[int | None], classes: int, new_rows: str) -> Tensor:
    """Our label table with rows of theirs; a row after the classes is the null class's."""
    ours = ours.clone()
    if new_rows == "mean":
        ours[: len(rows)] = theirs[:classes].mean(dim=0)
    for row, source in enumerate(rows):
        if source is not None:
            ours[row] = theirs[source]
    if len(ours) > len(rows) and len(theirs) > classes:
        ours[len(rows)] = theirs[classes]
    return ours


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
