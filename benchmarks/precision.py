"""Error of half precision in sampling: every shipped pipeline in bfloat16 and float16 against float32.

python benchmarks/precision.py              # about a minute; writes benchmarks/results/precision.md

The same seeds, classes, sampler (DDIM) and steps; images decoded to [0, 1] and compared in grey values of 255. Two
forms: autocast keeps float32 weights and rounds the operands of products, 'weights' casts the whole network. State,
times and coefficients of the sampler are float32 or better in all of them.
"""

from __future__ import annotations

import argparse
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from dinit import Pipeline, list_pipelines

RESULT = Path(__file__).parent / "results" / "precision.md"
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def images(name: str, form: str, dtype: torch.dtype | None, count: int, steps: int) -> Tensor:
    """(count, C, H, W) in 0 .. 255, not rounded."""
    pipe = Pipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    context: AbstractContextManager[object] = nullcontext()
    if form == "weights":
        pipe.to(dtype=dtype)
    elif form == "autocast":
        context = torch.autocast("cpu", dtype=dtype)
    labels = [k % max(pipe.num_classes, 1) for k in range(count)]
    with context:
        made = pipe(labels, sampler="ddim", steps=steps, seed=0, output_type="pt").images
    assert made.dtype == torch.float32, "the sampler's state is float32 at any precision of the network"
    return 255 * made


def row(name: str, count: int, steps: int) -> str:
    """A pipeline's line of the table."""
    exact = images(name, "float32", None, count, steps)
    cells = [name]
    for form in ("autocast", "weights"):
        for dtype in HALVES.values():
            error = (images(name, form, dtype, count, steps) - exact).flatten(1)
            rms = error.square().mean(1).sqrt()
            cells.append(f"{float(rms.median()):.2f} ({float(rms.max()):.2f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="images of a pipeline")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the table")
    parser.add_argument("--only", nargs="*", help="pipelines in place of all")
    options = parser.parse_args()
    with torch.no_grad():
        rows = [row(name, options.count, options.steps) for name in options.only or list_pipelines()]
    text = f"""# Half precision against float32

`python benchmarks/precision.py`, torch {torch.__version__}, {platform.machine()} CPU.

DDIM, {options.steps} steps, {options.count} images of each pipeline with its default guidance. RMS difference of
an image from the one that the same seed gives in float32, in grey values of 255: the median over images and, in
brackets, the largest. Rounding to 8 bits alone costs 0.29.

| pipeline | autocast, bfloat16 | autocast, float16 | weights, bfloat16 | weights, float16 |
|---|---|---|---|---|
""" + "\n".join(rows)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
