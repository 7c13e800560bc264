"""`dinit train`."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinit.checkpoints.runs import RECIPE, is_run
from dinit.cli.checks import check_device, check_pipeline
from dinit.cli.completion import datasets, pipelines, recipes
from dinit.cli.console import console, errors, show_error
from dinit.cli.recipe_check import check_data, check_recipe
from dinit.training.recipe.shipped import recipe_file

if TYPE_CHECKING:
    from dinit.pipelines.train import TrainResult
    from dinit.training.recipe.model import Recipe

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE",
        autocompletion=recipes,
        help="Recipe, .yaml, or the name of a shipped one, see `dinit list recipes`; or the folder of a run, which "
        "goes on with its own recipe.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that replace the recipe's, such as training.steps=500."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the run. Default: runs/NAME, with the recipe's name, or that of its file; runs/DATA-NAME "
        "where --data or data= replaces the recipe's data.",
        show_default=False,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="PIPELINE",
        autocompletion=pipelines,
        help="Pipeline to fine-tune: a shipped one, a folder, or a Hub id. Default: that of the recipe, if any.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|NAME[:KEY=VALUE,…]",
        autocompletion=datasets,
        help="Images in one sub-folder per class, or a data set such as glyphs:size=32. Default: the recipe's.",
        show_default=False,
    ),
]
Extend = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        help="Train the run that is there on, to this new total of steps. Default: the recipe's. Each further step "
        "has the learning rate of a run of the new total: the same for a constant schedule.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto, cpu, cuda, cuda:1 or mps: training.device. Default: the recipe's, which is auto, a GPU where "
        "there is one.",
        show_default=False,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|bf16|fp16",
        help="Of the forward and backward pass: training.precision. Default: the recipe's, which is fp32.",
        show_default=False,
    ),
]
Profiled = Annotated[bool, typer.Option("--profile", help="At the end, print how the time of a step is spent.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Run a few steps, a checkpoint and previews, and print what the run will need."),
]
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Refuse a folder with a run in it, in place of resuming.")
]


def _load(recipe: Path | None, overrides: Sequence[str], init_from: str | None, data: str | None) -> Recipe:
    """The recipe, with what the options say in its place; one for fine-tuning where none is given."""
    import yaml

    from dinit.training.finetune.transfer import data_spec, default_recipe, read_pretrained
    from dinit.training.recipe.file import load_recipe, parse_recipe

    pretrained = None if init_from is None else read_pretrained(init_from)
    images = None if data is None else data_spec(data, pretrained)
    if recipe is not None:
        given = [f"finetune.init_from={json.dumps(init_from)}"] if init_from is not None else []
        given += [f"data={json.dumps(images)}"] if images is not None else []
        return load_recipe(recipe, [*given, *overrides])
    if pretrained is None or images is None:
        raise ValueError("give a recipe, or --init-from PIPELINE and --data FOLDER to fine-tune without one")
    text = yaml.safe_dump(default_recipe(pretrained, images), sort_keys=False)
    return parse_recipe(text, overrides, title=f"the recipe that fine-tunes {init_from}")


def train(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    init_from: InitFrom = None,
    data: Data = None,
    out: Out = None,
    extend: Extend = None,
    device: Device = None,
    precision: Precision = None,
    no_resume: NoResume = False,
    profile: Profiled = False,
    dry_run: DryRun = False,
) -> None:
    """Train the pipeline that a recipe describes. An interrupted run is resumed, and --extend makes one longer.

    With --init-from, training starts from a pipeline, for the classes of the data, and the recipe may be left out.
    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint; the exit code is 128 + the signal's.

    Examples:
        dinit train digits-dico
        dinit train digits-dico training.steps=500 optimizer.lr=0.001 --out runs/short
        dinit train --init-from glyphs-32 --data photos/ --out runs/photos
    """
    if recipe is not None and "=" in recipe.name and not recipe.exists():
        recipe, overrides = None, [str(recipe), *(overrides or ())]  # a value, where no recipe was given
    if extend is not None and extend < 1:
        raise ValueError(f"--extend takes the new total of steps, at least 1, got {extend}")
    if device is not None:
        check_device(device)
    run = recipe if recipe is not None and is_run(recipe) else None
    if recipe is not None and run is None:
        recipe_file(recipe)
    if init_from is not None:
        check_pipeline(init_from)
    images = [] if data is None else [f"data={json.dumps(check_data(data, init_from))}"]
    options = {"training.device": device, "training.precision": precision}
    given = [*(overrides or ()), *(f"{key}={value}" for key, value in options.items() if value is not None)]
    if recipe is not None or init_from is not None:
        file = None if recipe is None else recipe_file(recipe) if run is None else run / RECIPE
        check_recipe(file, [*images, *given])
    loaded = _load(recipe if run is None else run / RECIPE, given, init_from, data)
    usual, loaded = (run, loaded) if run is not None else _named(recipe, loaded, given, data)
    out = usual if out is None else out
    # After the recipe is checked, because this is slow to import.
    from dinit.pipelines.train import train as train_recipe
    from dinit.training.run.divergence import TrainingDiverged
    from dinit.training.run.stopping import TrainingStopped

    if dry_run:
        _try(loaded, out, extend)
        return
    main = os.environ.get("RANK", "0") == "0"  # only the main process prints
    if main:
        errors.print(f"run: {out}", markup=False, highlight=False, soft_wrap=True)
    try:
        result = train_recipe(loaded, out, resume=not no_resume, profile=profile, extend=extend)
    except TrainingStopped as stopped:
        if main:
            console.print(str(stopped), markup=False)
        raise typer.Exit(128 + stopped.number) from stopped
    except TrainingDiverged as error:
        show_error(str(error))
        raise typer.Exit(1) from error
    if main:
        _show_end(result)


def _named(recipe: Path | None, loaded: Recipe, overrides: Sequence[str], data: str | None) -> tuple[Path, Recipe]:
    """The folder of a run for which none was given, and the recipe with that name where it had none of its own.

    The recipe's name, else that of its file; with the data's in front where the recipe has other data now, or is
    of fine-tuning without a recipe.
    """
    runs, keys = Path("runs"), {override.partition("=")[0].strip() for override in overrides}
    stated = "name" in loaded.model_fields_set
    name = loaded.name if stated or recipe is None else recipe.stem
    if "name" in keys:
        return runs / name, loaded
    replaced = data is not None or bool(keys & {"data", "data.name", "data.path"})
    if replaced and not _same_run(runs / name, loaded):
        of_data = _data_name(loaded)
        named_so = of_data in name and not (runs / name).exists()
        name = of_data if name in _GENERIC else name if named_so else f"{of_data}-{name}"
    elif name in _GENERIC:
        name = _data_name(loaded)
    elif recipe is not None and (runs / recipe.stem / RECIPE).is_file() and not (runs / name).exists():
        return runs / recipe.stem, loaded  # begun before recipes' names named runs
    return runs / name, loaded.model_copy(update={"name": name})


_GENERIC = ("config", "dinit-model", "model", "recipe", "run", "train", "training")  # general names


def _same_run(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds a run of this recipe, perhaps with its data at another path."""
    from dinit.training.build import make_data
    from dinit.training.run.data import differs
    from dinit.training.run.folder import differences, read_recipe

    if not is_run(folder):
        return False
    changed = {key for key, *_ in differences(read_recipe(folder), recipe)} - {"training.steps"}
    return not changed or (changed == {"data.path"} and differs(folder, make_data(recipe, quick=True)) is None)


def _data_name(recipe: Recipe) -> str:
    """The data's name as a part of a folder's name: the last part of its path, else the data set's name."""
    spec = recipe.data.spec()
    last = Path(str(spec.get("path") or spec["name"]).rstrip("/\\")).name
    return re.sub(r"[^\w.-]+", "-", last.partition(".")[0] if "." in last[1:] else last).strip("-.") or str(
        spec["name"]
    )


def _show_end(result: TrainResult) -> None:
    """How the run went, and commands that use it."""
    took = f"{result.steps} steps in {result.seconds:.0f} s, loss {result.final_loss:.4f}"
    console.print(f"{took} → {result.pipeline}", markup=False, highlight=False, soft_wrap=True)
    run = shlex.quote(str(result.folder))
    more = f"dinit train {run} --extend {2 * result.steps}"
    for command in (f"dinit generate {run}", f"dinit evaluate {run}", f"dinit app {run}", more):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def _try(recipe: Recipe, folder: Path, extend: int | None) -> None:
    """Shows what a dry run found; exit code 1 where the recipe will not fit this machine."""
    from dinit.pipelines.runs.dry_run import dry_run

    if extend is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": extend})})
    found = dry_run(recipe, folder)
    for line in found.lines(recipe):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not found.fits:
        raise typer.Exit(1)
