"""Process groups: joining the processes that accelerate launch or torchrun started, and leaving them."""

from __future__ import annotations

import gc
import os
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from dinit.devices import choose_device
from dinit.memory import keep_freed_memory
from dinit.training.recipe.model import Recipe
from dinit.training.run.stopping import PATIENCE

_LEAVE = 20.0  # seconds for the destruction of the process groups, which waits for collectives on their way
_LOST = ("gloo/", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


@contextmanager
def training_processes(recipe: Recipe, out: Path) -> Iterator[Accelerator]:
    """The accelerator of a training run; on every way out its process groups are destroyed, after the model.

    A DistributedDataParallel model owns a process group through its Reducer. If the groups are destroyed first, the
    model (alive in the frames of a traceback) is the last owner: its deallocation joins gloo's thread while it
    holds the interpreter's lock, and that thread may be waiting for the lock to release a tensor of a pending
    collective. So what the frames of an exception hold is released here first.

    Args:
        recipe: What is trained.
        out: The run's folder.

    Yields:
        The accelerator. Its caller keeps no reference of its own to what it prepares.

    Raises:
        ValueError: As `make_accelerator`.
        ConnectionError: Another process of the run has ended, hangs, or never came.
    """
    accelerator = None
    try:
        with _lost_named():
            accelerator = make_accelerator(recipe, out)
            yield accelerator
    finally:
        try:
            if accelerator is not None:
                for tracker in accelerator.trackers:
                    tracker.finish()
        finally:
            if accelerator is not None:
                accelerator.free_memory()  # its own references to the model
            _destroy_groups()
            # Accelerate keeps one state a process; without this a second recipe could not choose its precision.
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def launched_processes(cpu: bool = False) -> Iterator[PartialState]:
    """The launched processes, for work that shares no gradients; what is joined here is left at the end.

    Within another `with launched_processes()`, or during a training, the processes stay joined.

    Args:
        cpu: Work on the CPU even where there is an accelerator.

    Yields:
        Accelerate's state: device, process index, number of processes.

    Raises:
        ValueError: If processes were launched and Accelerate did not join all of them.
        ConnectionError: Another process has ended, hangs, or never came.
    """
    joined_before = bool(PartialState._shared_state)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Processes on CPUs join only with cpu=True; otherwise each would work alone.
    on_cpu = launched > 1 and (cpu or not torch.accelerator.is_available())
    try:
        with _lost_named():
            state = PartialState(cpu=on_cpu, **({"timeout": PATIENCE} if launched > 1 else {}))
            if state.num_processes != launched:
                raise ValueError(
                    f"{launched} processes were launched and Accelerate joined {state.num_processes}, so several "
                    "would do the same work; launch with torchrun or accelerate launch, without settings of its own"
                )
            yield state
    finally:
        if not joined_before:
            _destroy_groups()
            PartialState._reset_state()  # else a training in this process could not choose its device


@contextmanager
def _lost_named() -> Iterator[None]:
    """Around the joint work of several processes: frees the frames of an error, and explains one that the end of
    another process has caused."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        yield
    except BaseException as error:
        if several:  # one process has no group to release, and a debugger may use the frames
            clear_frames(error)
        if several and isinstance(error, RuntimeError) and _is_lost(error):
            raise ConnectionError(
                f"process {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']} waited for another one, "
                f"which has ended, hangs or never came ({error}). Its own message has the reason. End what is left "
                "of them and start the same command again: it continues from what is on the disk"
            ) from error
        raise


def _is_lost(error: RuntimeError) -> bool:
    """Whether it is torch's error for another process that did not answer."""
    return isinstance(error, dist.DistError) or any(part in str(error) for part in _LOST)


def _destroy_groups() -> None:
    """Destroys the process groups, where there are any; gives up with a warning after `_LEAVE` seconds.

    gloo's destructor waits until every collective on its way is done. One that the other processes will never take
    part in, or only after an hour of their own work, is left to the end of this process.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    gc.collect()  # what still holds a group
    failed: list[BaseException] = []

    def destroy() -> None:
        try:
            dist.destroy_process_group()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=destroy, name="destroy process groups", daemon=True)
    thread.start()
    thread.join(_LEAVE)
    if failed:
        warnings.warn(f"the connections to the other processes were not closed in order: {failed[0]}", stacklevel=2)
    if thread.is_alive():
        warnings.warn(
            f"the connections to the other processes are not closed after {_LEAVE:.0f} s, because they do not "
            "answer; this process goes on without, and they will see a closed connection when it ends",
            stacklevel=2,
        )


def clear_frames(error: BaseException) -> None:
    """Releases what the frames of an exception's traceback hold, those of its causes as well."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """Accelerate for a training run, on the recipe's device.

    ValueError where processes do not find each other, or for a device or precision that this machine has not.
    """
    precision, device = recipe.training.precision, recipe.training.device
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if device != "auto":
        choose_device(device)
    kind, _, number = device.partition(":")
    if number and launched > 1:
        raise ValueError(
            f"training.device {device} is one device, and {launched} processes were launched: give {kind}"
        )
    if kind == "cuda" and number:
        torch.cuda.set_device(int(number))  # Accelerate takes the present one
    accelerator = Accelerator(
        # Processes on CPUs join only with cpu=True; otherwise each would train alone.
        cpu=kind == "cpu" or (launched > 1 and not torch.accelerator.is_available()),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=recipe.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate joined {accelerator.num_processes}, so several "
            "runs would write to one folder; launch with torchrun or accelerate launch, without settings of its own"
        )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU, and this run is on the CPU; choose fp32 or bf16")
    if kind not in ("auto", accelerator.device.type):
        raise ValueError(f"Accelerate takes {accelerator.device} in place of {device}; leave training.device out")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
