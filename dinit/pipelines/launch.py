"""Process groups: joining the processes that accelerate launch or torchrun started, and leaving them."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from dinit.memory import keep_freed_memory
from dinit.training.recipe.model import Recipe

_PATIENCE = timedelta(hours=2)  # for what one process does alone while the others wait: grids, checkpoints


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
    """
    accelerator = None
    try:
        accelerator = make_accelerator(recipe, out)
        yield accelerator
    except BaseException as error:
        clear_frames(error)
        raise
    finally:
        if accelerator is not None:
            accelerator.free_memory()  # its own references to the model, and a garbage collection
            gc.collect()
            accelerator.end_training()
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
    """
    joined_before = bool(PartialState._shared_state)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Processes on CPUs find each other only if they are said to be on CPUs; else each would work alone.
    on_cpu = launched > 1 and (cpu or not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu, **({"timeout": _PATIENCE} if launched > 1 else {}))
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate joined {state.num_processes}, so several would do "
            "the same work; launch with torchrun or accelerate launch, without settings of its own"
        )
    try:
        yield state
    except BaseException as error:
        clear_frames(error)
        raise
    finally:
        if not joined_before:
            gc.collect()
            state.destroy_process_group()
            PartialState._reset_state()  # else a training in this process could not choose its device


def clear_frames(error: BaseException) -> None:
    """Releases what the frames of an exception's traceback hold, those of its causes as well."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """Accelerate for a training run. ValueError where processes do not find each other, or for fp16 on a CPU."""
    precision = recipe.training.precision
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        # Processes on CPUs find each other only if told that they are on CPUs; else each would train alone.
        cpu=launched > 1 and not torch.accelerator.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=recipe.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate joined {accelerator.num_processes}, so several "
            "runs would write to one folder; launch with torchrun or accelerate launch, without settings of its own"
        )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU, and this run is on the CPU; choose fp32 or bf16")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
