"""Averages of weights after training: EMAs of other widths (EDM2) and the best combination (LCSC).

The plain run of benchmarks/training.py, which keeps checkpoints and snapshots; its figures for each average of the
same run. LCSC searches on the loss of 500 training images, which its figures are not measured on.

Run: python benchmarks/training_averages.py [--seeds N] [--steps N] [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import yaml
from training import BACKBONE, BATCH, RESULTS, T95, Test, interval, recipe_of, rendered

from dinit.pipelines.generate import Pipeline
from dinit.pipelines.runs.combine import combine_run
from dinit.pipelines.runs.posthoc import pipeline_of_width
from dinit.pipelines.train import train
from dinit.training.averaging.combination import Search
from dinit.training.recipe.file import parse_recipe
from dinit.training.run.checkpoint import list_checkpoints, load_checkpoint

KEPT, WIDTHS, EVALUATIONS = 10, (0.05, 0.1), 100
COLUMNS = (("loss", 4), ("fid", 2), ("accuracy", 3))
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T95))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS / "training_averages.md")
    given = parser.parse_args()
    test, found = Test(), []
    with tempfile.TemporaryDirectory() as folder:
        data = rendered(Path(folder))
        for seed in range(given.seeds):
            found.append(one_run(seed, given.steps, data, test))
            print(found[-1], flush=True)
            given.out.write_text(page(found, given.steps))


def one_run(seed: int, steps: int, data: Path, test: Test) -> dict[str, Figures]:
    """Trains, and measures every average of the run."""
    recipe = recipe_of({}, seed, steps, data)
    recipe["ema"] |= {"widths": list(WIDTHS), "snapshot_every": steps // KEPT}
    recipe["training"] |= {"checkpoint_every": steps // KEPT, "keep": KEPT}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(parse_recipe(yaml.safe_dump(recipe)), run, progress=False)

        def raw() -> Pipeline:
            pipe = Pipeline.from_pretrained(run / "pipeline")
            pipe.backbone.load_state_dict(load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).model)
            return pipe

        def width(sigma_rel: float) -> Callable[[], Pipeline]:
            return lambda: Pipeline.from_pretrained(
                pipeline_of_width(run, sigma_rel, Path(folder) / f"{sigma_rel}")
            )

        def lcsc(of: str) -> Callable[[], Pipeline]:
            def make() -> Pipeline:
                combine_run(run, Path(folder) / of, of=of, how=Search(evaluations=EVALUATIONS))
                return Pipeline.from_pretrained(Path(folder) / of)

            return make

        averages = {
            "EMA of 0.99": lambda: Pipeline.from_pretrained(run / "pipeline"),
            "none: raw weights": raw,
            **{f"post-hoc EMA, width {s}": width(s) for s in (0.05, 0.075, 0.1, 0.15, 0.25)},
            f"LCSC of {KEPT} EMAs": lcsc("ema"),
            f"LCSC of {KEPT} raw weights": lcsc("raw"),
        }
        return {name: figures(make(), test) for name, make in averages.items()}


def figures(pipe: Pipeline, test: Test) -> Figures:
    pipe.set_progress_bar_config(disable=True)
    return {"loss": test.loss(pipe), **test.quality(pipe)}


def page(found: list[dict[str, Figures]], steps: int) -> str:
    """The table: the figures of the run's own EMA, then each average's difference from it, seed by seed."""
    first, *others = found[0]
    size = ", ".join(f"{k} {v}" for k, v in BACKBONE.items())
    lines = [
        "# Averages of trained weights",
        "",
        *(__doc__ or "").strip().splitlines()[2:4],
        "",
        textwrap.fill(
            f"DiT ({size}) on glyphs-32, batch {BATCH}, {steps} steps, seeds 0 to {len(found) - 1}. Post-hoc EMAs "
            f"are from {KEPT} snapshots of the widths {WIDTHS[0]} and {WIDTHS[1]}; LCSC tried {EVALUATIONS} "
            "combinations. Rows after the first: the change, mean ± half of its 95 % interval (Student's t over "
            "seeds), bold where the change is larger than that; below zero is better for loss and FID.",
            116,
        ),
        "",
        "| average | loss | FID | class accuracy |",
        "|---|---|---|---|",
        f"| {first} | {' | '.join(interval([run[first][key] for run in found], n) for key, n in COLUMNS)} |",
    ]
    for name in others:
        cells = [interval([run[name][key] - run[first][key] for run in found], n, sign=True) for key, n in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
