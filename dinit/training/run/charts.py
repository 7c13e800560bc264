"""Line charts as SVG that takes its colours and its font from the page around it, by matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

MOST = 400  # points of a line
_WIDTH, _HEIGHT = 5.0, 2.9  # inches of 72 units
_ROUND = [1, 2, 2.5, 5, 10]
_LOG_FROM = 3.0  # largest value over smallest from which an axis is logarithmic
# Colours by which the page's variables are found again in the SVG.
_INK, _GRID, _LINES = "#0a0b0c", "#0d0e0f", [f"#01020{k}" for k in range(9)]
_REMOVED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>| font-family: [^;\"]*;?", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        points: (x, y), finite, in the order of x.
        text: What the line is, for the legend.
        colour: Of the page's variables --line-0 … --line-8.
        width: In points.
        dashed: Whether it is broken.
        faint: Whether it is drawn behind the others, half transparent.
    """

    points: Points
    text: str
    colour: int = 0
    width: float = 1.6
    dashed: bool = False
    faint: bool = False


def thinned(points: Points, most: int = MOST) -> Points:
    """At most `most` points, evenly spaced, the last among them."""
    stride = -(-len(points) // most) if points else 1
    return points[(len(points) - 1) % stride :: stride]


def smoothed(points: Points) -> list[tuple[float, float]]:
    """The mean of the neighbours of each point: a thirtieth of all on both sides, and less at the beginning."""
    reach = max(len(points) // 30, min(len(points) // 5, 2))
    values = [value for _, value in points]
    return [
        (x, math.fsum(near) / len(near))
        for k, (x, _) in enumerate(points)
        for near in [values[k - min(k // 2, reach) : k + min(k // 2, reach) + 1]]
    ]


def chart(
    name: str,
    lines: Sequence[Line],
    label: str,
    description: str,
    marks: Sequence[float] = (),
    linear: bool = False,
) -> str:
    """A chart of lines over optimiser steps.

    Args:
        name: Prefix of the ids in the SVG, unique on its page; each line is the element with the id NAME-line-K.
        lines: At least one point among them.
        label: Of the vertical axis, with its unit.
        description: Of the whole, for readers who do not see it.
        marks: Steps at which a dotted vertical line stands.
        linear: Whether the vertical axis is linear in any case; else it is logarithmic where all values are
            positive and differ by a factor of three or more.

    Returns:
        An <svg> element.
    """
    import matplotlib  # slow to import; a figure without pyplot needs no display
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    values = [value for line in lines for _, value in line.points]
    steps = [step for line in lines for step, _ in line.points]
    low, high = min(values), max(values)
    log = not linear and low > 0 and high >= _LOG_FROM * low
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify": False, "font.size": 10.5}
    ):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        axes = figure.add_axes((0.145, 0.165, 0.825, 0.8))
        for k, line in enumerate(lines):
            axes.plot(
                *zip(*thinned(line.points), strict=True) if line.points else ([], []),
                color=_LINES[line.colour],
                linewidth=line.width,
                linestyle="--" if line.dashed else "-",
                marker="o" if len(line.points) == 1 else "",
                markersize=4,
                alpha=0.45 if line.faint else 1.0,
                solid_joinstyle="round",
                gid=f"line-{k}",
            )
        for mark in marks:
            axes.axvline(mark, color=_INK, linewidth=0.9, linestyle=":")
        first, last = min(steps), max(steps)
        axes.set_xlim(min(first, 0), last + (first == last))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
            axes.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
            room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
            axes.set_ylim(0.0 if low >= 0 and (linear or low <= 0.3 * high) else low - room, high + room)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("optimiser steps", color=_INK, labelpad=2)
        axes.set_ylabel(label, color=_INK, labelpad=2)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
        axes.tick_params(color=_GRID, labelcolor=_INK, length=0, pad=4)
        for part in (figure, axes):
            part.patch.set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(stream.getvalue(), name, description)


def _number(value: float) -> str:
    return f"−{-value:.6g}" if value < 0 else f"{value:.6g}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in the interval, where it has as many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low / 1.06 <= tick <= high * 1.06]
        if len(ticks) <= 6:
            break
    else:
        stride = -(-len(ticks) // 6)
        return ticks[::stride]
    if len(ticks) >= 3:
        return ticks
    unit = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(unit * factor for factor in (1, 2, 5, 10) if (high - low) / (unit * factor) <= 4)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1) if k]


def _for_page(svg: str, name: str, description: str) -> str:
    """The <svg> alone, of the page's colours, font and width; ids with the prefix `name`."""
    svg = _REMOVED.sub("", svg[svg.index("<svg") :])
    svg = re.sub(r'\bid="', f'id="{name}-', svg.replace("xlink:href", "href"))
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = svg.replace(_INK, "var(--soft)").replace(_GRID, "var(--rule)")
    for k, colour in enumerate(_LINES):
        svg = svg.replace(colour, f"var(--line-{k})")
    width, height = 72 * _WIDTH, 72 * _HEIGHT
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{description}">'
    return re.sub(r"<svg[^>]*>", head, svg, count=1).strip()
