"""Training: one loop over Accelerate, from a recipe to a pipeline folder."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, gather_object
from torch import Tensor

import dinit
from dinit.data import ImageData
from dinit.files import remove_leftovers, whole_folder
from dinit.pipelines.generate import Pipeline
from dinit.training import randomness
from dinit.training.batches import Share, batches
from dinit.training.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    random_state,
    restore_optimizer,
    restore_random_state,
    save_checkpoint,
)
from dinit.training.ema import EMA
from dinit.training.faults import Skips, SpikeDetector, forget_skips, write_skip
from dinit.training.loss_log import LossLog
from dinit.training.optimizer import learning_rate, make_optimizer
from dinit.training.parts import make_backbone, make_data, make_network, make_objective
from dinit.training.power_ema import PowerEMA
from dinit.training.progress import Display
from dinit.training.recipe import Recipe
from dinit.training.run_folder import check_run_folder, flatten, write_recipe
from dinit.training.sheet import sheet
from dinit.training.snapshots import save_snapshot

_GRID_CLASSES, _GRID_COLUMNS = 10, 8  # of the sample grids


@dataclass(frozen=True)
class TrainResult:
    """folder: of the run. pipeline: the trained pipeline. final_loss: mean of the last 100 steps or fewer.

    seconds: spent training, over all sessions.
    """

    folder: Path
    pipeline: Path
    steps: int
    final_loss: float
    seconds: float


def train(recipe: Recipe, out: str | Path, resume: bool = True, progress: bool = True) -> TrainResult:
    """Trains what the recipe says and writes out/pipeline. A run that was stopped goes on where it was.

    out: a new or empty folder, or one that this recipe has begun; anything else raises RunFolderError (a
    ValueError) and nothing is overwritten. It gets recipe.yaml, losses.jsonl, checkpoints/, samples/, the
    tracker's logs/ and pipeline/. On the CPU the losses are the same, bit for bit, however often it was
    stopped. A step whose gradient is not finite is passed over and written to skipped.jsonl. ValueError for
    settings that this machine cannot run; TrainingDiverged for `training.max_skipped` such steps in a row.
    """
    out = Path(out)
    check_run_folder(out, recipe, resume)
    finished = _finished(out)
    if finished is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    try:
        accelerator = _make_accelerator(recipe, out)
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the caller's random numbers are not ours to change
            result = _Run(recipe, out, accelerator, progress).go()
        accelerator.end_training()
        return result
    finally:
        # Accelerate keeps one state a process; without this a second recipe could not choose its precision.
        AcceleratorState._reset_state(reset_partial_state=True)


def _finished(out: Path) -> TrainResult | None:
    """The result of a run that has its pipeline; None where it has not."""
    record = out / "pipeline" / "training.json"
    if not record.exists():
        return None
    facts = json.loads(record.read_text())
    return TrainResult(out, out / "pipeline", facts["steps"], facts["final_loss"], facts["seconds"])


def _make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    precision = recipe.training.precision
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        # Processes on CPUs find each other only if told that they are on CPUs; else each would train alone.
        cpu=launched > 1 and not torch.accelerator.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=recipe.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate joined {accelerator.num_processes}, so several "
            "runs would write to one folder; launch with torchrun or accelerate launch, without settings of its own"
        )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU, and this run is on the CPU; choose fp32 or bf16")
    return accelerator


class _Run:
    """One process's part of a run: what is trained, and how far it has come."""

    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator, progress: bool) -> None:
        self.recipe, self.out, self.accelerator, self.progress = recipe, out, accelerator, progress
        self.main = accelerator.is_main_process
        loop = recipe.training
        self.share = Share(
            loop.batch_size, loop.gradient_accumulation, accelerator.num_processes, accelerator.process_index
        )
        self.data: ImageData = make_data(recipe)
        self.objective = make_objective(recipe)
        torch.manual_seed(recipe.seed)  # the same first weights in every process
        backbone = make_backbone(recipe, self.data)
        if loop.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        if accelerator.device.type == "cuda":
            backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = make_network(recipe, backbone).to(accelerator.device)
        optimizer = make_optimizer(network, recipe.optimizer)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.backbone: Any = accelerator.unwrap_model(self.network).backbone
        self.beside = network.beside
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.ema = EMA(self.backbone, recipe.ema.decay, recipe.ema.warmup)
        self.powers = [PowerEMA(self.backbone, width) for width in recipe.ema.widths]
        torch.manual_seed(randomness.network_seed(recipe.seed, accelerator.process_index))
        self.skips, self.spikes = Skips(loop.max_skipped), SpikeDetector()
        self.step, self.seconds, self.began = 0, 0.0, time.monotonic()

    def go(self) -> TrainResult:
        """The run from where it stands to its pipeline."""
        self._restore()
        self.accelerator.wait_for_everyone()
        if self.main:
            for folder in (self.out, self.out / "checkpoints", self.out / "samples"):
                folder.mkdir(exist_ok=True)
                remove_leftovers(folder)
            write_recipe(self.out, self.recipe)
            self.log = LossLog(self.out / "losses.jsonl", self.step)
            forget_skips(self.out / "skipped.jsonl", self.step)
        if self.recipe.tracker:
            self.accelerator.init_trackers(self.recipe.name, config=_scalars(self.recipe))
        loop = self.recipe.training
        show = self.progress and self.main
        with Display(self.recipe.name, self.step, loop.steps, loop.batch_size, show) as display:
            self._loop(display)
        if self.main:
            self.log.close()
            self._export()
        self.accelerator.wait_for_everyone()
        result = _finished(self.out)
        assert result is not None, "the pipeline was just written"
        return result

    def _loop(self, display: Display) -> None:
        loop = self.recipe.training
        source = batches(self.data, self.recipe.seed, self.share, self.step + 1, loop.steps, loop.workers)
        losses: list[Tensor] = []
        self.network.train()
        while self.step < loop.steps:
            self.step += 1
            losses.append(self._train_step(source))
            last = self.step == loop.steps
            save = last or self.step % loop.checkpoint_every == 0
            if save or self.step % loop.log_every == 0:  # only here does the host wait for the device
                self._report(losses, display)
                losses = []
            if self.main and self.powers and (last or self.step % self.recipe.ema.snapshot_every == 0):
                for average in self.powers:
                    save_snapshot(self.out / "ema", average, self.step)
            if save:
                self._save()
            if self.main and loop.sample_every and (last or self.step % loop.sample_every == 0):
                self._sample()

    def _train_step(self, source: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One optimiser step. Returns this process's mean loss, on its device."""
        recipe, share, device = self.recipe, self.share, self.accelerator.device
        t = self.objective.times(share.batch, randomness.time_generator(recipe.seed, self.step))
        dropped = randomness.dropped_labels(recipe.seed, self.step, share.batch, recipe.label_dropout)
        total = torch.zeros((), device=device)
        for part in range(share.parts):
            rows = share.rows(part)
            x0, labels = next(source)
            labels = torch.where(dropped[rows], self.data.num_classes, labels)
            position = (self.step - 1) * share.batch + rows.start
            eps = randomness.noise(recipe.seed, position, tuple(x0.shape))
            x0, labels, eps = (v.to(device, non_blocking=True) for v in (x0, labels, eps))
            waits = part < share.parts - 1  # gradients are summed over processes once, at the last part
            with self.accelerator.no_sync(self.network) if waits else nullcontext():
                loss = self.objective.losses(self.network, x0, labels, t[rows], eps, position).mean() / share.parts
                self.accelerator.backward(loss)
            total += loss.detach()
        self._set_learning_rate()
        if self._finite_gradient(total):
            self.optimizer.step()
            for average in (self.ema, *self.powers):
                average.update(self.step)
        self.optimizer.zero_grad()
        return total

    def _finite_gradient(self, loss: Tensor) -> bool:
        """Clips the gradient. False, once counted and written down, where it is not finite in any process.

        Gradients are summed over processes, so that all agree. The host waits for the device here, as a loss scaler
        makes it do; under one (fp16) the scaler itself passes steps over and lowers its scale.
        """
        limit = self.recipe.training.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        if self.accelerator.scaler is not None:
            return True
        finite = norm is None or bool(torch.isfinite(norm))
        if not finite and self.main:
            first = (self.step - 1) * self.share.batch
            rows = self.data.indices(self.recipe.seed, first, self.share.batch)
            write_skip(self.out / "skipped.jsonl", self.step, float(loss), rows)
        self.skips.see(self.step, finite)
        return finite

    def _set_learning_rate(self) -> None:
        recipe = self.recipe
        self.rate = learning_rate(self.step, recipe.training.steps, recipe.optimizer.lr, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def _report(self, losses: list[Tensor], display: Display) -> None:
        """Losses of the steps up to this one, averaged over processes: to the log, the tracker, the display."""
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()  # type: ignore[union-attr]
        first = self.step - len(values) + 1
        finite = [value for value in values if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else math.nan
        if self.main:
            self.log.append(first, values)
        display.show(self.step, mean)
        for step, value in self.spikes.spikes(first, values):
            display.warn(f"the loss of step {step} is {value:.4g}, far above those before it")
        if self.recipe.tracker:
            figures = {"loss": mean, "lr": self.rate, "images_per_second": display.images_per_second}
            figures["skipped_steps"] = self.skips.total
            self.accelerator.log(figures, step=self.step)

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _save(self) -> None:
        accelerator = self.accelerator
        states = gather_object([random_state(accelerator.process_index, accelerator.device)])
        if not self.main:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        checkpoint = Checkpoint(
            step=self.step,
            model=self.backbone.state_dict(),
            ema=self.ema.network.state_dict(),
            optimizer=optimizer_tensors(self.optimizer),
            random={key: state for states_of_one in states for key, state in states_of_one.items()},
            extra={
                "seconds": self._seconds(),
                "scaler": scaler,
                "skipped": self.skips.total,
                "skipped_in_a_row": self.skips.in_a_row,
            },
            powers={f"{p.sigma_rel}/{name}": v for p in self.powers for name, v in p.averages.items()},
            beside=self.beside.state_dict(),
        )
        save_checkpoint(self.out / "checkpoints", checkpoint, self.recipe.training.keep)

    def _restore(self) -> None:
        checkpoint = newest_checkpoint(self.out / "checkpoints")
        if checkpoint is None:
            return
        self.backbone.load_state_dict(checkpoint.model)
        self.ema.network.load_state_dict(checkpoint.ema)
        for power in self.powers:
            power.load({name: checkpoint.powers[f"{power.sigma_rel}/{name}"] for name in power.averages})
        self.beside.load_state_dict(checkpoint.beside)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        restore_random_state(checkpoint.random, self.accelerator.process_index, self.accelerator.device)
        if self.accelerator.scaler is not None and checkpoint.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(dict(checkpoint.extra["scaler"]))
        self.skips.total = checkpoint.extra.get("skipped", 0)
        self.skips.in_a_row = checkpoint.extra.get("skipped_in_a_row", 0)
        self.step, self.seconds = checkpoint.step, checkpoint.extra["seconds"]

    def _pipeline(self) -> Pipeline:
        """The pipeline of the averaged weights, with the autoencoder, read now, where they know latents."""
        sampling = self.recipe.sampling
        pipeline = Pipeline(
            backbone=self.ema.network,
            process=self.objective.process,
            parameterization=self.objective.parameterization,
            class_names=list(self.data.class_names) or None,
            t_max=self.recipe.t_max,
            defaults={
                "sampler": sampling.sampler.spec(),
                "steps": sampling.steps,
                "grid": None if sampling.grid is None else sampling.grid.spec(),
                "guidance": [guidance.spec() for guidance in sampling.guidance],
            },
            **self.data.pipeline_parts(),
        )
        pipeline.to(self.accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _sample(self) -> None:
        """samples/step-XXXXXXXX.png: a row a class, always from the same noise."""
        rows = min(self.data.num_classes, _GRID_CLASSES) or _GRID_COLUMNS
        labels = [row if self.data.num_classes else None for row in range(rows) for _ in range(_GRID_COLUMNS)]
        pictures = self._pipeline()(labels, seed=self.recipe.seed, output_type="pil").images
        picture = sheet(pictures, _GRID_COLUMNS)
        picture.save(self.out / "samples" / f"step-{self.step:08d}.png")

    def _export(self) -> None:
        """pipeline/: what users load, with the recipe and the facts of its training."""
        loop = self.recipe.training
        facts = {
            "steps": loop.steps,
            "images": loop.steps * loop.batch_size,
            "seconds": round(self._seconds(), 2),
            "final_loss": sum(self.log.recent) / max(len(self.log.recent), 1),
            "skipped_steps": self.skips.total,
            "parameters": sum(p.numel() for p in self.backbone.parameters()),
            "data": self.data.fingerprint(),
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "versions": {
                "dinit": dinit.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        with whole_folder(self.out / "pipeline") as temporary:
            self._pipeline().save_pretrained(temporary)
            write_recipe(temporary, self.recipe)
            (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def _scalars(recipe: Recipe) -> dict[str, Any]:
    """The recipe as trackers take it: one level of numbers and words."""
    return {
        key: value if isinstance(value, (int, float, str, bool)) else str(value)
        for key, value in flatten(recipe.to_dict()).items()
    }
