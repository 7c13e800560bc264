"""Arguments of a training run: stored in its checkpoint, or in a configuration file in the checkpoint's folder."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

# Entries of a checkpoint that hold a run's arguments; those of `args` are on the top level of `Checkpoint.args`.
_ARGS = "args"
_ENTRIES = ("config", "cfg", "hparams", "hyper_parameters", "arguments", "options", "model_and_diffusion")
# Files in the folder of a checkpoint, or one folder up, as a run's folder has them.
_FILES = ("args", "arguments", "config", "hparams", "params", "model_and_diffusion", ".hydra/config")
# Groups of a configuration that describe the network.
_GROUPS = ("args", *_ENTRIES, "model", "network", "net", "nnet", "denoiser", "backbone", "transformer", "params")
_SUFFIXES = (".json", ".yaml", ".yml")
_LONGEST = 100  # characters of a value in a message
_LARGEST = 2**20  # bytes of a configuration file


def run_arguments(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The arguments of the run in a training checkpoint.

    Args:
        content: The checkpoint as it was read.

    Returns:
        Those of its entry `args`, and further entries (`config`, `hyper_parameters`, ...) under their names.
    """
    found = {entry: _plain(content.get(entry)) for entry in _ENTRIES}
    nested = {entry: values for entry, values in found.items() if values and not _tensors(values)}
    return {**nested, **_plain(content.get(_ARGS))}


@dataclass(frozen=True)
class Stated:
    """A value that a run's arguments have.

    Attributes:
        key: Where it stands: "args.num_classes", "config.yaml: model.num_classes".
        value: As a number, truth value, None, text or list.
    """

    key: str
    value: Any

    def __str__(self) -> str:
        value = repr(self.value)
        return f"{self.key} = {value if len(value) <= _LONGEST else value[:_LONGEST] + '...'}"


@dataclass(frozen=True)
class RunArguments:
    """A run's arguments from all of their places, by name.

    Attributes:
        places: Label of each place and its values, flat, names joined by dots.
    """

    places: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @classmethod
    def of(cls, args: Mapping[str, Any], path: Path) -> RunArguments:
        """The arguments of a checkpoint.

        Args:
            args: Stored in it, see `run_arguments`.
            path: The checkpoint; where it is a file, configuration files in its folder and the one above are read.

        Raises:
            ValueError: a configuration file is damaged.
        """
        flat = {name if name.split(".")[0] in _ENTRIES else f"{_ARGS}.{name}": one for name, one in _leaves(args)}
        places = [("", flat)] if flat else []
        if path.is_file():
            folders = [path.parent, *([path.parent.parent] if path.parent.name == "checkpoints" else [])]
            for file in (folder / f"{name}{end}" for folder in folders for name in _FILES for end in _SUFFIXES):
                content = _read(file)
                if content:
                    name = file.relative_to(folders[-1]).as_posix()
                    places.append((f"{name}: ", dict(_leaves(content))))
        return cls(tuple(places))

    def __bool__(self) -> bool:
        return bool(self.places)

    def get(self, *names: str, groups: Iterable[str] = ()) -> Stated | None:
        """The value of the first of these names that is stored, None for none.

        An entry counts that is in no group, or in groups of the network ("model.params"); of several in one place,
        those nearest to the top.

        Args:
            names: Of the argument, with underscores; upper case and hyphens are the same.
            groups: Further groups that it may be in, such as "transport".

        Raises:
            ValueError: two places, or two groups of one place, give it different values.
        """
        allowed = {*_GROUPS, *groups}
        for name in names:
            found = [one for label, values in self.places for one in _nearest(label, values, name, allowed)]
            if found:
                for other in found[1:]:
                    if other.value != found[0].value:
                        raise ValueError(f"{found[0]}, but {other}: remove one of them")
                return found[0]
        return None

    def group(self, name: str) -> dict[str, Any]:
        """The values of a group ("model"), by their names inside it, from the first place that has it."""
        for _, values in self.places:
            parts = {key.split(f"{name}.", 1)[1]: one for key, one in values.items() if f".{name}." in f".{key}"}
            if parts:
                return parts
        return {}


def _nearest(label: str, values: Mapping[str, Any], name: str, groups: set[str]) -> Iterator[Stated]:
    """The entries of this name, in these groups alone, that are nearest to the top."""
    fitting = []
    for key in values:
        *outer, last = map(_normal, key.split("."))
        if last == name and groups.issuperset(outer):
            fitting.append(key)
    depth = min((key.count(".") for key in fitting), default=0)
    for key in fitting:
        if key.count(".") == depth:
            yield Stated(label + key, plain_value(values[key]))


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").lstrip("_")


def plain_value(stored: Any) -> Any:
    """A stored value, with text that writes a number, a truth value or nothing read as such, and 8.0 as 8."""
    if not isinstance(stored, str):
        return int(stored) if isinstance(stored, float) and stored.is_integer() else stored
    text = stored.strip()
    if text.lower() in ("none", "null", ""):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        number = float(text)
        return int(number) if number.is_integer() else number
    return text


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, joined by dots, and values of a tree."""
    for name, value in values.items():
        inner = _plain(value)
        if inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        elif value is None or isinstance(value, (bool, int, float, str, list, tuple)):
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _plain(args: Any) -> dict[str, Any]:
    """Arguments as a mapping: a Namespace's, a mapping's; empty for anything else."""
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return {str(name): value for name, value in args.items()} if isinstance(args, Mapping) else {}


def _tensors(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


def _read(file: Path) -> dict[str, Any]:
    """The mapping in a configuration file; empty where there is none, or where it is something else."""
    if not file.is_file() or file.stat().st_size > _LARGEST:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.load(text, _Loader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} cannot be read ({reason}), and it may say what the checkpoint in its folder was trained on: "
            "correct it or move it away"
        ) from error
    return _plain(content)


class _Loader(yaml.SafeLoader):
    """Plain YAML in which objects of other programs ("!!python/object") are None: Lightning's hparams have them."""


def _unknown_tag(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if suffix.startswith("tuple") and isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return None


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _unknown_tag)
_Loader.add_multi_constructor("!", _unknown_tag)
