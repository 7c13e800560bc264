"""`dinit train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.console import console, show_error

Recipe = Annotated[Path, typer.Argument(help="A recipe, .yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]…", help="Values in place of the recipe's.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/ and the recipe's name].")]
NoResume = Annotated[bool, typer.Option("--no-resume", help="Start anew where a run could go on.")]


def train(recipe: Recipe, overrides: Overrides = None, out: Out = None, no_resume: NoResume = False) -> None:
    """Train the pipeline that a recipe describes. A run that was stopped goes on where it was."""
    from dinit.training.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    # After the recipe's mistakes were told: this is slow to import.
    from dinit.pipelines.train import train as run
    from dinit.training.faults import TrainingDiverged

    folder = Path("runs") / recipe.stem if out is None else out
    try:
        result = run(loaded, folder, resume=not no_resume)
    except TrainingDiverged as error:
        show_error(str(error))
        raise typer.Exit(1) from error
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes speaks
    took = f"{result.steps} steps in {result.seconds:.0f} s, loss {result.final_loss:.4f}"
    console.print(f"{took} → {result.pipeline}")
