"""`dinit combine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import check_folder, check_word
from dinit.cli.console import console
from dinit.cli.names import registry_of

_WEIGHTS = ("ema", "raw", "snapshots")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
To = Annotated[Path, typer.Option("--to", help="Folder of the new pipeline.", show_default=False)]
Metric = Annotated[
    str,
    typer.Option(
        help="What to minimise: loss, a metric such as fid, or module:function, from a pipeline to a number."
    ),
]
Of = Annotated[str, typer.Option("--of", help="Which weights: ema or raw of the checkpoints, or snapshots.")]
Samples = Annotated[int, typer.Option(min=1, help="Number of images per evaluation.")]
Evaluations = Annotated[int, typer.Option(min=1, help="Number of combinations to try.")]
Seed = Annotated[int, typer.Option(help="Random seed of the search.")]


def combine(
    run: Run,
    to: To,
    metric: Metric = "loss",
    of: Of = "ema",
    num_samples: Samples = 500,
    evaluations: Evaluations = 200,
    seed: Seed = 0,
) -> None:
    """Make a run's pipeline with the best linear combination of its saved weights. Liu et al. 2024 (LCSC).

    Examples:
        dinit combine runs/mine --to combined --metric fid
    """
    check_folder(run, "run")
    check_word("weights", of, _WEIGHTS)
    if metric != "loss" and ":" not in metric:
        check_word("metric", metric, registry_of("metrics").names())
    from dinit.pipelines.runs.combine import combine_run
    from dinit.training.averaging.combination import Search

    found = combine_run(run, to, metric, of, num_samples, Search(evaluations, seed=seed))
    newest = found.tried[0][1]
    shares = ", ".join(f"{share:+.3f}" for share in found.coefficients.tolist())
    console.print(f"{metric} {found.score:.6g}, of the newest weights alone {newest:.6g}", highlight=False)
    console.print(f"coefficients, oldest first: {shares} → {to}", highlight=False)
