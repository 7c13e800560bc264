"""`dinit recipe`."""

from __future__ import annotations

import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.checks import check_device
from dinit.cli.completion import datasets
from dinit.cli.console import console, errors
from dinit.cli.names import registry_of
from dinit.cli.options import Overwrite
from dinit.specs import parse_spec
from dinit.targets import check_writable
from dinit.training.recipe.rules import check_minutes, check_size

if TYPE_CHECKING:
    from dinit.training.recipe.suggest import Machine, Suggestion

_BUSY = 1.5  # running programs for each core, from which on a measurement is not of training alone

Data = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|NAME[:KEY=VALUE,…]",
        autocompletion=datasets,
        help="Pictures in one sub-folder per class, or a data set such as idx:path=fashion-mnist.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="File of the recipe, .yaml. Default: named after the data, such as photos.yaml.")
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Minutes that training may take. Default: 30, and 60 on a GPU.", show_default=False),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels that the pictures of a folder are scaled to; from 128 on a recipe for latents. "
        "Default: by the pictures and the machine.",
        show_default=False,
    ),
]
Vae = Annotated[str, typer.Option(help="Autoencoder for a size of 128 or more: a folder or a Hub id.")]
Device = Annotated[str, typer.Option(help="Device that will train: auto, cpu or cuda.")]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="Measure the speed by a few training steps, or estimate it.")
]


def recipe(
    data: Data,
    out: Out = None,
    minutes: Minutes = None,
    size: Size = None,
    vae: Vae = "stabilityai/sd-vae-ft-mse",
    measure: Measure = True,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a recipe for your own pictures, fitted to them and to this machine, with a reason for every line.

    It looks at all pictures and trains for some seconds to measure the speed. Then `dinit train` takes the file.

    Examples:
        dinit recipe photos/ --out mine.yaml
        dinit recipe idx:path=fashion-mnist --minutes 60
    """
    check_device(device)
    spec, name = _data(data)
    target = _target(out, name, overwrite)
    if size is not None:
        check_size(size)
    if minutes is not None:
        check_minutes(minutes)
    from dinit.compat import ensure_torchvision

    ensure_torchvision()
    from dinit.data.survey import survey
    from dinit.training.recipe.file import parse_recipe
    from dinit.training.recipe.suggest import suggest

    machine = _machine(device)
    found = survey(spec, _Progress())
    _say(_seen(data, found), f"machine: {machine}")
    speed, load = None, _load(machine)
    if load:
        _say(f"note: {load}")
    elif measure:
        from dinit.pipelines.runs.speed import Speed

        speed = Speed(
            cpu=machine.device == "cpu",
            show=lambda width, rate: _say(f"  measured: width {width}, {rate:,.0f} pictures/s"),
        )
    limit = minutes if minutes is not None else 60.0 if machine.gpu else 30.0
    made = suggest(found, machine, speed, name=target.stem, source=data, minutes=limit, size=size, vae=vae)
    # Latents are not encoded yet, so that another data set stands in where the rest is checked.
    with warnings.catch_warnings():  # the survey has shown them
        warnings.simplefilter("ignore")
        parse_recipe(made.text(), ["data={name: digits}"] if made.vae else [], title=target.name)
    _say(*_chosen(made), *(f"note: {remark}" for remark in made.remarks()))
    target.parent.mkdir(parents=True, exist_ok=True)
    from dinit.files import write_atomically

    write_atomically(target, made.text())
    _say(f"→ {target}", *([f"next: {made.encode_command()}"] if made.vae else []))
    _say(f"{'then' if made.vae else 'next'}: dinit train {shlex.quote(str(target))}")


def _say(*lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _data(text: str) -> tuple[dict[str, Any], str]:
    """The data set's spec, and a name for the recipe. ValueError for neither a folder nor a data set."""
    from dinit.files import user_path

    path = user_path(text)
    if path.is_dir():
        return {"name": "folder", "path": text}, path.resolve().name or "pictures"
    if path.is_file():
        raise ValueError(f"{text} is a file; give the folder that has one sub-folder of pictures for each class")
    if "/" in text and ":" not in text:
        raise ValueError(f"there is no folder {text}")
    known = registry_of("datasets")
    if text.partition(":")[0] not in known:
        raise ValueError(
            f"there is no folder {text}, and no data set of that name (known: {', '.join(known.names())})"
        )
    spec = parse_spec(text)
    place = Path(str(spec.get("path", spec["name"])))
    if spec["name"] == "folder" and "path" in spec and not user_path(place).is_dir():
        raise ValueError(f"there is no folder {place}")
    if spec["name"] != "folder":  # of which the size is to be chosen
        known.check(text)
    return spec, place.name.partition(".")[0] or spec["name"]


def _target(out: Path | None, name: str, overwrite: bool) -> Path:
    """The file to write. ValueError where it exists, or is no .yaml."""
    target = Path(f"{name.lstrip('.') or 'pictures'}.yaml") if out is None else out
    if target.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out must end in .yaml, got {target}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; take another --out, or --overwrite it")
    check_writable(target.parent)
    return target


def _machine(device: str) -> Machine:
    import torch

    from dinit.cli.options import torch_device
    from dinit.data.survey import available_cores
    from dinit.training.recipe.suggest import Machine

    cores = available_cores()
    if device == "auto":
        device = next((kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()), "cpu")
    kind = torch_device(device).partition(":")[0]
    if kind == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return Machine("cuda", cores, facts.name, facts.total_memory, torch.cuda.is_bf16_supported())
    return Machine(kind, cores, "Apple's GPU" if kind == "mps" else "")


def _load(machine: Machine) -> str:
    """Why a measurement would not be of this machine alone; empty where nothing else runs on its CPU."""
    if machine.device != "cpu" or not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load <= _BUSY * machine.cores:
        return ""
    return (
        f"other programs keep this machine busy (a load of {load:.0f} on {machine.cores} cores): the speed is an "
        "estimate for an idle one, not a measurement; call `dinit recipe` again when they have ended"
    )


def _seen(data: str, found: Any) -> str:
    """What was found, on one line."""
    import numpy as np

    width, height = np.median(found.sides, axis=0).astype(int)
    names = [f"{name} ({count:,})" for name, count in list(found.counts.items())[:6]]
    rest = f", … {len(found.counts) - 6} more" if len(found.counts) > 6 else ""
    classes = f", in {len(found.counts)} classes: {', '.join(names)}{rest}" if len(found.counts) > 1 else ""
    colour = "grey" if found.channels == 1 else "in colour"
    return f"{data}: {found.images:,} pictures, {width}×{height} (median), {colour}{classes}"


def _chosen(made: Suggestion) -> list[str]:
    """The choices, with their reasons."""
    wanted = {"size", "horizontal_flip", "hidden_size", "dropout", "steps", "scale"}
    entries = [(key, value, why) for _, key, value, why in made.entries() if key in wanted]
    seen: set[str] = set()
    lines = []
    for key, value, why in entries:
        if key not in seen:  # the sampler's steps come after training's
            lines.append(f"  {key}: {value if not isinstance(value, bool) else str(value).lower()}  ({why})")
        seen.add(key)
    return ["chosen:", *lines, made.title()]


class _Progress:
    """A line on the error stream, every second or two, for large folders."""

    def __init__(self) -> None:
        self.shown = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.shown < (2.0 if sys.stderr.isatty() else 20.0):
            return
        self.shown = time.monotonic()
        errors.print(f"{what}: {done:,} of {total:,}", markup=False, highlight=False)
