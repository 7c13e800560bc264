"""`dinit evaluate`: scores of a pipeline, of existing images, or of a run while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.checks import (
    DTYPES,
    check_device,
    check_entry,
    check_folder,
    check_pipeline,
    check_there,
    check_word,
    is_classifier,
)
from dinit.cli.completion import datasets, entries, pipelines
from dinit.cli.console import console
from dinit.cli.names import registry_of
from dinit.cli.options import (
    BatchSize,
    CacheOption,
    CallFlags,
    Device,
    Dtype,
    EditsOption,
    EndOption,
    Grid,
    GuidanceOption,
    Opening,
    Overwrite,
    SamplerOption,
    SamplerOptions,
    Seed,
    Steps,
    torch_device,
)
from dinit.contents import unfit
from dinit.files import user_path

if TYPE_CHECKING:
    from dinit.evaluation.reports.report import Report

_SPEC = "NAME[:KEY=VALUE,…]"
_MEASURE = "Measuring"

What = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        autocompletion=pipelines,
        help="Pipeline (shipped name, folder or Hub id), or existing images: a folder of pictures or a .npz. "
        "With --during-training, the folder of a run.",
        show_default=False,
    ),
]
NumSamples = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Number of images to generate. Default: 1000, or fewer (200 at least) where these take more than ten "
        "minutes; with --during-training that of the recipe.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar=f"FOLDER|{_SPEC}",
        autocompletion=datasets,
        help="Data set to compare with, or a folder of class folders. Default: the recipe's, or digits.",
        rich_help_panel=_MEASURE,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        help="In place of --data: reference statistics, of `dinit stats`, or ADM's .npz.",
        rich_help_panel=_MEASURE,
    ),
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="Protocol: digits, glyphs, torch-fidelity, adm, clean or classifier-HASH. Default: that of the "
        "features.",
        rich_help_panel=_MEASURE,
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        metavar=f"FOLDER|{_SPEC}",
        autocompletion=entries("features"),
        help="Feature extractor, or the folder or name of a classifier of `dinit classifier`. Default: the run's "
        "or the data's classifier, or that of the protocol.",
        rich_help_panel=_MEASURE,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="Names of `dinit list metrics`, separated by commas, or all. Default: six or seven, by the features.",
        rich_help_panel=_MEASURE,
    ),
]
Bootstrap = Annotated[
    int,
    typer.Option(
        min=0, help="Bootstrap samples for 95 % intervals, at least 20; 0 disables them.", rich_help_panel=_MEASURE
    ),
]
Curve = Annotated[
    bool,
    typer.Option(
        "--curve", help="Also report FID against the number of images, and its limit.", rich_help_panel=_MEASURE
    ),
]
DuringTraining = Annotated[
    bool,
    typer.Option("--during-training", help="Evaluate each new checkpoint of a run until it ends."),
]
JsonOut = Annotated[Path | None, typer.Option("--json", help="File for the report, .json. Default: none.")]
HtmlOut = Annotated[
    Path | None, typer.Option("--html", help="File for the report as a page, .html. Default: none.")
]


def evaluate(
    what: What,
    num_samples: NumSamples = None,
    data: Data = None,
    reference: Reference = None,
    protocol: ProtocolName = None,
    features: Features = None,
    metrics: Metrics = None,
    bootstrap: Bootstrap = 0,
    curve: Curve = False,
    sampler: SamplerOption = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    grid: Grid = None,
    end: EndOption = None,
    guidance: GuidanceOption = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    cache: CacheOption = None,
    edits: EditsOption = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    json: JsonOut = None,
    html: HtmlOut = None,
    during_training: DuringTraining = False,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a pipeline or existing images against real images, with real images as the baseline.

    Examples:
        dinit evaluate digits-dico --num-samples 1000 --html report.html
        dinit evaluate digits-dico --sampler heun --steps 10 --metrics fid,kid
        dinit evaluate pictures.npz --data glyphs
        dinit evaluate runs/digits-dico --during-training
    """
    flags = CallFlags(sampler, sampler_option, steps, grid, guidance, seed, batch_size, end, cache, edits)
    flags.check()
    _check_targets(json, html, overwrite)
    if data is not None and "/" not in data and not user_path(data).is_dir():  # which is a folder of class folders
        check_entry("datasets", data)
    if features is not None and not is_classifier(features):
        check_entry("features", features)
    for name in () if metrics in (None, "all") else metrics.split(","):
        check_word("metric", name.strip(), registry_of("metrics").names())
    check_word("dtype", dtype, DTYPES)
    check_device(device)
    if reference is not None:
        check_there(reference, "file of statistics", "`dinit stats` makes such a file")
        if user_path(reference).is_dir():
            raise ValueError(unfit(user_path(reference), "a file of statistics, as `dinit stats` makes it"))
    if during_training:
        check_folder(Path(what), "run")
    elif not user_path(what).exists():
        check_pipeline(what)
    given = _given(data, reference, protocol, features, metrics, bootstrap, curve)
    if during_training:
        _watch(Path(what), {**given, "num_samples": num_samples, "device": torch_device(device)})
        return
    from dinit.evaluation.evaluate import EvaluationSpec
    from dinit.evaluation.samples import is_samples
    from dinit.pipelines.evaluate import evaluate_pipeline, evaluate_samples

    if is_samples(what):
        _refuse_call(sampler, sampler_option, steps, grid, end, guidance)
        spec = EvaluationSpec(**given, seed=seed, cuda=torch_device(device).startswith("cuda"))
        report = evaluate_samples(what, spec, json, html)
    else:
        pipe = Opening(what, device, dtype).open()
        options = flags.options(pipe.defaults.get("sampler"))
        spec = EvaluationSpec(**given, seed=seed)
        report = evaluate_pipeline(pipe, num_samples, spec, json, html, **options)
    _show(report)


def _show(report: Report) -> None:
    """Print notes and warnings of a report, and its table last."""
    for line in report.caption():
        _say(line)
    console.print(report.table())


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_targets(json: Path | None, html: Path | None, overwrite: bool) -> None:
    from dinit.targets import check_target

    for path, suffix in ((json, "json"), (html, "html")):
        if path is not None:
            check_target(path, overwrite, (suffix,))


def _given(
    data: str | None,
    reference: Path | None,
    protocol: str | None,
    features: str | None,
    metrics: str | None,
    bootstrap: int,
    curve: bool,
) -> dict[str, Any]:
    """Fields of an EvaluationSpec that the options set."""
    if 0 < bootstrap < 20:
        raise ValueError(f"--bootstrap must be at least 20, or 0 for no intervals, got {bootstrap}")
    if data is not None and reference is not None:
        raise ValueError("--data and --reference contradict each other; give one of them")
    from dinit.evaluation.evaluate import ReportOptions
    from dinit.evaluation.features.base import EXTRACTORS
    from dinit.evaluation.metrics.base import METRICS
    from dinit.pipelines.classifier import data_spec

    fields = {
        "dataset_name": None if data is None else data_spec(data),
        "reference": reference,
        "protocol": protocol,
        "features": None if features is None else EXTRACTORS.parse(features),
        "metrics": METRICS.names()
        if metrics == "all"
        else metrics and [name.strip() for name in metrics.split(",")],
        "report_options": ReportOptions(bootstrap, curve),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _refuse_call(*options: Any) -> None:
    if any(option for option in options):
        raise ValueError("--sampler, --steps, --grid, --end and --guidance cannot be used with existing images")


def _watch(run: Path, how: dict[str, Any]) -> None:
    from dinit.pipelines.runs.watch import watch

    for step, report in watch(run, **how):
        console.rule(f"step {step:,}")
        _show(report)
