"""Runs of a request: the samplers in turns, step by step, on pipelines that all visitors share."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dinit.checkpoints.locating import INDEX, shipped
from dinit.checkpoints.runs import MODEL, PIPELINE_FOLDER, is_run, newest_step
from dinit.files import user_path
from dinit.pipelines.call import Call
from dinit.pipelines.generate import Generated, Pipeline
from dinit.pipelines.outputs.sheets import to_pil
from dinit.samplers import Step

_KEPT = 4  # pipelines in memory
_FIRST = ("fashion-28", "glyphs-32")  # of the shipped ones: those with the largest pictures
_MOST_DECODED = 12  # frames of one run through an autoencoder, which takes longer than a step


class Pipelines:
    """The pipelines of a page, opened on first use, and the lock under which they are evaluated.

    Args:
        names: shipped names and folders.
        opener: from a name to the pipeline.
    """

    def __init__(self, names: Sequence[str], opener: Callable[[str], Pipeline]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.lock = threading.Lock()
        self._opener = opener
        self._opening = threading.Lock()
        self._open: dict[str, tuple[float, Pipeline]] = {}

    def open(self, name: str) -> Pipeline:
        """The pipeline; a folder whose weights have changed is opened again.

        Args:
            name: one of `names`.

        Raises:
            ValueError: another name.
        """
        if name not in self.names:
            raise ValueError(
                f"{name} is not one of the pipelines of this page ({', '.join(self.names)}): start `dinit app` "
                "with it"
            )
        stamp = _stamp(name)
        with self._opening:
            known = self._open.pop(name, None)
            pipe = known[1] if known is not None and known[0] == stamp else self._opener(name)
            self._open[name] = (stamp, pipe)
            while len(self._open) > _KEPT:
                self._open.pop(next(iter(self._open)))
        return pipe

    def find(self, recorded: str) -> str:
        """The page's name of a pipeline that a manifest records, which has folders in full.

        Args:
            recorded: shipped name, folder or hub id; '' for a pipeline that was never saved.

        Raises:
            ValueError: the page has no such pipeline.
        """
        if recorded in self.names:
            return recorded
        for name in self.names:
            if name not in shipped() and recorded and user_path(recorded).resolve() in _folders(user_path(name)):
                return name
        raise ValueError(
            f"the picture was made by {recorded or 'a pipeline without a name'}, which is not one of this page's "
            f"pipelines: start `dinit app {recorded or 'FOLDER'}`"
        )


def _stamp(name: str) -> float:
    """Time of the last change of a folder; 0 for a shipped pipeline and for one of the hub."""
    folder = user_path(name)
    if name in shipped() or not folder.is_dir():
        return 0.0
    return _changed(folder)


def names_to_offer(given: str | None, runs: Path) -> list[str]:
    """Names of pipelines: the given one, the runs that can be opened with the newest first, the shipped ones.

    Args:
        given: of the command line.
        runs: folder of run folders; it need not exist.
    """
    found = sorted(filter(None, map(_openable, runs.glob("*"))), key=_changed)
    ours = sorted(shipped(), key=lambda name: (name not in _FIRST, name))
    return list(dict.fromkeys([*([] if given is None else [given]), *map(str, reversed(found)), *ours]))


def _folders(folder: Path) -> list[Path]:
    """The folders that stand for a pipeline in manifests: for a run, its pipeline and its newest checkpoint too."""
    newest = newest_step(folder) if is_run(folder) else None
    inside = [] if not is_run(folder) else [folder / PIPELINE_FOLDER, *([] if newest is None else [newest.folder])]
    return [one.resolve() for one in (folder, *inside)]


def _openable(folder: Path) -> Path | None:
    """What can be opened of a folder of runs: the run, or a pipeline that is in it; None where there is neither."""
    finished = folder / PIPELINE_FOLDER
    if is_run(folder):
        unfinished = (folder / MODEL / INDEX).is_file() and newest_step(folder) is not None
        return folder if unfinished or (finished / INDEX).is_file() else None
    return next((one for one in (folder, finished) if (one / INDEX).is_file()), None)


def _changed(folder: Path) -> float:
    """Time of the last change of the weights of a run, or of a pipeline's files."""
    if is_run(folder):
        newest = newest_step(folder)
        files = [folder / PIPELINE_FOLDER / INDEX, *([] if newest is None else [newest.weights])]
    else:
        files = [folder, *folder.glob("*"), *folder.glob("*/*")]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


@dataclass(frozen=True)
class Frame:
    """One step of one column.

    Attributes:
        column: index of the call.
        done: steps so far, of all batches.
        total: steps of the run, of all batches; those of the first batch times the number of batches.
        t: time of the step, in [0, 1].
        nfe: network evaluations an image so far.
        seconds: spent in steps so far.
        pictures: the posterior mean of every image so far; in the last frame, the images; empty where the step was
            not decoded.
        generated: in the last frame, the result, with images of output_type 'raw'.
        notes: warnings of the run.
        error: why the run ended early.
    """

    column: int
    done: int
    total: int
    t: float
    nfe: int
    seconds: float
    pictures: tuple[Image.Image, ...] = ()
    generated: Generated | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


def run(pipe: Pipeline, calls: Sequence[Call], lock: AbstractContextManager[object]) -> Iterator[Frame]:
    """Runs calls in turns, that with the smallest progress next, so that all end together.

    The lock is held during an evaluation, never between two frames: several runs take turns, and closing the
    generator ends the run without another evaluation. A call that fails ends alone, with the reason in its frame.

    Args:
        pipe: of all calls.
        calls: of `Request.calls`.
        lock: of the pipeline.
    """
    tracks = [_Track(pipe, call, column) for column, call in enumerate(calls)]
    while unfinished := [track for track in tracks if not track.over]:
        track = min(unfinished, key=lambda one: one.progress)
        with lock:
            frame = track.advance()
        yield frame


def is_of_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory, of a GPU or of the machine.

    Args:
        error: of torch or Python.
    """
    return isinstance(error, MemoryError) or any(one in str(error) for one in ("out of memory", "allocate memory"))


class _Track:
    """A call that is run: what its frames are made of."""

    def __init__(self, pipe: Pipeline, call: Call, column: int) -> None:
        self.pipe, self.call, self.column = pipe, call, column
        self.steps = pipe.iterate(call)
        self.batches = len(call.batches())
        self.ended: list[Step] = []  # the last step of every batch that is over
        self.done, self.total, self.seconds = 0, self.batches * call.steps, 0.0
        self.last: Step | None = None
        self.notes: list[str] = []
        self.over = False

    @property
    def progress(self) -> float:
        return self.done / max(1, self.total)

    def advance(self) -> Frame:
        try:
            return self._step()
        except (ValueError, RuntimeError, MemoryError) as error:
            if not isinstance(error, ValueError) and not is_of_memory(error):
                raise
            self.over = True
            return self._frame(error=str(error).splitlines()[0])

    def _step(self) -> Frame:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            step = next(self.steps)
        if step.x_s.is_cuda:
            torch.cuda.synchronize(step.x_s.device)
        self.seconds += time.perf_counter() - start
        self.notes += [str(one.message) for one in caught if one.category is UserWarning]
        self.last, self.done = step, self.done + 1
        if self.done == 1:
            self.total = step.total * self.batches
        if step.index + 1 < step.total:
            return self._frame(self._shown(step))
        self.ended.append(step)
        if len(self.ended) < self.batches:
            return self._frame()
        self.over = True
        images = torch.cat([self._decoded(one.x_s) for one in self.ended])
        generated = Generated(images, self.call, self.ended[0].nfe)
        return self._frame(tuple(to_pil(images)), generated)

    def _shown(self, step: Step) -> tuple[Image.Image, ...]:
        """Pictures of the posterior mean, after those of the batches that are over."""
        every = 1 if self.pipe.codec.downscale == 1 else max(1, step.total // _MOST_DECODED)
        if step.index % every:
            return ()
        whole = [self._decoded(one.x_s) for one in self.ended]
        return tuple(to_pil(torch.cat([*whole, self._decoded(step.x0)])))

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> Tensor:
        return self.pipe.codec.decode(latents)

    def _frame(
        self,
        pictures: tuple[Image.Image, ...] = (),
        generated: Generated | None = None,
        error: str | None = None,
    ) -> Frame:
        t, nfe = (1.0, 0) if self.last is None else (self.last.t, self.last.nfe)
        numbers = self.column, self.done, self.total, t, nfe, self.seconds
        return Frame(*numbers, pictures, generated, tuple(self.notes), error)
