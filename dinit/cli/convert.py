"""`dinit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dinit.cli.checks import check_entry, check_there
from dinit.cli.completion import entries
from dinit.cli.console import console
from dinit.cli.options import Overwrite, quiet
from dinit.specs import parse_spec, parse_value

_SPEC = "NAME[:KEY=VALUE,…]"
_GIVEN = "What cannot be inferred from the weights"

Source = Annotated[
    Path,
    typer.Argument(
        metavar="WEIGHTS",
        help="Weights: a .pt, .pth, .ckpt, .bin, .tar or .safetensors file, or a folder of diffusers.",
        show_default=False,
    ),
]
To = Annotated[Path, typer.Option("--to", help="Folder of the new pipeline.", show_default=False)]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME",
        autocompletion=entries("layouts"),
        help="Layout of the weights, such as sit. Default: by the tensors' names.",
        rich_help_panel=_GIVEN,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Which weights: ema, model, or the name of an entry of the file. Default: ema, where the file has it.",
        rich_help_panel=_GIVEN,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="Option of the backbone, such as num_heads=6. Can be repeated.",
        rich_help_panel=_GIVEN,
    ),
]
ProcessOption = Annotated[
    str | None,
    typer.Option(
        "--process", metavar=_SPEC, help="Noise process. Default: the published one.", rich_help_panel=_GIVEN
    ),
]
ParameterizationOption = Annotated[
    str | None,
    typer.Option(
        "--parameterization",
        metavar=_SPEC,
        help="Parameterization. Default: the published one.",
        rich_help_panel=_GIVEN,
    ),
]
Vae = Annotated[
    str | None, typer.Option("--vae", help="AutoencoderKL of the pipeline: a folder or a Hub id. Default: none.")
]
Sha256 = Annotated[
    str | None,
    typer.Option("--sha256", help="SHA-256 that the file must have, checked before it is opened. Default: any."),
]


def convert(
    source: Source,
    to: To,
    layout: LayoutOption = None,
    weights: WeightsOption = None,
    option: Options = None,
    process: ProcessOption = None,
    parameterization: ParameterizationOption = None,
    vae: Vae = None,
    sha256: Sha256 = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert published weights to a pipeline: DiT, SiT, ADM, score_sde, diffusers and others.

    Layout and size are detected from the names and shapes of the tensors, and the evidence is printed. No code in
    a file is ever run.

    Examples:
        dinit convert DiT-XL-2-256x256.pt --to dit --vae stabilityai/sd-vae-ft-ema
        dinit convert model.safetensors --to mine --layout sit --option num_heads=6
    """
    check_there(source, "file or folder")
    check_entry("layouts", layout)
    check_entry("processes", process)
    check_entry("parameterizations", parameterization)
    options = parse_options(option or [])
    specs = {
        "process": None if process is None else parse_spec(process),
        "parameterization": None if parameterization is None else parse_spec(parameterization),
    }
    quiet()
    from dinit.pipelines.weights.convert import convert as run

    made = run(
        source,
        to,
        layout=layout,
        weights=weights,
        options=options,
        vae=vae,
        sha256=sha256,
        overwrite=overwrite,
        **specs,
    )
    part = f"its {made.weights} weights, " if made.weights else ""
    size = ", ".join(f"{name} {value}" for name, value in made.arguments.items())
    lines = [
        f"layout {made.recognised.name}: {made.recognised.evidence}",
        f"{part}{made.parameters:,} parameters: {made.backbone} with {size}",
        *made.notes,
        f"→ {made.folder}",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def parse_options(given: list[str]) -> dict[str, Any]:
    """['num_heads=6'] -> {'num_heads': 6}. ValueError for text of another form, or a name given twice."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if not equals or not name:
            raise ValueError(f"--option reads KEY=VALUE, as in num_heads=6; got {text!r}")
        if name in options:
            raise ValueError(f"--option {name} is given twice; give it once")
        options[name] = parse_value(value)
    return options
