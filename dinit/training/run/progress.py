"""Progress display of a run: a bar on a terminal, a line at intervals elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from dinit.progress import Progress


class Display:
    """Loss, images/s and the time left. A context manager; `show` is called when the losses are read.

    start, total: optimiser steps. batch: images a step. enabled: False shows nothing.
    """

    def __init__(self, name: str, start: int, total: int, batch: int, enabled: bool) -> None:
        self._name, self._start, self._batch = name, start, batch
        self._began = time.monotonic()
        self.images_per_second = 0.0  # over this session's steps, up to the last `show`
        self._progress = Progress(
            name, total, "steps", start=start, speed=("images", float(batch)), enabled=enabled
        )

    def __enter__(self) -> Display:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    @property
    def seconds_left(self) -> float:
        """Until the last step, at the speed of late; inf while it is not known."""
        return self._progress.seconds_left

    def tick(self, step: int) -> None:
        """After every optimiser step; nothing is read from the device."""
        self._progress.update(step)

    def show(self, step: int, loss: float) -> None:
        """After optimiser step `step`; loss: the mean since the last call."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        self.images_per_second = (step - self._start) * self._batch / seconds
        self._progress.update(step, note=f"loss {loss:.4f}")

    def say(self, text: str) -> None:
        """Lines above the bar."""
        self._progress.say(text)

    def warn(self, message: str) -> None:
        """A line above the bar."""
        self._progress.say(f"{self._name}: warning: {message}")
