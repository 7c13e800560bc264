"""Diversity of guided glyphs by their known factors, with CADS and without.

Entropy of hue, background, font, rotation and scale within classes, each as a share of the greatest (1: as even as
the data), their mean, and class accuracy by the glyphs classifier; the same seeds and classes in every row.

Run: python benchmarks/diversity.py [PIPELINE] [--scale S] [--per-class N] [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dinit import Pipeline
from dinit.data.pixels import to_uint8
from dinit.evaluation.features.glyphs_classifier import load_glyphs_classifier
from dinit.evaluation.metrics.factors import diversity
from dinit.samplers.guidance import Guidance
from dinit.samplers.guidance.apg import APG
from dinit.samplers.guidance.cads import CADS
from dinit.samplers.guidance.cfg import CFG

RESULTS = Path(__file__).parent / "results"
SHOWN = "AGR8"  # classes of the picture


def rows(scale: float) -> dict[str, list[Guidance]]:
    """CADS stands inside CFG: both of its predictions are of the noised condition, but for the null class."""
    annealed = {
        f"CFG {scale:g} and CADS({tau1}, {tau2}, {noise}, {mixing:g})": [
            CADS(tau1, tau2, noise, mixing),
            CFG(scale),
        ]
        for tau1, tau2, noise, mixing in (
            (0.6, 0.9, 0.25, 1.0),
            (0.6, 0.9, 0.25, 0.0),
            (0.3, 0.9, 0.1, 0.0),
        )
    }
    late = CFG(scale, low=-3.0)
    return {
        "no guidance": [],
        f"CFG {scale:g}": [CFG(scale)],
        **annealed,
        f"CFG {scale:g} from log-SNR -3 on": [late],
        f"CFG {scale:g} from log-SNR -3 on and CADS(0.6, 0.9, 0.25, 0)": [CADS(0.6, 0.9, 0.25, 0.0), late],
        f"APG {scale:g} from log-SNR -2 on": [APG(scale, low=-2.0)],
        f"APG {scale:g} from log-SNR -3 on and CADS(0.6, 0.9, 0.25, 0)": [
            CADS(0.6, 0.9, 0.25, 0.0),
            APG(scale, low=-3.0),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", default="glyphs-32")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "diversity.md")
    given = parser.parse_args()
    pipe = Pipeline.from_pretrained(given.pipeline)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(36).repeat_interleave(given.per_class)
    lines, pictures, plain = [], {}, None
    for name, guidance in rows(given.scale).items():
        images = torch.cat(
            [
                pipe(part, seed=0, start_index=int(start), guidance=guidance, output_type="pt").images
                for start, part in zip(range(0, len(labels), 360), labels.split(360), strict=True)
            ]
        )
        images = to_uint8(images * 2 - 1)
        found = {key: spread.entropy for key, spread in diversity(images, labels).items()}
        with torch.no_grad():
            predicted = load_glyphs_classifier()(images / 127.5 - 1).argmax(1)
        accuracy = float((predicted == labels).double().mean())
        mean = sum(found.values()) / len(found)
        if not lines:
            lines = [f"| | {' | '.join(found)} | mean | class accuracy |", "|---|" + "---|" * (len(found) + 2)]
        change = f" ({mean / plain - 1:+.0%})" if plain else ""
        plain = mean if name.startswith("CFG") and plain is None else plain
        cells = " | ".join(f"{value:.3f}" for value in found.values())
        lines.append(f"| {name} | {cells} | {mean:.3f}{change} | {accuracy:.3f} |")
        print(lines[-1], flush=True)
        pictures[name] = images
    text = ["# Diversity of guided glyphs", "", *(__doc__ or "").strip().splitlines()[2:4], ""]
    lines += [
        "",
        f"{given.pipeline}, {given.per_class} images of each class a row. CADS(tau1, tau2, scale, mixing).",
    ]
    given.out.write_text("\n".join([*text, *lines, ""]))
    sheet(pictures, labels).save(given.out.with_suffix(".png"))


def sheet(pictures: dict[str, Tensor], labels: Tensor, columns: int = 8) -> Image.Image:
    """Each row of the table as a strip: `columns` images of each shown class, twice their size."""
    side, gap = 64, 16
    made = Image.new("RGB", (len(SHOWN) * columns * side // 2 + 8, len(pictures) * (side // 2 + gap)), "white")
    draw = ImageDraw.Draw(made)
    for row, (name, images) in enumerate(pictures.items()):
        top = row * (side // 2 + gap)
        draw.text((4, top + 2), name, fill="black")
        for place, character in enumerate(SHOWN):
            label = int(character) if character.isdigit() else 10 + ord(character) - ord("A")
            for k, index in enumerate(torch.nonzero(labels == label)[:columns, 0].tolist()):
                tile = Image.fromarray(images[index].permute(1, 2, 0).numpy())
                made.paste(tile, (4 + (place * columns + k) * side // 2, top + gap))
    return made.resize((made.width * 2, made.height * 2), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
