"""`dinit ema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import check_folder
from dinit.cli.console import console

Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder of a run that was trained with ema.widths.", show_default=False),
]
Width = Annotated[
    float,
    typer.Option(
        "--sigma-rel", min=0, max=0.28, help="Relative width of the EMA, such as 0.08.", show_default=False
    ),
]
To = Annotated[Path, typer.Option("--to", help="Folder of the new pipeline.", show_default=False)]
Step = Annotated[int | None, typer.Option("--step", min=1, help="Training step of the EMA. Default: the last.")]


def ema(run: Run, sigma_rel: Width, to: To, step: Step = None) -> None:
    """Make a trained run's pipeline with an EMA of another width. Karras et al. 2024 (EDM2).

    Examples:
        dinit ema runs/mine --sigma-rel 0.08 --to wider
    """
    check_folder(run, "run")
    from dinit.pipelines.runs.posthoc import pipeline_of_width

    console.print(str(pipeline_of_width(run, sigma_rel, to, step)))
