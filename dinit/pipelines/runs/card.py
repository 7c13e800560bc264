"""Model card of a trained pipeline, for the Hub: recipe, steps, seconds and measured figures.

`python -m dinit.pipelines.runs.card RUN/pipeline --to FOLDER` evaluates what `dinit train` wrote, with its own
guidance and without any, and copies the pipeline with its card to FOLDER. The shipped pipelines are made this way.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dinit.cards import CardMetadata
from dinit.evaluation.reports.report import Report, Row
from dinit.files import whole_folder, write_atomically
from dinit.pipelines.evaluate import evaluate
from dinit.pipelines.hub import data_names
from dinit.pipelines.loading import BACKBONE, read_json
from dinit.training.recipe.file import load_recipe

_FIGURES = ("class_accuracy", "fid", "kid", "precision", "recall", "inception_score")


def ship(pipeline: Path, target: Path, num_samples: int = 1000, half: bool = False) -> str:
    """Evaluates a pipeline folder and copies it, with its card, to `target`. Returns the card.

    Args:
        pipeline: folder that `dinit train` wrote.
        target: folder to make.
        num_samples: generated for each row of the card.
        half: store the weights in float16, in half the space; they are evaluated as stored, and opened as float32.

    Raises:
        ValueError: a folder that `dinit train` did not write, a `target` that is there already, or weights that
            float16 cannot hold.
    """
    if not (pipeline / "training.json").is_file():
        raise ValueError(f"{pipeline} has no training.json: give the pipeline folder of a `dinit train` run")
    if target.exists():
        raise ValueError(f"{target} is there already; remove it or choose another folder")
    recipe = load_recipe(pipeline / "recipe.yaml")
    data = {key: value for key, value in recipe.data.spec().items() if key != "split"}
    with whole_folder(target) as temporary:
        shutil.copytree(pipeline, temporary, dirs_exist_ok=True)
        if half:
            for file in temporary.rglob("*.safetensors"):
                _halve(file)
        reports = {
            "its own guidance": evaluate(temporary, num_samples, dataset_name=data),
            "no guidance": evaluate(temporary, num_samples, dataset_name=data, guidance=[]),
        }
        text = card(target.name, temporary, reports)
        write_atomically(temporary / "README.md", text)
    return text


def _halve(file: Path) -> None:
    """Rounds the float tensors of a .safetensors file to float16. ValueError where one overflows."""
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
    too_large = [key for key, value in tensors.items() if not value.isfinite().all()]
    if too_large:
        raise ValueError(f"float16 cannot hold {', '.join(too_large)}; leave --half out")
    save_file(tensors, file, metadata={"format": "pt"})


def card(name: str, pipeline: Path, reports: dict[str, Report]) -> str:
    """The card's text. reports: one for each way of sampling; all of one protocol, with one real row."""
    facts = json.loads((pipeline / "training.json").read_text())
    classes = read_json(pipeline / BACKBONE / "config.json")["num_classes"]
    first = next(iter(reports.values()))
    made_by, protocol = first.made_by, first.protocol
    figures = [key for key in _FIGURES if key in first.model.metrics]
    rows = [_cells(way, report.model, figures) for way, report in reports.items()]
    rows.append(_cells("real (train split)", first.real, figures))
    files = list(pipeline.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    halved = any(value.dtype is torch.float16 for file in files for value in load_file(file).values())
    stored = " in float16, opened as float32" if halved else ""
    lines = [
        CardMetadata(
            ("diffusion", "class-conditional" if classes else "unconditional"),
            license="apache-2.0",
            datasets=data_names(load_recipe(pipeline / "recipe.yaml").data.spec()),
            metrics=[key.replace("_", "-") for key in figures],
        ).front_matter(),
        f"# {name}",
        "",
        "```python",
        "from dinit import Pipeline",
        "",
        f'images = Pipeline.from_pretrained("{name}")([3, 1, 4], seed=0).images',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| recipe | `recipe.yaml` in this folder; `dinit train recipe.yaml --out runs/{name}` trains it again |",
        f"| weights | {facts['parameters']:,} parameters (EMA), {size / 1e6:.2f} MB of safetensors{stored} |",
        f"| training | {facts['steps']:,} steps, {facts['images']:,} images, {facts['seconds']:.0f} s on "
        f"{facts['device']}, {facts['processes']} process; torch {facts['versions']['torch']} |",
        f"| sampling | {made_by['sampler']['name']}, {made_by['steps']} steps, {made_by['nfe']} NFE; "
        f"guidance {_guidance(made_by['guidance'])} |",
        "",
        f"| {protocol.sample_count:,} samples | " + " | ".join(key.replace("_", " ") for key in figures) + " |",
        "|---|" + "---|" * len(figures),
        *rows,
        "",
        f"Protocol: features {protocol.features} ({protocol.weights}), "
        f"statistics of {protocol.reference_count} images ({protocol.reference}), resize {protocol.resize}, "
        f"labels {protocol.labels}, seed {protocol.seed}. Scores of other protocols are not comparable with these.",
        "",
    ]
    return "\n".join(lines)


def _guidance(specs: list[dict]) -> str:
    shown = [f"{spec['name']} {spec['scale']:g}" if "scale" in spec else spec["name"] for spec in specs]
    return ", ".join(shown) or "none"


def _cells(name: str, row: Row, figures: list[str]) -> str:
    values = [f"{row.metrics[key]:.4g}" if key in row.metrics else "" for key in figures]
    return f"| {name} | " + " | ".join(values) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("pipeline", type=Path, help="the pipeline folder of a training run")
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    given = parser.parse_args()
    print(ship(given.pipeline, given.to, given.num_samples, given.half))


if __name__ == "__main__":
    main()
