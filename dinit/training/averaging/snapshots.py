"""Snapshots of a run's power-function EMAs, and an average of any width made of them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from dinit.files import write_atomically
from dinit.training.averaging.power_ema import PowerEMA, Snapshot, coefficients, combined


def save_snapshot(folder: Path, average: PowerEMA, step: int) -> Path:
    """folder/ema-WIDTH-STEP.safetensors, written whole. Returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"ema-{average.sigma_rel:.4f}-{step:08d}.safetensors"
    write_atomically(path, save({name: value.cpu().contiguous() for name, value in average.averages.items()}))
    return path


def list_snapshots(folder: Path) -> dict[Snapshot, Path]:
    """Every snapshot of a run, by step and width."""
    found = {}
    for path in sorted(folder.glob("ema-*-*.safetensors")):
        _, width, step = path.stem.split("-")
        found[Snapshot(int(step), float(width))] = path
    return found


def average_of_width(folder: Path, sigma_rel: float, step: int | None = None) -> tuple[dict[str, Tensor], int]:
    """Parameters of the EMA of width sigma_rel as it was after `step` (None: the last kept), and that step.

    ValueError for a folder without snapshots, or a width or step that they do not cover.
    """
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise ValueError(
            f"{folder} has no snapshots; train with ema.widths, such as ema.widths=[0.05,0.1], to keep them"
        )
    last = max(snapshot.step for snapshot in snapshots) if step is None else step
    used = [snapshot for snapshot in snapshots if snapshot.step <= last]
    shares = coefficients(used, last, sigma_rel)
    return combined([load_file(snapshots[snapshot]) for snapshot in used], shares), last
