"""Editing of glyphs, whose factors are known: the letter is to change, and everything else to stay.

Every editing method turns glyphs of one letter into another with `glyphs-32`. The factor reader of the shipped
classifier reads letter, font, hue, rotation and scale of the edited images; a factor has stayed where it is read as
the given image's own is read. Run: python benchmarks/editing.py; it prints the table and writes results/editing.md,
and with --picture FILE a picture of the first images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinit import Pipeline
from dinit.data.glyphs import Glyphs
from dinit.evaluation.metrics.factors import read_factors
from dinit.inverse import EDITING_METHODS

OUTPUT = Path(__file__).parent / "results" / "editing.md"
# Steps at about 100 evaluations: a step costs two, with the inversion's, EDICT's four, direct's three, fits more.
STEPS = {
    "edict": 25,
    "direct": 33,
    "sdedit": 100,
    "spdinv": 15,
    "null-embedding": 16,
    "condition-embedding": 16,
}
OPTIONS: dict[str, dict[str, int]] = {
    "spdinv": {"iterations": 5},
    "null-embedding": {"iterations": 3},
    "condition-embedding": {"iterations": 4},
}
HEAD = (
    "method, steps, evaluations, reads as target, same font, hue (degrees), rotation (degrees), scale, "
    "reconstruction"
)


def angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of hues in degrees."""
    apart = np.abs(one - other) % 360
    return np.minimum(apart, 360 - apart)


def given(count: int) -> tuple[Tensor, list[int], list[int]]:
    """Glyphs of the test split, in [-1, 1], their letters, and the letters that they are to be."""
    data = Glyphs("test", count=count, seed=1)
    images = torch.stack([data[i][0] for i in range(count)])
    source = [int(data.factors(i).label) for i in range(count)]
    target = [(label + 7) % len(data.class_names) for label in source]
    return images, source, target


def to_bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="images of each method (default 64)")
    parser.add_argument("--scale", type=float, default=2.0, help="guidance scale of the edited image (default 2)")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the first eight images")
    arguments = parser.parse_args()
    pipe = Pipeline.from_pretrained("glyphs-32")
    images, source, target = given(arguments.count)
    before = read_factors(to_bytes(images))
    lines, rows = [], [images[:8]]
    for name in EDITING_METHODS:
        edited = pipe.edit(
            images,
            source=source,
            target=target,
            method={"name": name, **OPTIONS.get(name, {})},
            steps=STEPS.get(name, 50),
            guidance=arguments.scale,
            output_type="raw",
        )
        after = read_factors(to_bytes(edited.images))
        cells = [
            f"{(after.label == np.array(target)).mean():.2f}",
            f"{(after.font == before.font).mean():.2f}",
            f"{np.median(angle(after.hue, before.hue)):.1f}",
            f"{np.median(np.abs(after.rotation - before.rotation)):.2f}",
            f"{np.median(np.abs(after.scale - before.scale)):.4f}",
            f"{float((edited.reconstructions - images).square().mean().sqrt()):.4f}",
        ]
        lines.append(f"| {name} | {STEPS.get(name, 50)} | {edited.nfe} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        rows.append(edited.images[:8])
    if arguments.picture is not None:
        grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
        Image.fromarray(to_bytes(grid).permute(1, 2, 0).numpy()).resize((8 * 64, 64 * len(rows))).save(
            arguments.picture
        )
    table = "\n".join(["| " + HEAD.replace(", ", " | ") + " |", "|" + " --- |" * len(HEAD.split(", ")), *lines])
    OUTPUT.write_text(
        f"""# Editing of glyphs: the letter changes, the rest is to stay

`python benchmarks/editing.py --count {arguments.count} --scale {arguments.scale:g}`, with `glyphs-32`. Each of
{arguments.count} glyphs of the test split becomes the letter seven further on, at about 100 evaluations an image.
Read by the shipped classifier: the share of images that read as the wanted letter, the share whose font reads as
before, and the median change of the ink's hue, the rotation and the scale. Reconstruction is the root mean square
error of the image as the method makes it again of its own letter, in units of [-1, 1].

{table}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
