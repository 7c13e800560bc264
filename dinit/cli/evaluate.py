"""`dinit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.console import console
from dinit.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Grid,
    GuidanceOption,
    Name,
    Overwrite,
    SamplerOption,
    SamplerOptions,
    Seed,
    Steps,
    call_options,
    load,
    parse_spec,
)

NumSamples = Annotated[int, typer.Option(help="Images to generate, as many of every class.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="NAME[:KEY=VALUE,…]", help="Data set to compare with [default: the recipe's, or digits]."),
]
Features = Annotated[
    str | None,
    typer.Option(metavar="NAME[:KEY=VALUE,…]", help="Feature extractor [default: the data set's]."),
]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Where to write the report, .json.")]


def evaluate(
    name: Name,
    num_samples: NumSamples = 1000,
    data: Data = None,
    features: Features = None,
    sampler: SamplerOption = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    grid: Grid = None,
    guidance: GuidanceOption = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    json: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a pipeline against real images; the report shows real against real beside it."""
    if json is not None:
        from dinit.pipelines.targets import check_target

        check_target(json, overwrite, ("json",))
    from dinit.pipelines.evaluate import evaluate as run

    pipe = load(name, device, dtype)
    own = pipe.defaults.get("sampler")
    options = call_options(sampler, sampler_option, steps, grid, guidance, default_sampler=own)
    report = run(
        pipe,
        num_samples,
        dataset_name=None if data is None else parse_spec(data),
        features=None if features is None else parse_spec(features),
        seed=seed,
        output=json,
        batch_size=batch_size,
        **options,
    )
    console.print(report.table())
