"""Health page of a run, health.html: one file with progress, curves and previews, for a browser without a network.

Charts are drawn by matplotlib, as SVG: it is a dependency already, needs no script in the page, and prints. The
only script loads the page again while the run is alive.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from dinit.files import write_atomically
from dinit.progress import duration
from dinit.training.run.charts import Line, Points, chart, smoothed
from dinit.training.run.health import bin_names
from dinit.training.run.look import SCRIPT, STYLE
from dinit.training.run.record import Entry, RunRecord

_EVERY = 30.0  # seconds between two pages, at least
_SHARE = 0.01  # of the run's time, at most, in which pages are drawn
_PREVIEWS = 12  # previews on the page: the newest, and eleven spread over the others
_EMBEDDED = 4_000_000  # bytes of previews inside the page; more are shown from their files
_ROWS = 12  # of the table of numbers


class HealthPage:
    """The page of a run that is being trained, written at intervals.

    Args:
        folder: Of the run.
        name: Of its recipe.
        clock: Seconds, monotonic.
    """

    def __init__(self, folder: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._name, self._clock = folder, name, clock
        self._next = clock() + _EVERY

    def write(self, now: bool = False) -> None:
        """Writes the page, unless the last is younger than half a minute or than a hundred times what it took.

        Args:
            now: Write it in any case: at the beginning and at the end.
        """
        began = self._clock()
        if began < self._next and not now:
            return
        write_page(self._folder, self._name)
        ended = self._clock()
        self._next = ended + max(_EVERY, (ended - began) / _SHARE)


def write_page(folder: Path, name: str) -> None:
    """Writes folder/health.html from what the run has written into its folder so far.

    Args:
        folder: Of the run: recipe.yaml, health.jsonl, events.jsonl, evaluations.jsonl and samples/ are read, where
            they exist.
        name: Of its recipe.
    """
    write_atomically(folder / "health.html", html_page(RunRecord(folder, name)))


def html_page(run: RunRecord) -> str:
    """The page of a run, as HTML."""
    title = f"{run.name}: step {run.step:,}" + (f" of {run.total:,}" if run.total else "")
    alive, charts = run.state == "running", list(_charts(run))
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        '<noscript><meta http-equiv="refresh" content="60"></noscript>' if alive else "",
        "</head><body>",
    ]
    body = [
        _header(run),
        _problems(run),
        '<main class="top">',
        _newest(run),
        f'<section class="charts">{"".join(charts[:2])}</section>',
        "</main>",
        f'<section class="charts more">{"".join(charts[2:])}</section>' if charts[2:] else "",
        _earlier(run),
        _scores(run),
        _numbers(run),
        f"<footer>written {_clock(run.now)} from health.jsonl in {escape(run.folder.resolve().name)}</footer>",
        _script(run) if alive else "",
        "</body></html>",
    ]
    return "\n".join(part for part in [*head, *body] if part) + "\n"


def _clock(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M} UTC</time>'


def _header(run: RunRecord) -> str:
    words = {
        "running": "running",
        "finished": "finished",
        "stopped": "stopped; the same command continues it",
        "diverged": "diverged",
        "failed": "ended by an error",
        "unknown": "end not recorded",
    }
    share = run.step / run.total if run.total else 0.0
    count = f"step {run.step:,}" + (f" of {run.total:,} ({100 * share:.0f} %)" if run.total else "")
    bar = f'<progress max="1" value="{share:.4f}" aria-label="{count}"></progress>' if run.total else ""
    tiles = "".join(f"<div><dt>{label}</dt><dd>{escape(value)}</dd></div>" for label, value in _tiles(run) if value)
    return (
        f'<header><h1>{escape(run.name)} <span class="state {escape(run.state)}">'
        f"{words.get(run.state, escape(run.state))}</span></h1>"
        f'<p class="about">{escape(_about(run))}</p>'
        f'<p class="count">{count}</p>{bar}<dl class="tiles">{tiles}</dl></header>'
    )


def _tiles(run: RunRecord) -> Iterator[tuple[str, str]]:
    if run.state == "running":
        left = run.seconds_left
        yield "time left", "not known yet" if left is None else duration(left)
    yield "elapsed", "" if run.elapsed is None else duration(run.elapsed)
    rate = run.images_per_second
    yield "images/s", "" if rate is None else f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}"
    loss = smoothed(run.points("loss"))
    yield "loss, smoothed", _figure(loss[-1][1]) if loss else ""
    if run.session.get("images"):
        yield "epochs", f"{run.step * run.batch / run.session['images']:,.1f}"
    yield "skipped steps", f"{run.reports[-1].get('skipped_steps', 0):,}" if run.reports else ""


def _about(run: RunRecord) -> str:
    """Data, network and device in one line."""
    now = run.session
    parts = []
    if now:
        channels, height, width = now["shape"]
        several = f"{now['processes']} × " if now.get("processes", 1) > 1 else ""
        parts = [
            f"{now['images']:,} images of {now['data']}, {width}×{height}×{channels}",
            f"{now['classes']:,} classes" if now["classes"] else "no classes",
            f"{now['backbone']}, {_millions(now['parameters'])} parameters",
            f"{several}{now['device']}, {now['precision']}",
        ]
    else:
        named = [run.setting(section, "name") for section in ("data", "backbone")]
        parts = [str(one) for one in named if one]
    if run.batch:
        parts.append(f"{run.batch:,} images a step")
    return " · ".join(parts)


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} million" if count >= 1e6 else f"{count:,}"


def _figure(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _problems(run: RunRecord) -> str:
    """Why the run ended, skipped steps and warnings."""
    lines = []
    if run.state in ("diverged", "failed") and run.end.get("reason"):
        lines.append(str(run.end["reason"]))
    skipped = max((entry.get("skipped_steps", 0) for entry in run.reports), default=0)
    if skipped:
        noun = "step was" if skipped == 1 else "steps were"
        lines.append(
            f"{skipped:,} {noun} skipped, because the gradient was not finite; skipped.jsonl has their images"
        )
    warned = [event for event in run.events if "warning" in event]
    lines += [str(event["warning"]) for event in warned[-5:]]
    if len(warned) > 5:
        lines.append(f"{len(warned) - 5:,} earlier warnings are in events.jsonl")
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="problems" role="alert">{items}</ul>' if items else ""


def _step_of(path: Path) -> str:
    """'step 1,000' of step-00001000-ema.png; other names as they are."""
    kind, _, rest = path.stem.partition("-")
    number, _, weights = rest.partition("-")
    if kind != "step" or not number.isdigit():
        return path.stem
    return f"step {int(number):,}" + (", averaged weights" if weights == "ema" else "")


def _embedded(run: RunRecord) -> bool:
    """Whether the previews are inside the page, so that it can be sent alone."""
    return sum(path.stat().st_size for path in _spread(run.previews)) <= _EMBEDDED


def _image(path: Path, inside: bool) -> str:
    source = f"samples/{escape(path.name)}"
    if inside:
        source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<img src="{source}" alt="previews of {_step_of(path)}">'


def _newest(run: RunRecord) -> str:
    if not run.previews:
        every = run.setting("training", "sample_every")
        reason = (
            "This run draws none, because training.sample_every is 0." if every == 0 else "None has been drawn yet."
        )
        return f'<section class="newest"><h2>Previews</h2><p class="note">{reason}</p></section>'
    path = run.previews[0]
    return (
        f'<section class="newest"><h2>Newest previews <small>{escape(_step_of(path))}</small></h2>'
        f'<a href="samples/{escape(path.name)}">{_image(path, _embedded(run))}</a>'
        '<p class="note">Every preview is drawn from the same noise. <b>Healthy:</b> noise at first, then blurs of '
        "the right colours, then shapes, then details. They go on sharpening when the loss hardly falls any more, "
        "so judge by them. <b>Not healthy:</b> grey or saturated squares, noise that stays, the same picture in "
        "every row.</p></section>"
    )


def _spread(paths: Sequence[Path]) -> list[Path]:
    """At most twelve, in their order, the first and the last among them."""
    if len(paths) <= _PREVIEWS:
        return list(paths)
    return [paths[round(k * (len(paths) - 1) / (_PREVIEWS - 1))] for k in range(_PREVIEWS)]


def _earlier(run: RunRecord) -> str:
    paths = _spread(run.previews)[1:]
    if not paths:
        return ""
    inside = _embedded(run)
    figures = "".join(
        f'<figure><a href="samples/{escape(path.name)}">{_image(path, inside)}</a>'
        f"<figcaption>{escape(_step_of(path))}</figcaption></figure>"
        for path in paths
    )
    return f'<section><h2>Earlier previews</h2><div class="earlier">{figures}</div></section>'


@dataclass(frozen=True)
class _Figure:
    """A chart of the page. note: HTML beneath it. linear: as of `chart`."""

    name: str
    title: str
    lines: Sequence[Line]
    label: str
    note: str
    linear: bool = False

    def html(self, resumed: Sequence[int]) -> str:
        marks = [step for step in resumed if any(line.points and line.points[0][0] <= step for line in self.lines)]
        keys = "".join(
            f'<span><i class="{"faint" if line.faint else "dashed" if line.dashed else ""}" '
            f'style="--key:var(--line-{line.colour})"></i>{escape(line.text)}</span>'
            for line in self.lines
            if line.text
        )
        keys += '<span><i class="mark"></i>resumed</span>' if marks else ""
        svg = chart(self.name, self.lines, self.label, f"{self.title} over the steps", marks, self.linear)
        return (
            f'<figure class="chart"><h2>{self.title}</h2><div class="legend">{keys}</div>{svg}'
            f'<figcaption class="note">{self.note}</figcaption></figure>'
        )


def _charts(run: RunRecord) -> list[str]:
    figures = [*_losses(run), *_optimiser(run), *_pixels(run)]
    return [figure.html(run.resumed) for figure in figures if any(line.points for line in figure.lines)]


def _raw_and_smoothed(points: Points) -> list[Line]:
    return [
        Line(points, "mean since the report before", width=1.0, faint=True),
        Line(smoothed(points), "smoothed", width=2.2),
    ]


def _losses(run: RunRecord) -> Iterator[_Figure]:
    yield _Figure(
        "loss",
        "Loss",
        _raw_and_smoothed(run.points("loss")),
        "training loss",
        "<b>Healthy:</b> falls fast in the first few percent of the steps, then slowly to a plateau above zero, "
        "because the noise itself cannot be predicted. <b>Not healthy:</b> it rises over many reports, or jumps "
        "and does not come back: lower optimizer.lr, or lengthen the warm-up.",
    )
    lines = []
    for k, name in enumerate(bin_names()):
        found = [(entry["step"], entry["loss_by_noise"][k]) for entry in run.reports if entry.get("loss_by_noise")]
        points = [(step, value) for step, value in found if value is not None]
        if points:
            lines.append(Line(smoothed(points), name.replace("-", "−"), k + 1))
    yield _Figure(
        "noise",
        "Loss by noise level",
        lines,
        "training loss, smoothed",
        "One line for each range of the log signal-to-noise ratio, from noisy to clean. <b>Healthy:</b> the middle "
        "ranges, which hold most samples, fall together and level off; the outer ones have few samples and wobble. "
        "<b>Not healthy:</b> a middle range rises while the others fall.",
    )


def _optimiser(run: RunRecord) -> Iterator[_Figure]:
    clip = run.setting("training", "clip_norm")
    yield _Figure(
        "norm",
        "Gradient norm",
        _raw_and_smoothed(run.points("gradient_norm")),
        "L2 norm" + (f", before it is clipped at {clip:g}" if isinstance(clip, int | float) else ""),
        "<b>Healthy:</b> falls at first, then changes slowly. <b>Not healthy:</b> spikes of ten times its level, "
        "or a steady rise: lower optimizer.lr, or lengthen the warm-up.",
    )
    kind, warmup = run.setting("schedule", "kind"), run.setting("schedule", "warmup_steps")
    planned = f"{escape(str(kind))}, {warmup:,} steps of warm-up" if kind and isinstance(warmup, int) else ""
    yield _Figure(
        "rate",
        "Learning rate",
        [Line(run.points("lr"), planned, width=2.2)],
        "learning rate",
        "As the recipe's sections optimizer and schedule have it: nothing here depends on how training goes.",
        linear=True,
    )


def _pixels(run: RunRecord) -> Iterator[_Figure]:
    sampled = [entry for entry in run.entries if "samples" in entry]
    lines = []
    for colour, what, word in ((0, "std", "standard deviation"), (8, "mean", "mean")):
        for whose in ("samples", "data"):
            points = [(e["step"], e[whose][what]) for e in sampled if e[whose][what] is not None]
            named = f"{word} of {'previews' if whose == 'samples' else whose}"
            lines.append(Line(points, named, colour, 2.0, dashed=whose == "data"))
    yield _Figure(
        "pixels",
        "Pixels of previews and of the data",
        lines,
        "pixel value, in −1 … 1",
        "<b>Healthy:</b> the solid lines come near the dashed ones; guidance raises the deviation a little. "
        "<b>Not healthy:</b> a deviation that stays far above (noise is left) or below (washed out).",
        linear=True,
    )


def _scores(run: RunRecord) -> str:
    """The last evaluations during training."""
    path = run.folder / "evaluations.jsonl"
    lines: list[Entry] = []
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][-_ROWS:]
    if not lines:
        return ""
    names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    rows = [
        [f"{line['step']:,}", f"{line['samples']:,}", *(_figure(line["metrics"].get(name)) for name in names)]
        for line in reversed(lines)
    ]
    head = ["step", "images", *(name.replace("_", " ") for name in names)]
    return f"<section><h2>Scores during training</h2>{_table(head, rows)}</section>"


def _numbers(run: RunRecord) -> str:
    """The last reports as a table."""
    if not run.reports:
        return ""
    keys = {
        "step": "step",
        "loss": "loss",
        "gradient_norm": "gradient norm",
        "lr": "learning rate",
        "images_per_second": "images/s",
        "skipped_steps": "skipped",
    }
    rows = [
        [
            f"{entry[key]:,}" if key in ("step", "skipped_steps") else _figure(entry.get(key))
            for key in keys
            if key in entry
        ]
        for entry in reversed(run.reports[-_ROWS:])
    ]
    table = _table(keys.values(), rows)
    return f'<details id="numbers"><summary>The last reports in numbers</summary>{table}</details>'


def _table(head: Any, rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(name)}</th>" for name in head)
    rest = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{first}</tr></thead><tbody>{rest}</tbody></table></div>'


def _script(run: RunRecord) -> str:
    """Loads the page again while the run writes it; a notice appears where nothing is written any more."""
    times = [entry["seconds"] for entry in run.reports[-3:] if "seconds" in entry]
    between = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    late = max(300.0, 5 * (between + _EVERY))
    return f'<p id="late" hidden></p><script data-written="{run.now:.0f}" data-late="{late:.0f}">{SCRIPT}</script>'
