"""Stop requests (SIGTERM, Ctrl-C): a run ends in all of its processes after the same step."""

from __future__ import annotations

import signal
from contextlib import suppress
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=2)  # for what one process does alone while the others wait: evaluations, checkpoints
_LAST_WAIT = timedelta(seconds=2)  # for the other processes, by one that leaves with an error


class TrainingStopped(RuntimeError):
    """A run was stopped by a signal, after it had saved a checkpoint.

    Args:
        number: The signal's number.
        step: The last completed step, which the checkpoint contains.
    """

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved; the same command continues from it")


class StopRequest:
    """Records SIGTERM and Ctrl-C while it is entered; a second one ends the process at once.

    Processes may receive the signal at different moments, and the host may be steps ahead of the device. Each
    process therefore sends at every step, over a gloo group, the signal that it has received, and reads the result
    of the step before. All processes read the same value, and none waits for a device.
    """

    def __init__(self, processes: int) -> None:
        self.number = 0  # of the signal that this process has received; 0 is none
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if processes > 1 else None
        self._sent = torch.zeros((), dtype=torch.int64)
        self._pending: Any = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # signals are the main thread's
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._pending is not None and kind is None:
            self._pending.wait()
        elif self._pending is not None:
            with suppress(RuntimeError):  # the others may have ended, or be busy for longer
                self._pending.wait(_LAST_WAIT)
        # The groups are destroyed once this is left, and no collective of theirs may outlive them.
        self._pending = self._group = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def agreed(self) -> int:
        """The signal's number once all processes know that one of them received it, else 0. Call once a step."""
        if self._group is None:
            return self.number
        received = 0
        if self._pending is not None:
            self._pending.wait()
            received = int(self._sent)
        if received:
            self._pending = None
            return received
        self._sent = torch.tensor(self.number)
        self._pending = dist.all_reduce(self._sent, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return 0
