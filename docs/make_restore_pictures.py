"""Pictures of docs/restore.md and docs/edit.md, of shipped pipelines and with fixed seeds.

`python docs/make_restore_pictures.py` writes all of them in docs/images, in two minutes on one core; with names,
such as `restore-glyphs`, these alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dinit import Pipeline
from dinit.data import DATASETS
from dinit.data.glyphs import Glyphs
from dinit.inverse import EDITING_METHODS, OPERATORS, Measurement
from dinit.pipelines.outputs.restoration import as_picture
from dinit.pipelines.outputs.sheets import enlargement, to_tiles

IMAGES = Path(__file__).parent / "images"
COLOURS = 192  # of a file: enough for these pictures, at a third of the size
TILE, GAP, LINE, LEFT = 48, 4, 16, 128  # pixels
LETTERS = ("K", "R")
EDITS = {  # at about 100 evaluations; benchmarks/editing.py has the same
    "ddim": {"steps": 50},
    "edict": {"steps": 25},
    "bdia": {"steps": 50},
    "direct": {"steps": 33},
    "infedit": {"steps": 50},
    "spdinv": {"steps": 15, "method": {"name": "spdinv", "iterations": 5}},
    "null-embedding": {"steps": 16, "method": {"name": "null-embedding", "iterations": 3}},
    "condition-embedding": {"steps": 16, "method": {"name": "condition-embedding", "iterations": 4}},
    "sdedit": {"steps": 100},
}


def sheet(rows: Sequence[tuple[str, Tensor]], heads: dict[int, str]) -> Image.Image:
    """Rows of pictures under the heads of some columns.

    Args:
        rows: The name and the pictures (N, C, H, W) in [-1, 1] of each.
        heads: Text by the column that it begins at.
    """
    scale = enlargement(rows[0][1].shape[-1], TILE)
    tile = rows[0][1].shape[-1] * scale
    font = ImageFont.load_default(12)
    columns = max(len(images) for _, images in rows)
    top = GAP + LINE * bool(heads)
    size = (LEFT + columns * (tile + GAP), top + len(rows) * (tile + GAP))
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    for column, text in heads.items():
        pen.text((LEFT + column * (tile + GAP), GAP), text, fill="black", font=font)
    for row, (name, images) in enumerate(rows):
        y = top + row * (tile + GAP)
        pen.text((GAP, y + (tile - LINE) // 2), name, fill="black", font=font)
        for column, one in enumerate(to_tiles(images.float(), scale)):
            drawn.paste(one, (LEFT + column * (tile + GAP), y))
    return drawn


@cache
def pipeline(name: str) -> Pipeline:
    made = Pipeline.from_pretrained(name)
    made.set_progress_bar_config(disable=True)
    return made


def glyphs(character: str, count: int) -> Tensor:
    """The first images of a character in the test split, (count, 3, 32, 32) in [-1, 1]."""
    data = Glyphs("test", seed=1)
    label = data.class_names.index(character)
    of_character = (i for i in range(len(data)) if int(data.factors(i).label) == label)
    return torch.stack([data[next(of_character)][0] for _ in range(count)])


def digit(label: int) -> Tensor:
    """The first image of a digit that was not trained on, (1, 1, 8, 8) in [-1, 1]."""
    data = DATASETS.create({"name": "digits", "split": "test"})
    return next(data[i][0] for i in range(len(data)) if int(data.labels[i]) == label)[None]


def measured(truth: Tensor, operator: str, noise_std: float) -> Measurement:
    made = OPERATORS.create(operator)
    y = made.apply(truth)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    return Measurement(made, made.clean(y + noise_std * noise, tuple(truth.shape[1:])), noise_std)


def restored(pipe: Pipeline, truth: Tensor, label: int | str, seen: Measurement, **call: Any) -> Tensor:
    """Measurement, truth, six restorations, their mean and their standard deviation, white at its largest."""
    images = pipe([label] * 6, measurement=seen, guidance=[], seed=1, output_type="raw", **call).images.clamp(-1, 1)
    deviation = images.std(0, unbiased=False, keepdim=True).mean(1, keepdim=True).expand(1, *images.shape[1:])
    known = as_picture(seen, tuple(truth.shape[1:]))
    return torch.cat([known, truth, images, images.mean(0, keepdim=True), 2 * deviation / deviation.max() - 1])


HEADS = {0: "given", 1: "truth", 2: "restored", 8: "mean", 9: "std"}


def restore_digits() -> Image.Image:
    pipe, truth = pipeline("digits-dico"), digit(3)
    tasks = {
        "inpainting": ("mask:box=2,2,6,6", 0.0),
        "half the size": ("downscale:factor=2", 0.05),
        "quarter of the size": ("downscale:factor=4", 0.05),
        "deblurring": ("blur:std=1", 0.05),
        "16 projections": ("random-projection:rows=16", 0.05),
    }
    return sheet([(name, restored(pipe, truth, 3, measured(truth, *one))) for name, one in tasks.items()], HEADS)


def restore_glyphs() -> Image.Image:
    pipe, truth = pipeline("glyphs-32"), glyphs("K", 2)[1:]
    tasks = {
        "inpainting": ("mask:box=8,8,24,24", 0.0),
        "half the size": ("downscale:factor=2", 0.05),
        "quarter of the size": ("downscale:factor=4", 0.05),
        "deblurring": ("blur:std=2", 0.05),
        "colourising": ("grey", 0.0),
    }
    return sheet([(name, restored(pipe, truth, "K", measured(truth, *one))) for name, one in tasks.items()], HEADS)


def restore_methods() -> Image.Image:
    pipe, truth = pipeline("glyphs-32"), glyphs("K", 2)[1:]
    seen = measured(truth, "downscale:factor=4", 0.05)
    methods = ["mmps", "pigdm", "tmpd", "ddnm+", "diffpir", "dps", "ddrm", "daps", "red-diff", "repaint", "tds"]
    return sheet([(name, restored(pipe, truth, "K", seen, method=name)) for name in methods], HEADS)


def edited(pipe: Pipeline, images: Tensor, source: int | str, target: int | str) -> Image.Image:
    """The images and their edits by every method, under guidance of scale 2, a row each."""
    rows = [("given", images)]
    for name in EDITING_METHODS:
        options = {"method": name, "guidance": 2.0, **EDITS[name]}
        rows.append((name, pipe.edit(images, source=source, target=target, output_type="raw", **options).images))
    return sheet(rows, {})


def edit_glyphs() -> Image.Image:
    return edited(pipeline("glyphs-32"), glyphs(LETTERS[0], 8), *LETTERS)


def edit_digits() -> Image.Image:
    data = DATASETS.create({"name": "digits", "split": "test"})
    threes = [data[i][0] for i in range(len(data)) if int(data.labels[i]) == 3][:8]
    return edited(pipeline("digits-dico"), torch.stack(threes), 3, 8)


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "restore-digits": restore_digits,
    "restore-glyphs": restore_glyphs,
    "restore-methods": restore_methods,
    "edit-glyphs": edit_glyphs,
    "edit-digits": edit_digits,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    for name in parser.parse_args().names or PICTURES:
        picture = PICTURES[name]()
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
