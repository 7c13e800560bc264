"""`dinit train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dinit.cli.console import console, show_error

Recipe = Annotated[Path, typer.Argument(help="A recipe, .yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]…", help="Values in place of the recipe's.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/ and the recipe's name].")]
Profiled = Annotated[bool, typer.Option("--profile", help="Show where the time of a step goes, at the end.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Try a few steps, a checkpoint and previews; say what the run will take.")
]
NoResume = Annotated[bool, typer.Option("--no-resume", help="Start anew where a run could go on.")]


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    no_resume: NoResume = False,
    profile: Profiled = False,
    dry_run: DryRun = False,
) -> None:
    """Train the pipeline that a recipe describes. A run that was stopped goes on where it was.

    SIGTERM and Ctrl-C end it after the step in hand, once all is saved; the exit code is then 128 + the signal's.
    """
    from dinit.training.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    # After the recipe's mistakes were told: this is slow to import.
    from dinit.pipelines.train import train as run
    from dinit.training.faults import TrainingDiverged
    from dinit.training.stopping import TrainingStopped

    folder = Path("runs") / recipe.stem if out is None else out
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
        return  # one of several processes speaks
    took = f"{result.steps} steps in {result.seconds:.0f} s, loss {result.final_loss:.4f}"
    console.print(f"{took} → {result.pipeline}")


def _try(recipe: Any, folder: Path) -> None:
    """Shows what a dry run found; exit code 1 where the recipe will not fit this machine."""
    from dinit.pipelines.dry_run import dry_run

    found = dry_run(recipe, folder)
    for line in found.lines(recipe):
        console.print(line, markup=False, highlight=False)
    if not found.fits:
        raise typer.Exit(1)
