"""`dinit train`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.console import console, show_error

if TYPE_CHECKING:
    from dinit.training.recipe.model import Recipe

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="Recipe, .yaml, or the name of a shipped one, see `dinit list recipes`.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]…", help="Values that replace the recipe's.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/NAME, with the recipe's name.")]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from", help="Pipeline to fine-tune: a shipped one, a folder, or a Hub id.", show_default=False
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|NAME[:KEY=VALUE,…]",
        help="Images in one sub-folder per class, or a data set such as glyphs:size=32. Replaces the recipe's.",
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
    no_resume: NoResume = False,
    profile: Profiled = False,
    dry_run: DryRun = False,
) -> None:
    """Train the pipeline that a recipe describes. An interrupted run is resumed.

    With --init-from, training starts from a pipeline, for the classes of the data, and the recipe may be left out.
    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint; the exit code is 128 + the signal's.
    """
    if recipe is not None and "=" in recipe.name and not recipe.exists():
        recipe, overrides = None, [str(recipe), *(overrides or ())]  # a value, where no recipe was given
    loaded = _load(recipe, overrides or (), init_from, data)
    # After the recipe is checked, because this is slow to import.
    from dinit.pipelines.train import train as run
    from dinit.training.run.divergence import TrainingDiverged
    from dinit.training.run.stopping import TrainingStopped

    folder = Path("runs") / (loaded.name if recipe is None else recipe.stem) if out is None else out
    if dry_run:
        _try(loaded, folder)
        return
    try:
        result = run(loaded, folder, resume=not no_resume, profile=profile)
    except TrainingStopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            console.print(str(stopped), markup=False)
        raise typer.Exit(128 + stopped.number) from stopped
    except TrainingDiverged as error:
        show_error(str(error))
        raise typer.Exit(1) from error
    if os.environ.get("RANK", "0") != "0":
        return  # only the main process prints
    took = f"{result.steps} steps in {result.seconds:.0f} s, loss {result.final_loss:.4f}"
    console.print(f"{took} → {result.pipeline}")


def _try(recipe: Any, folder: Path) -> None:
    """Shows what a dry run found; exit code 1 where the recipe will not fit this machine."""
    from dinit.pipelines.runs.dry_run import dry_run

    found = dry_run(recipe, folder)
    for line in found.lines(recipe):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not found.fits:
        raise typer.Exit(1)
