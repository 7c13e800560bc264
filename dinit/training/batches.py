"""Training batches of one process, in an order that depends on the seed and the step alone."""

from __future__ import annotations

import itertools
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinit.data import ImageData, sample_key

_T = TypeVar("_T")
_MEMORY_LIMIT = 256 << 20  # bytes: data sets up to this size are held as one tensor
PATIENCE = 1800.0  # seconds for a batch, after which the processes that read the data count as hanging
CHECK = 2.0  # seconds between looks at whether they are alive: a DataLoader looks where its timeout is over, only
_DEATHS = 3  # of the reading processes, without a batch between, that end a run


@dataclass(frozen=True)
class Share:
    """Which rows of a step's global batch this process trains on, and in which accumulation part.

    ValueError where batch does not divide into processes × parts.
    """

    batch: int
    parts: int = 1
    processes: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.batch % (self.parts * self.processes):
            raise ValueError(
                f"batch_size = {self.batch} must be a multiple of gradient_accumulation × processes = "
                f"{self.parts} × {self.processes}; change one of them"
            )

    @property
    def size(self) -> int:
        """Rows of one part on one process."""
        return self.batch // (self.parts * self.processes)

    def rows(self, part: int) -> slice:
        """The rows of the global batch that are this process's in accumulation part `part`."""
        start = (part * self.processes + self.rank) * self.size
        return slice(start, start + self.size)


def batches(
    data: ImageData, seed: int, share: Share, first_step: int, last_step: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields images (size, C, H, W) in [-1, 1] and labels (size,) int64: part after part, step after step.

    Small data sets without augmentation are read once into memory; others are read by `workers` processes.
    """
    size = 4 * len(data) * data.channels * data.image_size**2
    if size <= _MEMORY_LIMIT and not data.augments:
        return _from_memory(data, seed, share, first_step, last_step)
    return _loaded(_Keyed(data, seed), share, first_step, last_step, workers)


def _loaded(
    data: _Keyed, share: Share, first_step: int, last_step: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches by worker processes. Workers that die are started again at the batch that is due.

    RuntimeError where they die three times without having given a batch, TimeoutError where they give none for
    half an hour.
    """
    given = deaths = 0
    while True:
        loader = DataLoader(
            data,
            batch_sampler=_Positions(share, first_step, last_step, given),  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            timeout=CHECK if workers else 0,
            generator=torch.Generator(),  # of its own: a run that starts it again draws no more than another
        )
        source = _start(loader)
        try:
            for batch in patient(source):
                yield batch
                given, deaths = given + 1, 0
            return
        except (RuntimeError, OSError, EOFError) as error:
            ends = [worker.sentinel for worker in getattr(source, "_workers", ())]
            # A killed process's connections break a moment before it counts as dead.
            if isinstance(error, TimeoutError) or not ends or not wait(ends, timeout=1.0):
                raise  # an error of the data, not of the process that read it
            deaths += 1
            if deaths == _DEATHS:
                raise RuntimeError(
                    f"the processes that read the data died {deaths} times at the same batch ({error}); too little "
                    "memory, shared memory too? Try training.workers=0"
                ) from error
            warnings.warn(f"a process that reads the data died; they are started again ({error})", stacklevel=2)


def patient(source: Iterator[_T]) -> Iterator[_T]:
    """The batches of a DataLoader's iterator, which may time out again and again within `PATIENCE`.

    Each time out it looks whether its workers are alive, and raises RuntimeError where one is not: the queue of a
    killed worker stays open, so that a longer timeout would be waited for to its end. TimeoutError where no
    batch comes.
    """
    since = time.monotonic()
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out after" not in str(error):
                raise
            if time.monotonic() - since > PATIENCE:
                raise TimeoutError(
                    f"the processes that read the data gave no batch for {PATIENCE / 60:.0f} minutes: is the disk "
                    "or network of the data set reachable? The same command continues from what is on the disk; "
                    "workers=0 reads without such processes"
                ) from error
        else:
            yield batch
            since = time.monotonic()


def _start(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """iter(loader), without the signal handler that raises in the main thread, at any point, when a worker dies.

    The death is then reported where a batch is waited for, and nowhere else.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    source = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return source


def _from_memory(
    data: ImageData, seed: int, share: Share, first_step: int, last_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.stack([data.image(i) for i in range(len(data))])
    labels = torch.as_tensor(data.labels, dtype=torch.int64)
    for positions in _Positions(share, first_step, last_step):
        chosen = torch.tensor(data.indices(seed, positions[0], len(positions)))
        yield images[chosen], labels[chosen]


@dataclass(frozen=True)
class _Positions:
    """The positions, counted over the whole run, of each batch of this process. Steps count from 1."""

    share: Share
    first_step: int
    last_step: int
    skipped: int = 0  # of the first batches

    def __iter__(self) -> Iterator[range]:
        return itertools.islice(self._all(), self.skipped, None)

    def _all(self) -> Iterator[range]:
        for step in range(self.first_step, self.last_step + 1):
            for part in range(self.share.parts):
                rows = self.share.rows(part)
                start = (step - 1) * self.share.batch
                yield range(start + rows.start, start + rows.stop)

    def __len__(self) -> int:
        return (self.last_step - self.first_step + 1) * self.share.parts - self.skipped


class _Keyed(Dataset[tuple[Tensor, int]]):
    """The data set by position in the run, with the augmentation that belongs to that position."""

    def __init__(self, data: ImageData, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self.data.indices(self.seed, position, 1)[0]
        return self.data.sample(index, sample_key(self.seed, position))
