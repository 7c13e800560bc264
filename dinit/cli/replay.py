"""`dinit replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import check_pipeline, check_there
from dinit.cli.console import console
from dinit.cli.options import quiet
from dinit.contents import check_picture

Picture = Annotated[
    Path,
    typer.Argument(metavar="PICTURE", help="PNG, folder of PNGs, or set that dinit wrote.", show_default=False),
]
PipelineOption = Annotated[
    str | None,
    typer.Option("--pipeline", help="The pipeline. Default: the one at the place that the manifest records."),
]
Tolerance = Annotated[
    int, typer.Option(min=0, max=255, help="Largest difference of pixels, in 0 .. 255, that counts as the same.")
]


def replay(path: Picture, pipeline: PipelineOption = None, tolerance: Tolerance = 0) -> None:
    """Generate an image again from its manifest and compare: exit code 0 if it is the same, 1 if not.

    Of a set, four groups of images are generated again, from the first to the last; or the one image that is given.

    Examples:
        dinit replay samples.png
    """
    check_there(path, "picture or folder")
    if pipeline is not None:
        check_pipeline(pipeline)
    if path.is_file() and path.suffix != ".json":
        check_picture(path, needs_record=False)
    from dinit.pipelines.outputs.replay import replay as run

    quiet()
    result = run(path, pipeline, tolerance)
    for note in result.notes:
        console.print(f"  {note}", markup=False, highlight=False)
    difference = f"largest difference {result.max_abs_diff} of 255 in {result.pictures} comparisons"
    if result.same:
        console.print(f"[green]the same[/green]: {path}, {difference}")
        return
    console.print(f"[red]different[/red]: {path}, {difference}")
    if result.max_abs_diff == 1:
        console.print("A difference of 1 is rounding on another machine; --tolerance 1 accepts it.")
    raise typer.Exit(1)
