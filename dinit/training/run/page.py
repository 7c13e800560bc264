"""Health page of a run, health.html: its curves and its previews, without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinit.files import write_atomically
from dinit.training.run.health import bin_names, read_lines

_WIDTH, _HEIGHT, _MARGIN = 560, 200, 44  # pixels of a plot
_COLOURS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#d0b000")  # noisy first
_POINTS = 500  # of a curve, at most
_PREVIEWS = 12  # pictures on the page: the first, the last, and those spread between

Curve = list[tuple[float, float]]


def write_page(folder: Path, name: str) -> None:
    """Writes folder/health.html from folder/health.jsonl and folder/samples/."""
    entries = read_lines(folder / "health.jsonl")
    reports = [entry for entry in entries if "loss" in entry]
    sampled = [entry for entry in entries if "samples" in entry]
    parts = [
        _plot("loss", {"loss": _curve(reports, "loss")}, log=True),
        _plot("gradient norm", {"mean": _curve(reports, "gradient_norm")}, log=True),
        _plot("loss by log-SNR", _by_noise(reports), log=True),
        _plot("learning rate", {"rate": _curve(reports, "lr")}),
    ]
    if sampled:
        parts.append(_plot("pixels of samples and of data: mean, standard deviation", _statistics(sampled)))
    last = max((entry["step"] for entry in entries), default=0)
    pictures = "\n".join(_picture(path) for path in _spread(sorted((folder / "samples").glob("*.png"))))
    title = html.escape(f"{name}: step {last}")
    style = "body{font:14px sans-serif;margin:24px}figure{display:inline-block;margin:8px}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    body = f"<h1>{title}</h1>\n{''.join(parts)}\n<h2>previews, always from the same noise</h2>\n{pictures}</html>\n"
    write_atomically(folder / "health.html", head + body)


def _curve(entries: Sequence[dict[str, Any]], key: str) -> Curve:
    return [(entry["step"], entry[key]) for entry in _thinned(entries) if entry.get(key) is not None]


def _thinned(entries: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """At most 500 entries, the last among them."""
    stride = -(-len(entries) // _POINTS) if entries else 1
    return entries[(len(entries) - 1) % stride :: stride]


def _by_noise(reports: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for k, name in enumerate(bin_names()):
        points = [(e["step"], e["loss_by_noise"][k]) for e in _thinned(reports) if e.get("loss_by_noise")]
        curves[name] = [(step, value) for step, value in points if value is not None]
    return curves


def _statistics(sampled: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    return {
        f"{whose} {what}": [
            (entry["step"], entry[whose][what]) for entry in sampled if entry[whose][what] is not None
        ]
        for what in ("mean", "std")
        for whose in ("samples", "data")
    }


def _plot(title: str, curves: dict[str, Curve], log: bool = False) -> str:
    """One figure of several curves with its own scales. log: values on a logarithmic scale, where all are > 0."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    log = log and all(value > 0 for _, value in points)
    scale = math.log10 if log else float
    steps, values = [step for step, _ in points], [scale(value) for _, value in points]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def place(step: float, value: float) -> str:
        x = _MARGIN + (step - first) / max(last - first, 1) * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - 24 - (scale(value) - low) / max(high - low, 1e-12) * (_HEIGHT - 48)
        return f"{x:.1f},{y:.1f}"

    lines = []
    for k, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[k * len(_COLOURS) // max(len(curves), 1) % len(_COLOURS)]
        path = " ".join(place(step, value) for step, value in curve)
        lines.append(
            f'<polyline fill="none" stroke="{colour}" points="{path}"><title>{html.escape(name)}</title></polyline>'
        )
        if len(curves) > 1:
            lines.append(_text(_WIDTH - _MARGIN + 4, 20 + 14 * k, html.escape(name), colour))
    ends = [10**end if log else end for end in (low, high)]
    marks = [_text(2, _HEIGHT - 24, f"{ends[0]:.3g}"), _text(2, 24, f"{ends[1]:.3g}")]
    marks += [_text(_MARGIN, _HEIGHT - 6, f"step {first:g}"), _text(_WIDTH - 2 * _MARGIN, _HEIGHT - 6, f"{last:g}")]
    width = _WIDTH + (110 if len(curves) > 1 else 0)
    svg = f'<svg width="{width}" height="{_HEIGHT}">{"".join(lines + marks)}</svg>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"


def _text(x: int, y: int, text: str, colour: str = "#444") -> str:
    return f'<text x="{x}" y="{y}" font-size="11" fill="{colour}">{text}</text>'


def _spread(paths: Sequence[Path]) -> list[Path]:
    if len(paths) <= _PREVIEWS:
        return list(paths)
    return [paths[round(k * (len(paths) - 1) / (_PREVIEWS - 1))] for k in range(_PREVIEWS)]


def _picture(path: Path) -> str:
    return (
        f'<figure><figcaption>{html.escape(path.stem)}</figcaption><img src="samples/{path.name}" alt=""></figure>'
    )
