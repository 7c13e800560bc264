"""Progress of long work: a bar on a terminal, plain lines at intervals elsewhere, with the time left.

    with Progress("encode", 4096, "images") as progress:
        for done in ...:
            progress.update(done)

Commands switch it on with `shown`; for callers of the library it is silent. Under a launcher (torchrun, accelerate
launch) only the first process shows anything.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Timer
from types import TracebackType

from rich.console import Console
from rich.markup import escape

_FIRST, _SECOND, _THEN = 2.0, 8.0, 30.0  # seconds before the first plain line, the second, and each later one
_STAGE = 1.0  # seconds of a stage before its line
_shown: ContextVar[bool] = ContextVar("shown", default=False)
_active: ContextVar[bool] = ContextVar("active", default=False)  # a bar stands on the terminal already


@contextmanager
def shown(enabled: bool = True) -> Iterator[None]:
    """Whether progress is shown inside, on the error stream. It is not, unless this is entered.

    Args:
        enabled: False keeps everything inside silent.
    """
    token = _shown.set(enabled)
    try:
        yield
    finally:
        _shown.reset(token)


def is_main_process() -> bool:
    """Whether this is the first of the launched processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def duration(seconds: float) -> str:
    """A time as '13 s', '4 min' or '2 h 05 min'; '?' where it is not known (infinity)."""
    if seconds == float("inf"):
        return "?"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


@contextmanager
def stage(text: str, *, enabled: bool | None = None) -> Iterator[None]:
    """What is being done inside, for work without a count: "reading 60,000 images".

    Args:
        text: Shown with a spinner on a terminal while the block runs; elsewhere as a line, where it takes longer
            than a second.
        enabled: None is as `shown`.
    """
    if not _is_on(enabled) or _active.get():
        yield
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        late = Timer(_STAGE, lambda: console.print(f"{text} …", markup=False, highlight=False, soft_wrap=True))
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()
        return
    token = _active.set(True)
    try:
        with console.status(escape(text)):
            yield
    finally:
        _active.reset(token)


class Speed:
    """Work done in a second, over the later half of the time since the first work was done.

    Time before that (imports, compiling, the first step) is not counted: after one step alone it would promise ten
    hours for ten minutes. A machine that becomes slower shows in the time left.

    Args:
        start: Work that was done before.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, start: float, now: float) -> None:
        self._marks: deque[tuple[float, float]] = deque()
        self._last = (now, start)

    def update(self, done: float, now: float) -> None:
        """`done` is all the work by `now`, with what was done before."""
        if done <= self._last[1]:
            return
        self._last = (now, done)
        if not self._marks:
            self._began_counting = now
            self._marks.append(self._last)
            return
        elapsed = now - self._began_counting
        while len(self._marks) > 1 and self._marks[1][0] <= now - elapsed / 2:
            self._marks.popleft()
        if now - self._marks[-1][0] >= elapsed / 100:  # some hundred marks, however many updates there are
            self._marks.append(self._last)

    @property
    def per_second(self) -> float:
        """0 until there are two reports: the time of the first is mostly that of starting."""
        if not self._marks:
            return 0.0
        seconds, work = self._last[0] - self._marks[0][0], self._last[1] - self._marks[0][1]
        return work / seconds if seconds > 0 else 0.0

    def seconds_left(self, total: float, now: float) -> float:
        """Until all of `total` is done, at this speed; inf while it is not known."""
        if self._last[1] >= total:
            return 0.0
        if not self.per_second:
            return float("inf")
        return max((total - self._last[1]) / self.per_second - (now - self._last[0]), 0.0)


class Progress:
    """Progress of work that can be counted. A context manager; `update` is called as often as is convenient.

    Off a terminal a line is printed after two seconds, after ten, and then every thirty, where `update` is called
    that often; nothing for work that is done before.

    Args:
        name: Of the work, at the beginning of the line.
        total: How much there is; None where that is not known yet.
        unit: What is counted: "images", "steps".
        start: How much was done before.
        speed: Unit and factor of the speed shown, where it is not `unit`: ("images", 32) for steps of 32 images;
            None shows none.
        enabled: None is as `shown`.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str = "images",
        *,
        start: int = 0,
        speed: tuple[str, float] | None = ("", 1.0),
        enabled: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, start
        self._start = start
        self._speed_unit = speed
        self._clock = clock
        self._note = ""
        self._began = clock()
        self._next, self._lines = self._began + _FIRST, 0
        self._speed = Speed(start, self._began)
        self._console = Console(stderr=True)
        self._on = _is_on(enabled) and not _active.get()
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar  # slow to import

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self._bar = Bar(
            *columns,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            disable=not (self._on and self._console.is_terminal),
        )
        self._task = self._bar.add_task(escape(name), total=total, completed=start, figures="")

    def __enter__(self) -> Progress:
        self._token = _active.set(True) if self._on else None
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._token is not None:
            _active.reset(self._token)
        if self._on and kind is None and self._lines and self.done == self.total:
            self.say(
                f"{self.name}: {self.done - self._start:,} {self.unit} in {duration(self._clock() - self._began)}"
            )

    @property
    def enabled(self) -> bool:
        """Whether anything is shown."""
        return self._on

    @property
    def per_second(self) -> float:
        """Units a second, lately; 0 while nothing was done."""
        return self._speed.per_second

    @property
    def seconds_left(self) -> float:
        """Until all is done; inf while it is not known."""
        return float("inf") if self.total is None else self._speed.seconds_left(self.total, self._clock())

    def update(self, done: int | None = None, *, total: int | None = None, note: str | None = None) -> None:
        """How far the work is.

        Args:
            done: All that is done, with `start`; None is one more.
            total: How much there is, where that has changed.
            note: Figures to show, such as "loss 0.1234"; None leaves the last.
        """
        now = self._clock()
        self.done = self.done + 1 if done is None else done
        self.total = self.total if total is None else total
        self._note = self._note if note is None else note
        self._speed.update(self.done, now)
        if not self._on:
            return
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self.done, total=self.total, figures=escape(self.line()))
        elif now >= self._next:
            self._lines += 1
            self._next = now + (_SECOND if self._lines == 1 else _THEN)
            self.say(f"{self.name}: {self.line()}")

    def line(self) -> str:
        """The figures: '320 of 1,000 images (32 %), loss 0.1234, 12 images/s, 55 s left'."""
        count = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        parts = [f"{count} {self.unit}{share}", self._note]
        if self._speed_unit is not None and self.per_second:
            unit, factor = self._speed_unit
            rate = factor * self.per_second
            parts.append(
                f"{rate:,.0f} {unit or self.unit}/s" if rate >= 10 else f"{rate:.2g} {unit or self.unit}/s"
            )
        if self.total and self.per_second:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(part for part in parts if part)

    def say(self, text: str) -> None:
        """Lines above the bar."""
        if self._on:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _is_on(enabled: bool | None) -> bool:
    return (_shown.get() if enabled is None else enabled) and is_main_process()
