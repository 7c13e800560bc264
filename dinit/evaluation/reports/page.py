"""HTML page of a report, in one file: tables, sample grids and plots."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from pathlib import Path

from dinit.evaluation.reports import plots
from dinit.evaluation.reports.report import Report, cell
from dinit.files import write_atomically

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .9rem;border-bottom:1px solid #ddd}"
    "td+td,th+th{text-align:right}th{text-align:left}.warn{background:#fff3d6;padding:.5rem .8rem;margin:.4rem 0}"
    "img{max-width:100%;image-rendering:pixelated}pre{background:#f6f6f6;padding:.6rem;overflow-x:auto}"
    "h2{margin-top:2rem}td.left{text-align:left}"
)


def html_page(report: Report) -> str:
    """Page of a report as HTML. Pictures are those of the report's `evidence`; one read from JSON has none."""
    title = f"{escape(report.model.name)} against {escape(report.protocol.reference)}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>protocol <b>{escape(report.protocol.name)}</b>; do not compare with scores of other protocols</p>",
        *(f'<p class="warn">warning: {escape(line)}</p>' for line in report.warnings),
        _figures(report),
        *(f"<p>{escape(line)}</p>" for line in report.notes),
        *_pictures(report),
        "<h2>Protocol</h2>",
        _protocol(report),
    ]
    if report.made_by:
        made_by = json.dumps(dict(report.made_by), indent=1, ensure_ascii=False)
        parts += ["<h2>Made by</h2>", f"<pre>{escape(made_by)}</pre>"]
    return "\n".join([*parts, "</body></html>", ""])


def write_page(report: Report, path: str | Path) -> None:
    """Write the HTML page of a report, whole or not at all. OSError where the file cannot be written.

    Args:
        report: of `evaluate`.
        path: the file, .html.
    """
    write_atomically(Path(path), html_page(report))


def _figures(report: Report) -> str:
    head = "".join(f"<th>{escape(row.name)}</th>" for row in report.rows)
    lines = [f"<tr><th></th>{head}</tr>"]
    lines.append(_line("images", [str(row.count) for row in report.rows]))
    for key in report.figures():
        label = f"{key.replace('_', ' ')} ({report.protocol.name})"
        lines.append(_line(label, [cell(row.metrics, key) for row in report.rows]))
    return f"<table>{''.join(lines)}</table>"


def _protocol(report: Report) -> str:
    rows = (
        f'<tr><td>{escape(name.replace("_", " "))}</td><td class="left">{escape(str(value))}</td></tr>'
        for name, value in asdict(report.protocol).items()
        if value != ""
    )
    return f"<table>{''.join(rows)}</table>"


def _line(label: str, values: list[str]) -> str:
    return f"<tr><td>{escape(label)}</td>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"


def _pictures(report: Report) -> Iterator[str]:
    evidence = report.evidence
    for key, title in (("samples", "Samples"), ("reference", "Reference")):
        if evidence.get(key) is not None:
            yield _shown(title, plots.grid(evidence[key]))
    if "nearest" in evidence:
        ours, theirs, distances = evidence["nearest"]
        interval = f"root mean square {distances.min():.1f} to {distances.max():.1f} bytes"
        title = f"Samples nearest to a training image, above it ({interval})"
        yield _shown(title, plots.pairs(ours, theirs))
    for key, points in report.curves.items():
        title = f"{key.upper()} against the number of samples: {points['infinity']:.4g} at N = ∞"
        yield _shown(title, plots.curve(points))
    names = evidence.get("class names", ())
    if "top-1 histograms" in evidence:
        ours, theirs = evidence["top-1 histograms"]
        yield _shown("Likeliest classes", plots.histograms(ours, theirs, names))
    if "class distances" in evidence:
        found = {names[k] if k < len(names) else str(k): value for k, value in evidence["class distances"].items()}
        worst = dict(sorted(found.items(), key=lambda item: -item[1])[:40])
        yield _shown("Fréchet distance within classes, the largest first", plots.bars(worst, "Fréchet distance"))
    if "factors" in evidence:
        spreads = evidence["factors"]
        entropy = {name: spread.entropy for name, spread in spreads.items()}
        title = "Entropy of factors within classes (1 is uniform; ticks: real images)"
        real = (
            {name: report.real.metrics.get(f"{name}_entropy", 0) for name in spreads} if report.has_real else None
        )
        yield _shown(title, plots.bars(entropy, "share of log bins", real))


def _shown(title: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{data}">'
