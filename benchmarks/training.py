"""Effect of each training switch on a small DiT on glyphs: loss and FID against training images, several seeds.

Every switch is trained with the same backbone, budget and seeds as the plain recipe, which sees the same images,
noise and dropped labels; so each is compared with the plain run of its own seed. The loss is that of the
averaged weights on 1,000 images of the test split, unweighted, at the same times and noise for all: what is
minimised differs between switches, this does not. FID is of 540 images (15 a class, 10 evaluations of
dpmpp-2m, no guidance) against them, in the features of the glyphs classifier.

Run: python benchmarks/training.py [--seeds N] [--steps N] [--only NAME ...] [--cache FILE] [--out FILE]
Runs that the cache holds are not done again, so that it goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from dinit.data.glyphs import Glyphs
from dinit.data.pixels import from_uint8
from dinit.evaluation.features.glyphs_classifier import load_glyphs_classifier
from dinit.evaluation.metrics.frechet import frechet_distance
from dinit.evaluation.metrics.gaussian import Gaussian, gaussian_of
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.samplers.noise import NoiseSource
from dinit.training.recipe.file import parse_recipe
from dinit.training.run.checkpoint import list_checkpoints, load_checkpoint

RESULTS = Path(__file__).parent / "results"
IMAGES, BATCH, HELD_OUT, PER_CLASS, PIECE = 20_000, 32, 1000, 15, 180
BACKBONE = {"hidden_size": 48, "depth": 5, "num_heads": 4, "patch_size": 4}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighting min-snr": {"loss": {"weighting": "min-snr"}},
    "weighting p2": {"loss": {"weighting": "p2"}},
    "weighting sigmoid": {
        "loss": {"weighting": "sigmoid"},
        "t_max": 0.999,
    },  # its weight at pure noise is no number
    "times stratified": {"time": {"name": "stratified", "of": "uniform"}},
    "times logit-normal": {"time": "logit-normal"},
    "times log-normal": {"time": "log-normal"},
    "times snr-shift": {"time": "snr-shift"},
    "direction": {"loss": {"terms": {"name": "direction"}}},
    "contrastive": {"loss": {"terms": {"name": "contrastive"}}},
    "TREAD": {"routing": {"ratio": 0.5, "start": 1, "end": -1}},
    "CEP": {"condition_noise": {"gamma": 1.0}},
    "REPA": {
        "alignment": {
            "encoder": {"name": "glyphs-classifier", "layer": 3},
            "block": 2,
            "weight": 0.5,
            "hidden": 128,
        }
    },
    "Lion": {"optimizer": {"kind": "lion", "lr": 4e-4}},
    "Muon": {"optimizer": {"kind": "muon", "lr": 2e-3, "betas": [0.95, 0.99]}},
    "Muon, 6 times the rate": {"optimizer": {"kind": "muon", "lr": 1.2e-2, "betas": [0.95, 0.99]}},
    "AdamW, 3 times the rate": {"optimizer": {"lr": 6e-3}},
}
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t, 95 %, by the number of seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T95))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=list(SWITCHES), default=list(SWITCHES))
    parser.add_argument("--cache", type=Path, default=Path("runs/training_benchmark.jsonl"))
    parser.add_argument("--out", type=Path, default=RESULTS / "training.md")
    given = parser.parse_args()
    given.cache.parent.mkdir(parents=True, exist_ok=True)
    test = Test()
    with tempfile.TemporaryDirectory() as folder:
        data = rendered(Path(folder))
        for seed in range(given.seeds):
            for name in ["plain", *(n for n in given.only if n != "plain")]:
                key = {"switch": name, "seed": seed, "steps": given.steps}
                if any(key.items() <= row.items() for row in rows(given.cache)):
                    continue
                found = one_run(SWITCHES[name], seed, given.steps, data, test)
                with given.cache.open("a") as file:
                    file.write(json.dumps(key | found) + "\n")
                print(key | found, flush=True)
                given.out.write_text(page([r for r in rows(given.cache) if r["steps"] == given.steps]))


def rendered(folder: Path) -> Path:
    """The training images in a file: rendering them for every run would be most of the benchmark."""
    source = Glyphs("train", count=IMAGES)
    np.savez(
        folder / "glyphs.npz",
        images=source.uint8_images().permute(0, 2, 3, 1).numpy(),
        labels=source.labels,
    )
    return folder / "glyphs.npz"


def recipe_of(switch: Mapping[str, Any], seed: int, steps: int, data: Path) -> dict[str, Any]:
    """The plain recipe with a switch."""
    return {
        "name": "benchmark",
        "seed": seed,
        "data": {"name": "npz", "path": str(data)},
        "backbone": {"name": "dit", **BACKBONE},
        "process": "flow",
        "parameterization": "velocity",
        "tracker": None,
        "ema": {"decay": 0.99},
        **{k: v for k, v in switch.items() if k != "optimizer"},
        "optimizer": {"lr": 2e-3, **switch.get("optimizer", {})},
        "schedule": {"warmup_steps": steps // 10},
        "training": {"steps": steps, "batch_size": BATCH, "checkpoint_every": steps // 2, "keep": 2, "workers": 0},
    }


def one_run(switch: Mapping[str, Any], seed: int, steps: int, data: Path, test: Test) -> dict[str, Any]:
    """Trains, and measures the averaged weights halfway and at the end."""
    recipe = recipe_of(switch, seed, steps, data)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        train(parse_recipe(yaml.safe_dump(recipe)), Path(folder) / "run", progress=False)
        seconds = time.process_time() - started
        pipe = Pipeline.from_pretrained(Path(folder) / "run" / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        found: dict[str, Any] = {"cpu_seconds": round(seconds, 1)}
        for when, path in zip(("half", "end"), list_checkpoints(Path(folder) / "run" / "checkpoints"), strict=True):
            pipe.backbone.load_state_dict(load_checkpoint(path).ema)
            found |= {f"loss_{when}": test.loss(pipe), **{f"{k}_{when}": v for k, v in test.quality(pipe).items()}}
    return found


class Test:
    """The test split, with times and noise of its own, and what is measured on it."""

    def __init__(self) -> None:
        data = Glyphs("test", count=HELD_OUT)
        self.x0, self.labels = from_uint8(data.uint8_images()), torch.from_numpy(data.labels)
        self.t = (torch.arange(HELD_OUT, dtype=torch.float64) + 0.5) / HELD_OUT
        self.t = self.t[torch.randperm(HELD_OUT, generator=torch.Generator().manual_seed(1))]
        self.eps = NoiseSource.from_seed(2, HELD_OUT).normal("start", 0, self.x0)
        self.classifier = load_glyphs_classifier()
        self.classes = len(data.class_names)
        self.gaussian = self._gaussian(self.x0)

    @torch.no_grad()
    def _gaussian(self, images: Tensor) -> Gaussian:
        features = [self.classifier.features(piece) for piece in images.split(PIECE)]
        return gaussian_of(torch.cat(features).numpy())

    @torch.no_grad()
    def loss(self, pipe: Pipeline) -> float:
        """Mean squared error of the velocity over the test images, each at its own time and noise."""
        denoiser, total = pipe.denoiser(), 0.0
        for rows_ in torch.arange(HELD_OUT).split(PIECE):
            t = self.t[rows_]
            k = denoiser.process.scales(t).like(self.x0[rows_])
            x_t = k.alpha * self.x0[rows_] + k.sigma * self.eps[rows_]
            predicted = denoiser(x_t, t, denoiser.condition(self.labels[rows_], len(rows_)))
            total += float((predicted.velocity - (self.eps[rows_] - self.x0[rows_])).square().mean((1, 2, 3)).sum())
        return total / HELD_OUT

    def quality(self, pipe: Pipeline) -> dict[str, float]:
        """FID and class accuracy of sampled images."""
        labels, pieces = torch.arange(self.classes * PER_CLASS) % self.classes, []
        for start in range(0, len(labels), PIECE):
            made = pipe(
                labels[start : start + PIECE],
                sampler="dpmpp-2m",
                steps=10,
                guidance=[],
                seed=5,
                start_index=start,
                output_type="pt",
            )
            pieces.append(made.images * 2 - 1)
        images = torch.cat(pieces).clamp(-1, 1)
        with torch.no_grad():
            found = torch.cat([self.classifier(piece).argmax(1) for piece in images.split(PIECE)])
        return {
            "fid": frechet_distance(self._gaussian(images), self.gaussian),
            "accuracy": float((found == labels).double().mean()),
        }


def rows(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []


def page(found: list[dict[str, Any]]) -> str:
    """The table: the plain run's figures, then each switch's difference from it, seed by seed."""
    steps = found[0]["steps"]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in found:
        by_name.setdefault(row["switch"], {})[row["seed"]] = row
    plain = by_name["plain"]
    size = ", ".join(f"{k} {v}" for k, v in BACKBONE.items())
    lines = [
        "# Switches of training",
        "",
        *(__doc__ or "").strip().splitlines()[2:7],
        "",
        textwrap.fill(
            f"DiT ({size}) on glyphs-32, flow, velocity, AdamW at 2e-3 (Lion: 4e-4, Muon: 2e-3), batch {BATCH}, "
            f"{steps} steps, EMA of 0.99, seeds 0 to {len(plain) - 1}. Rows after the first: the change from the "
            "plain run of the same seed, mean ± half of its 95 % interval (Student's t over seeds), bold where the "
            "change is larger than that; below zero is better for loss and FID. Time is CPU seconds of the whole "
            "training as a ratio, and varies by a tenth from run to run.",
            116,
        ),
        "",
        f"| switch | loss, {steps // 2 * BATCH:,} images | loss, {steps * BATCH:,} | FID, {steps // 2 * BATCH:,} "
        f"| FID, {steps * BATCH:,} | class accuracy, {steps * BATCH:,} | time |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = [("loss_half", 4), ("loss_end", 4), ("fid_half", 2), ("fid_end", 2), ("accuracy_end", 3)]
    for name, seeds in by_name.items():
        common = sorted(seeds.keys() & plain.keys())
        if name == "plain":
            cells = [interval([seeds[s][key] for s in common], digits) for key, digits in columns]
            ratio = 1.0
        else:
            cells = [
                interval([seeds[s][key] - plain[s][key] for s in common], digits, sign=True)
                for key, digits in columns
            ]
            ratio = statistics.median(seeds[s]["cpu_seconds"] / plain[s]["cpu_seconds"] for s in common)
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join([*lines, ""])


def interval(values: list[float], digits: int, sign: bool = False) -> str:
    """Mean ± half of the 95 % interval, bold where a change is larger than that."""
    mean = statistics.fmean(values)
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    if len(values) < 2:
        return text
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    text += f" ± {half:.{digits}f}"
    return f"**{text}**" if sign and abs(mean) > half else text


if __name__ == "__main__":
    main()
