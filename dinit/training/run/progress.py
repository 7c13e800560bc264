"""Progress display of a run: a bar on a terminal, a line at intervals elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Loss, images/s and the time left. A context manager; `show` is called when the losses are read.

    start, total: optimiser steps. batch: images a step. enabled: False shows nothing.
    """

    def __init__(self, name: str, start: int, total: int, batch: int, enabled: bool) -> None:
        self._name, self._start, self._total, self._batch = name, start, total, batch
        self._enabled = enabled
        self._console = Console(stderr=True)
        self._began = time.monotonic()
        self.images_per_second = 0.0  # over this session's steps, up to the last `show`
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task(name, total=total, completed=start, figures="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: int, loss: float) -> None:
        """After optimiser step `step`; loss: the mean since the last call."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        self.images_per_second = (step - self._start) * self._batch / seconds
        figures = f"loss {loss:.4f}  {self.images_per_second:,.0f} images/s"
        self._progress.update(self._task, completed=step, figures=figures)
        if self._enabled and not self._console.is_terminal:
            left = (self._total - step) * seconds / max(step - self._start, 1)
            self._console.print(f"{self._name}: step {step}/{self._total}  {figures}  {left:.0f} s left")

    def say(self, text: str) -> None:
        """Lines above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """A line above the bar."""
        if self._enabled:
            self._console.print(f"{self._name}: warning: {message}", markup=False)
