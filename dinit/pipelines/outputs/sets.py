"""Large sets of images, by any number of processes: killed and started again, the set is the same to the byte.

Image k has seed (seed, k) and a class that is a function of k. Rounding depends on the size of a batch, so the
network always evaluates the same groups of images, at the same places in a batch: images i·group .. (i+1)·group -
1. The groups that are not on the disk yet are divided among the processes; there is no other state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image

from dinit.data.order import hash_words
from dinit.files import only_writer, user_path, whole_file
from dinit.pipelines.call import Call, to_spec
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.labels import whole_number
from dinit.pipelines.launch import launched_processes
from dinit.pipelines.loading import read_json
from dinit.pipelines.outputs.manifest import FILE, pipeline_name, provenance, versions
from dinit.pipelines.outputs.set_files import (
    begin,
    check_folder,
    image_path,
    pack,
    png_bytes,
    present,
    write_manifest,
)
from dinit.pipelines.outputs.sheets import to_pil

Class = TypeVar("Class", int, str)

GROUP = 64
CLASS_ORDERS = ("balanced", "random", "none")
_WRITERS, _BACKLOG = 4, 3  # threads that write a process's images; groups that may wait for them
_PATIENCE = 1800.0  # seconds without a new image, after which the other processes are given up
_LOOK_EVERY = 2.0  # seconds between two counts of what all processes have written
_RANDOM_CLASS = 7  # keeps the stream of random classes apart from every other of the seed


@dataclass(frozen=True)
class Progress:
    """Progress of a set, of all processes. done, total: images on the disk. per_second: of this session."""

    done: int
    total: int
    per_second: float

    @property
    def seconds_left(self) -> float:
        """inf while nothing was made."""
        return (self.total - self.done) / self.per_second if self.per_second else float("inf")


@dataclass(frozen=True)
class MadeSet:
    """The result. folder: of the set. made: images of this session and process. complete: all are on the disk.

    pack: the .npz; None where it was not requested, in processes other than the first, or if not complete.
    """

    folder: Path
    count: int
    made: int
    complete: bool
    pack: Path | None = None
    notes: tuple[str, ...] = ()


def class_of(index: int, classes: Sequence[Class], order: str, seed: int) -> Class | None:
    """The class of image `index`. order: 'balanced' takes the classes in turn, so that any first n images hold
    as many of each as can be; 'random' draws evenly, by seed and index; 'none' is the null class.

    ValueError for another order.
    """
    if order not in CLASS_ORDERS:
        raise ValueError(f"classes come {', '.join(CLASS_ORDERS)}; got {order!r}")
    if order == "none" or not classes:
        return None
    if order == "balanced":
        return classes[index % len(classes)]
    return classes[(hash_words(seed, index, _RANDOM_CLASS) >> 32) * len(classes) >> 32]


def generate_set(
    pipe: Pipeline,
    call: Call,
    folder: str | Path,
    group: int = GROUP,
    make_pack: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> MadeSet:
    """Makes the images of `call` that are not in `folder` yet, together with the other launched processes.

    call: of Pipeline.prepare, with the labels of all images; its batch_size is how many images a process makes
    between two calls of `stop`. group: images that the network evaluates together, which decides rounding and
    belongs to the set. on_progress: called in the first process at intervals. stop: called between batches; True
    ends the work. ImageSetError where the folder holds another set; OSError of the disk, after which no incomplete
    file is left; ValueError for a group that is no number.
    """
    folder, group = user_path(folder), whole_number("group", group)
    pipe.check(call)
    spec = _as_begun(folder, _spec_of(pipe, call, group))
    with launched_processes() as state, only_writer(folder) if state.is_main_process else nullcontext():
        notes, pending = _broadcast(state, lambda: _begin(folder, spec, call, pipeline_name(pipe)))
        mine = pending[state.process_index :: state.num_processes]
        watch = _Watch(folder, len(call.labels), on_progress if state.is_main_process else None)
        made = sum(_make(pipe, call, folder, group, mine, set_digest(spec), watch, stop))
        if not state.is_main_process:
            return MadeSet(folder, len(call.labels), made, complete=False, notes=tuple(notes))
        complete = watch.wait(stop if state.num_processes > 1 else lambda: True)
        packed = pack(folder, call.labels) if make_pack and complete else None
        if complete:
            facts = {"complete": True, "pipeline": pipeline_name(pipe), "pack": packed.name if packed else None}
            write_manifest(folder, spec, versions(), facts)
        return MadeSet(folder, len(call.labels), made, complete, packed, tuple(notes))


def check_set(pipe: Pipeline, call: Call, folder: str | Path, group: int = GROUP) -> int:
    """Whether `generate_set` would begin or go on; writes nothing.

    Args:
        pipe: as generate_set.
        call: as generate_set.
        folder: as generate_set.
        group: as generate_set.

    Returns:
        How many of the images are there.

    Raises:
        ValueError: a call that cannot run.
        ImageSetError: the folder holds another set, or other files.
    """
    folder, group = user_path(folder), whole_number("group", group)
    pipe.check(call)
    check_folder(folder, _as_begun(folder, _spec_of(pipe, call, group)))
    return len(present(folder, len(call.labels)))


def _broadcast(
    state: PartialState, decide: Callable[[], tuple[list[str], list[int]]]
) -> tuple[list[str], list[int]]:
    """The first process's decision, in all processes; its error too, so that none waits for ever."""
    decided: list[Any] = [None]
    if state.is_main_process:
        try:
            decided = [decide()]
        except (ValueError, OSError) as error:
            decided = [error]
    if state.num_processes > 1:
        broadcast_object_list(decided)
    if isinstance(decided[0], Exception):
        raise decided[0]
    return decided[0]


def _begin(folder: Path, spec: dict[str, Any], call: Call, pipeline: str) -> tuple[list[str], list[int]]:
    """Notes for the user, and the groups of which an image is missing."""
    notes = begin(folder, spec, versions(), pipeline)
    there, count, group = present(folder, len(call.labels)), len(call.labels), spec["call"]["group"]
    groups = range(-(-count // group))
    return notes, [g for g in groups if not there.issuperset(range(g * group, min((g + 1) * group, count)))]


def _spec_of(pipe: Pipeline, call: Call, group: int) -> dict[str, Any]:
    """Everything that decides the bytes of the images, but for the versions of the libraries."""
    config = call.to_config()
    seeds = [list(key) for key in call.keys]
    first = seeds[0][0]
    if seeds == [[first, k] for k in range(len(seeds))]:
        config["seeds"] = {"seed": first, "images": len(seeds)}
    config["group"] = group
    del config["batch_size"]
    dtype = str(pipe.backbone.dtype).removeprefix("torch.")
    spec = {**provenance(pipe), "dtype": dtype, "device": pipe.device.type, "call": config}
    return json.loads(json.dumps(to_spec(spec)))  # as it will be read back


def _as_begun(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The record in the folder's manifest where it means the same as `spec`, else `spec`.

    A set that was begun before an option got another name, or one more option, thus stays one set.
    """
    if not (folder / FILE).is_file():
        return spec
    try:
        before = read_json(folder / FILE)["asked"]
        call = Call.from_config(
            {**before["call"], "labels": [None], "seeds": [[0, 0]], "batch_size": 1}
        ).to_config()
    except (LookupError, TypeError, ValueError):
        return spec  # `begin` raises what is wrong with it
    read = {key: call[key] for key in ("sampler", "grid", "guidance")}
    return before if {**before, "call": {**before["call"], **read}} == spec else spec


def set_digest(spec: Mapping[str, Any]) -> str:
    """What ties an image to the manifest of its set."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def _make(
    pipe: Pipeline,
    call: Call,
    folder: Path,
    group: int,
    mine: Sequence[int],
    digest: str,
    watch: _Watch,
    stop: Callable[[], bool],
) -> Iterator[int]:
    """Make and write groups of images; yields how many. Images are written while the network makes the next."""
    together = max(call.batch_size // group, 1)
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_WRITERS) as writers:
        for start in range(0, len(mine), together):
            if stop():
                break
            for number in mine[start : start + together]:
                indices = range(number * group, min((number + 1) * group, len(call.labels)))
                pictures = group_pictures(pipe, call, indices, group)
                waiting += [
                    writers.submit(_write, folder, k, picture, call, digest)
                    for k, picture in zip(indices, pictures, strict=True)
                ]
                while len(waiting) > _BACKLOG * group:
                    waiting.popleft().result()  # raises here what went wrong there
                yield len(indices)
            watch.poll()
        for written in waiting:
            written.result()


def group_pictures(pipe: Pipeline, call: Call, indices: range, group: int) -> list[Image.Image]:
    """The images at `indices`, of one group; a group that is not full is made up by repeating its last image."""
    return to_pil(pipe.run(_group(call, indices, group), "raw").images[: len(indices)])


def first_group(call: Call, group: int) -> Call:
    """The call of the first images of a set, as many as the network evaluates together.

    Args:
        call: of the whole set.
        group: how many these are.
    """
    return _group(call, range(min(group, len(call.labels))), group)


def _group(call: Call, indices: range, group: int) -> Call:
    rows = [min(indices.start + k, indices.stop - 1) for k in range(group)]
    return dataclasses.replace(
        call,
        labels=tuple(call.labels[k] for k in rows),
        keys=tuple(call.keys[k] for k in rows),
        batch_size=group,
    )


def _write(folder: Path, index: int, picture: Image.Image, call: Call, digest: str) -> None:
    path = image_path(folder, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"set": digest, "index": index, "label": call.labels[index], "seed": list(call.keys[index])}
    with whole_file(path) as stream:
        stream.write(png_bytes(picture, own))


class _Watch:
    """Counts what all processes have written, for the first of them to show."""

    def __init__(self, folder: Path, total: int, show: Callable[[Progress], None] | None) -> None:
        self.folder, self.total, self.show = folder, total, show
        self.began, self.looked = time.monotonic(), -_LOOK_EVERY
        self.before = len(present(folder, total))

    def poll(self, now: bool = False) -> int:
        """Images on the disk; shown at most every two seconds, and 0 in between, unless `now`."""
        clock = time.monotonic()
        if (self.show is None or clock - self.looked < _LOOK_EVERY) and not now:
            return 0
        self.looked = clock
        done = len(present(self.folder, self.total))
        if self.show is not None:
            seconds = max(clock - self.began, 1e-9)
            self.show(Progress(done, self.total, (done - self.before) / seconds))
        return done

    def wait(self, stop: Callable[[], bool]) -> bool:
        """Whether all images are there, once the other processes have made theirs or `stop` returned True.

        TimeoutError where no new image has come for `_PATIENCE` seconds: the process that was to make it is dead.
        """
        done, since = self.poll(now=True), time.monotonic()
        while done < self.total:
            if stop():
                return False
            if time.monotonic() - since > _PATIENCE:
                raise TimeoutError(
                    f"{self.total - done} images of {self.folder} are other processes' share, and none has come "
                    f"for {_PATIENCE / 60:.0f} minutes: one of them has died or hangs. End what is left of them "
                    "and start the same command again; it makes only the images that are missing"
                )
            time.sleep(0.2)
            before, done = done, self.poll(now=True)
            if done != before:
                since = time.monotonic()
        return True
