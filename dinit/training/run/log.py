"""Loss log, losses.jsonl: a line for each optimiser step, the same file whether or not the run was interrupted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from dinit.files import write_atomically


class LossLog:
    """Appends {"step": n, "loss": x} lines. Opening it at `step` removes the lines of later steps."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [(s, loss) for s, loss in read_losses(path) if s <= step] if path.exists() else []
        write_atomically(path, "".join(_line(s, loss) for s, loss in kept))
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by `close`)
        self.recent = [loss for _, loss in kept if math.isfinite(loss)][-100:]  # without skipped steps

    def append(self, first_step: int, losses: Sequence[float]) -> None:
        """Log the losses of first_step, first_step + 1, ...; they are on the disk when this returns."""
        self._stream.write("".join(_line(first_step + i, loss) for i, loss in enumerate(losses)))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.recent = [*self.recent, *(loss for loss in losses if math.isfinite(loss))][-100:]

    def close(self) -> None:
        self._stream.close()


def read_losses(path: Path) -> list[tuple[int, float]]:
    """Read the losses of a run.

    Args:
        path: losses.jsonl in the run's folder.

    Returns:
        (step, loss) of every complete line; a last line that a killed run left incomplete is skipped.
    """
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            entries.append((entry["step"], entry["loss"]))
        except (ValueError, KeyError, TypeError):
            break
    return entries


def _line(step: int, loss: float) -> str:
    return json.dumps({"step": step, "loss": loss}) + "\n"  # repr of a float: reads back bit for bit
