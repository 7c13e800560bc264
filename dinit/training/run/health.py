"""Health of a run: gradient norms, the loss by noise level, statistics of its samples' pixels.

Everything is summed on the device and read together with the losses. health.jsonl has a line for each report and
each preview; events.jsonl one for the beginning of each session of the run, for its end, and for each warning.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.data import ImageData
from dinit.devices import upload
from dinit.files import write_atomically
from dinit.training.recipe.model import Recipe

EDGES = (-9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0)
"""Edges, in log-SNR = log(alpha^2 / sigma^2), of the bins by which losses are reported; the outer two are open."""
BINS = len(EDGES) + 1
_COMPARED = 512  # images of the data set that samples are compared with


def bin_names() -> list[str]:
    """'below -9', '-9 .. -6', ..., 'above 9': noisy first."""
    inner = [f"{low:g} .. {high:g}" for low, high in itertools.pairwise(EDGES)]
    return [f"below {EDGES[0]:g}", *inner, f"above {EDGES[-1]:g}"]


class NoiseBins:
    """The mean loss of the samples in each bin of log-SNR since the last reading. Nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._edges = torch.tensor(EDGES, dtype=torch.float64)
        self._sums = torch.zeros(2, BINS, device=device)  # losses, samples

    @torch.no_grad()
    def add(self, losses: Tensor, log_snr: Tensor) -> None:
        """losses (B,) on the device, those that are not finite left out; log_snr (B,) float64 on the CPU."""
        bins = upload(torch.bucketize(log_snr, self._edges), self._device)
        losses = losses.detach().float()
        finite = losses.isfinite()
        self._sums[0].index_add_(0, bins, torch.where(finite, losses, 0.0))
        self._sums[1].index_add_(0, bins, finite.float())

    def take(self) -> Tensor:
        """(2 * BINS,): sums of losses, then counts, which are started again."""
        taken, self._sums = self._sums, torch.zeros_like(self._sums)
        return taken.flatten()


def bin_means(sums: Sequence[float]) -> list[float | None]:
    """Means from `NoiseBins.take`, added or averaged over processes; None for a bin without samples."""
    return [total / count if count else None for total, count in zip(sums[:BINS], sums[BINS:], strict=True)]


def image_statistics(images: Tensor) -> dict[str, float]:
    """Mean and standard deviation over all images (N, C, H, W) and their pixels."""
    images = images.float()
    return {"mean": float(images.mean()), "std": float(images.std(correction=0))}


def data_statistics(data: ImageData) -> dict[str, float]:
    """`image_statistics` of up to 512 images, at equal distances in the data set."""
    stride = max(len(data) // _COMPARED, 1)
    return image_statistics(torch.stack([data.image(k) for k in range(0, len(data), stride)][:_COMPARED]))


def session(
    recipe: Recipe, data: ImageData, parameters: int, device: torch.device, processes: int
) -> dict[str, Any]:
    """What a session of a run trains, on what, from when on; for events.jsonl.

    Args:
        recipe: Of the run.
        data: The training images.
        parameters: Of the backbone.
        device: Of this process.
        processes: How many train together.

    Returns:
        Numbers and words, with "began" in seconds since 1970.
    """
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        place = f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "began": round(time.time(), 1),
        "steps": recipe.training.steps,
        "batch_size": recipe.training.batch_size,
        "data": str(recipe.data.spec()["name"]),
        "images": len(data),
        "shape": [data.channels, data.image_size, data.image_size],
        "classes": data.num_classes,
        "backbone": str(recipe.backbone.spec()["name"]),
        "parameters": parameters,
        "device": place,
        "processes": processes,
        "precision": recipe.training.precision,
    }


def describe_session(line: Mapping[str, Any]) -> str:
    """A line of `session` in words: device, images, classes, parameters."""
    channels, height, width = line["shape"]
    classes = f"{line['classes']:,} classes" if line["classes"] else "no classes"
    several = f"{line['processes']} processes of " if line["processes"] > 1 else ""
    return (
        f"{line['images']:,} images of {line['data']}, {width}×{height}×{channels}, {classes}; "
        f"{line['backbone']} of {line['parameters']:,} parameters; {several}{line['device']}, {line['precision']}; "
        f"{line['steps']:,} steps of {line['batch_size']:,} images"
    )


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line of JSON; numbers that are not finite become null, because JSON has none."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(_plain(entry)) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete line, up to one that a killed run left incomplete."""
    entries: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith("\n") or not isinstance(entry, dict):
                break
            entries.append(entry)
    return entries


def forget_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, which a resumed run repeats."""
    if path.exists():
        kept = [entry for entry in read_lines(path) if entry.get("step", 0) <= step]
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
