"""State of a training run: the network, its optimiser and its averages, in one process or sharded over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dinit import __version__
from dinit.training.averaging.ema import EMA
from dinit.training.averaging.power_ema import PowerEMA
from dinit.training.finetune.adapters import merged
from dinit.training.optimizer import make_optimizer, step_if_finite
from dinit.training.recipe.model import Recipe
from dinit.training.run.checkpoint import Checkpoint, CheckpointError, optimizer_tensors, restore_optimizer
from dinit.training.sharding import local, put, shard, whole


class TrainState:
    """Network, optimiser and averages; every process builds the same.

    network: a TrainingNetwork with its first weights, the same in every process. With `training.sharding: fsdp2`
    and several processes the weights, their averages and the optimiser's state are sharded over them; `tensors`
    returns and `load` takes whole tensors all the same. ValueError for settings that exclude sharding.
    """

    def __init__(self, recipe: Recipe, network: nn.Module, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sharded = recipe.training.sharding == "fsdp2" and accelerator.num_processes > 1
        if accelerator.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # pyright: ignore
        network = network.to(accelerator.device)
        if self.sharded:
            _check_sharded(recipe)
            shard(network, accelerator.device, accelerator.num_processes)
            self.optimizer: Any = accelerator.prepare(make_optimizer(network, recipe.optimizer))
            self.network: Any = network
        else:
            optimizer = make_optimizer(network, recipe.optimizer)
            self.network, self.optimizer = accelerator.prepare(network, optimizer)
        inner: Any = accelerator.unwrap_model(self.network)
        self.backbone: Any = inner.backbone
        self.auxiliary: nn.Module = getattr(inner, "auxiliary", nn.ModuleList())
        self.parameters = [p for p in inner.parameters() if p.requires_grad]
        self.ema = EMA(self.backbone, recipe.ema.decay, recipe.ema.warmup, self.sharded)
        self.powers = [PowerEMA(self.backbone, width) for width in recipe.ema.widths]

    def release(self) -> None:
        """Drop the wrapper that sums gradients over processes, and with it its reference to a process group.

        For the end of a run, before the process groups are destroyed. Weights, averages and the optimiser's state
        stay readable; the network takes no further training step.
        """
        self.network = self.accelerator.unwrap_model(self.network)

    def __call__(self, *arguments: Any) -> Any:
        """The network's output, in the precision of the recipe."""
        if not self.sharded:
            return self.network(*arguments)  # Accelerate has wrapped it
        with self.accelerator.autocast():
            return self.network(*arguments)

    @contextmanager
    def gradients_of(self, last_part: bool) -> Iterator[None]:
        """Around forward and backward of one accumulated part: processes sum gradients after the last part only."""
        if self.sharded:
            self.network.set_requires_gradient_sync(last_part)
            yield
        elif last_part:
            yield
        else:
            with self.accelerator.no_sync(self.network):
                yield

    def step(self, rate: float, clip_norm: float | None) -> tuple[Tensor, Tensor]:
        """One optimiser step, unless the gradient is not finite. Returns its norm before clipping, and whether that
        is finite, both 0-dimensional on the device and equal in all processes; the host does not wait for them.

        Under a loss scaler (fp16) the scaler skips such steps and lowers its scale: these count as finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(self.parameters, math.inf if clip_norm is None else clip_norm)
        norm = whole(norm) if isinstance(norm, Tensor) else torch.zeros((), device=self.accelerator.device)
        finite = norm.isfinite()
        if self.accelerator.scaler is not None:
            self.optimizer.step()
            finite = torch.ones_like(finite)
        else:
            step_if_finite(self.optimizer, finite)
        self.optimizer.zero_grad()
        return norm, finite

    def update_averages(self, step: int) -> None:
        """Call after optimiser step `step`, also where it was skipped."""
        for average in (self.ema, *self.powers):
            average.update(step)

    def averaged(self, fresh: Callable[[], nn.Module]) -> Any:
        """The network of averaged weights: the EMA's own, or a `fresh` one where they are sharded.

        Never the trained one. Call it in all processes; where weights are sharded, all but the first get None.
        """
        if not self.sharded:
            return self.ema.network
        state = self.ema.state()
        if not self.accelerator.is_main_process:
            return None
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            network = fresh().to(self.accelerator.device)
        network.load_state_dict(state)
        return network.eval().requires_grad_(False)

    def finite(self) -> bool:
        """Whether all weights are finite, in all processes. The host waits for the device."""
        with torch.no_grad():
            bad = sum((~local(p).isfinite().all()).float() for p in self.parameters)
        bad = torch.as_tensor(bad, dtype=torch.float32, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(bad, reduction="sum")
        return not bool(total > 0)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a Checkpoint, whole. Call it in all processes."""
        powers = [power.gathered() for power in self.powers]
        plain = None if self.sharded else merged(self.ema.network)
        return {
            "model": _whole(self.backbone.state_dict()),
            "ema": self.ema.state(),
            "optimizer": _whole(optimizer_tensors(self.optimizer)),
            "powers": {f"{p.sigma_rel}/{name}": value for p in powers for name, value in p.averages.items()},
            "auxiliary": _whole(self.auxiliary.state_dict()),
            "merged": {} if plain is None or plain is self.ema.network else dict(plain.state_dict()),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint. CheckpointError, with the version that wrote it, where it does not fit."""
        try:
            _load(self.backbone, checkpoint.model)
            self.ema.load(checkpoint.ema)
            for power in self.powers:
                power.load({name: checkpoint.powers[f"{power.sigma_rel}/{name}"] for name in power.averages})
            _load(self.auxiliary, checkpoint.auxiliary)
            restore_optimizer(self.optimizer, checkpoint.optimizer)
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step}, written by dinit {checkpoint.version}, does not fit "
                f"the network of this dinit, {__version__}: {error}"
            ) from error


def _check_sharded(recipe: Recipe) -> None:
    given = {"training.precision": recipe.training.precision, "optimizer.kind": recipe.optimizer.kind}
    refused = {"training.precision": ("fp16", "bf16"), "optimizer.kind": ("muon", "adamw or lion")}
    for key, (value, instead) in refused.items():
        if given[key] == value:
            raise ValueError(f"training.sharding fsdp2 does not go with {key} {value}; choose {instead}")


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(value) for name, value in state.items()}


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise ValueError(f"missing or unknown tensors: {', '.join(odd[:5])}")
    for name, tensor in own.items():
        put(tensor, state[name])
