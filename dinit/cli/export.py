"""`dinit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import check_word
from dinit.cli.console import console
from dinit.cli.options import Name, Opening, Overwrite

_FORMATS = ("dit", "sit", "diffusers")

FormatOption = Annotated[
    str,
    typer.Option(
        "--format", help="dit or sit: a .pt file of that repository; diffusers: a folder.", show_default=False
    ),
]
To = Annotated[Path, typer.Option("--to", help="File or folder to write.", show_default=False)]


def export(name: Name, format: FormatOption, to: To, overwrite: Overwrite = False) -> None:
    """Write a pipeline's weights in the format of another program.

    Examples:
        dinit export digits-dit --format dit --to digits.pt
    """
    check_word("format", format, _FORMATS)
    pipe = Opening(name, "cpu").open()
    from dinit.pipelines.weights.export import export as run

    console.print(f"{name} as {format} → {run(pipe, to, format, overwrite)}", markup=False, highlight=False)
