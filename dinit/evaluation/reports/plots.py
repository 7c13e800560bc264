"""Pictures of a report's page, as PNG: grids of images, and plots by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinit.evaluation.image_features import ImageSource, spread_out

_SIDE = 48  # pixels, at least, of an image in a grid
_GAP = 2
_BLUE, _ORANGE = "#1f5fa8", "#d9822b"


def grid(images: ImageSource, count: int = 64, columns: int = 16) -> bytes:
    """Grid of `count` images, evenly spaced over the set, in rows of `columns`."""
    return _png(_laid_out(spread_out(images, count), columns))


def pairs(above: Tensor, below: Tensor) -> bytes:
    """Two rows of images: each of `above` over its partner in `below`."""
    return _png(_laid_out(torch.cat([above, below]), len(above)))


def curve(points: Mapping[str, Any]) -> bytes:
    """Plot of FID against 1/N with the fitted line to N = ∞. points: of `dinit.evaluation.resampling.fid_curve`."""
    counts, values = np.array(points["counts"]), np.array(points["values"])
    figure, axes = _figure()
    axes.plot(1 / counts, values, "o", color=_BLUE)
    ends = np.array([0, 1 / counts.min()])
    axes.plot(ends, points["infinity"] + points["slope"] * ends, "--", color=_ORANGE)
    shown = counts[[0, len(counts) // 4, -1]]  # far enough apart for their labels
    axes.set_xticks(1 / shown, [f"{n:,}" for n in shown])
    axes.set(xlabel="samples (the axis is 1/N; N = ∞ at the left)", ylabel="FID", xlim=(0, None))
    return _drawn(figure)


def histograms(ours: NDArray[np.float64], theirs: NDArray[np.float64], names: Sequence[str]) -> bytes:
    """Bar plot of the shares of the likeliest classes in two sets; at most the 40 that differ most."""
    shown = np.sort(np.argsort(-np.abs(ours - theirs), kind="stable")[:40])
    places = np.arange(len(shown))
    figure, axes = _figure(wide=True)
    axes.bar(places - 0.2, ours[shown], 0.4, color=_BLUE, label="samples")
    axes.bar(places + 0.2, theirs[shown], 0.4, color=_ORANGE, label="reference")
    axes.set_xticks(places, [names[k] if k < len(names) else str(k) for k in shown], fontsize=7)
    axes.set(ylabel="share of top-1")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _drawn(figure)


def bars(values: Mapping[str, float], label: str, line: Mapping[str, float] | None = None) -> bytes:
    """Bar plot of values; `line`: ticks to compare them with."""
    figure, axes = _figure(wide=True)
    places = np.arange(len(values))
    axes.bar(places, list(values.values()), 0.6, color=_BLUE)
    if line is not None:
        heights = [line.get(name, np.nan) for name in values]
        axes.plot(places, heights, "_", color=_ORANGE, markersize=18, markeredgewidth=2)
    axes.set_xticks(places, list(values), fontsize=7)
    axes.set(ylabel=label)
    return _drawn(figure)


def _laid_out(images: Tensor, columns: int) -> Image.Image:
    scale = max(1, _SIDE // images.shape[-1])
    tiles = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    tiles = tiles[:, :3] if tiles.shape[1] >= 3 else tiles[:, :1].expand(-1, 3, -1, -1)
    high, wide = tiles.shape[2] + _GAP, tiles.shape[3] + _GAP
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * high, min(columns, len(tiles)) * wide, 3), 255, dtype=np.uint8)
    for k, tile in enumerate(tiles.permute(0, 2, 3, 1).numpy()):
        top, left = k // columns * high, k % columns * wide
        sheet[top : top + high - _GAP, left : left + wide - _GAP] = tile
    return Image.fromarray(sheet)


def _figure(wide: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # slow to import; a figure without pyplot needs no display

    figure = Figure(figsize=(9 if wide else 5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _drawn(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
