"""Training: one loop over Accelerate, from a recipe to a pipeline folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from dinit.data import ImageData
from dinit.files import only_writer, remove_leftovers
from dinit.pipelines.launch import training_processes
from dinit.pipelines.runs.output import draw_samples, export, make_pipeline
from dinit.training import randomness
from dinit.training.averaging.snapshots import save_snapshot
from dinit.training.batches import Share, batches
from dinit.training.build import make_backbone, make_data, make_network, make_objective
from dinit.training.finetune.adapters import save_adapter
from dinit.training.finetune.transfer import Transfer
from dinit.training.optimizer import learning_rate
from dinit.training.recipe.model import Recipe
from dinit.training.run.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from dinit.training.run.divergence import Skips, SpikeDetector, TrainingDiverged, write_skip
from dinit.training.run.folder import check_run_folder, scalars, write_recipe
from dinit.training.run.health import (
    BINS,
    NoiseBins,
    append_line,
    bin_means,
    bin_names,
    data_statistics,
    forget_after,
)
from dinit.training.run.log import LossLog
from dinit.training.run.page import write_page
from dinit.training.run.profile import Profile
from dinit.training.run.progress import Display
from dinit.training.run.stopping import StopRequest, TrainingStopped
from dinit.training.state import Trained


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


def train(
    recipe: Recipe, out: str | Path, resume: bool = True, progress: bool = True, profile: bool = False
) -> TrainResult:
    """Trains what the recipe says and writes out/pipeline. A run that was stopped goes on where it was.

    out: a new or empty folder, or one that this recipe has begun; anything else raises RunFolderError (a
    ValueError) and nothing is overwritten. It gets recipe.yaml, losses.jsonl, health.jsonl and .html,
    checkpoints/, samples/, the tracker's logs/ and pipeline/. On the CPU the losses are the same, bit for bit,
    however often it was stopped. A step whose gradient is not finite is passed over and written to skipped.jsonl.
    profile: show where the time of a step goes, and write it to profile.json.
    ValueError for settings that this machine cannot run; TrainingDiverged for `training.max_skipped` such steps in
    a row; TrainingStopped, once all is saved, where SIGTERM or Ctrl-C came; OSError where the disk is full or
    another process trains into `out`: the last whole checkpoint is there, and the same call goes on from it.
    """
    out = Path(out)
    check_run_folder(out, recipe, resume)
    finished = _finished(out)
    if finished is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    with training_processes(recipe, out) as accelerator:
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        alone = only_writer(out) if accelerator.is_main_process else nullcontext()
        with alone, torch.random.fork_rng(devices):  # the caller's random numbers are not ours to change
            # No name for the run: only the frames of an exception may hold it, and these are cleared.
            return _Run(recipe, out, accelerator, progress, profile).go()


def _finished(out: Path) -> TrainResult | None:
    """The result of a run that has its pipeline; None where it has not."""
    record = out / "pipeline" / "training.json"
    if not record.exists():
        return None
    facts = json.loads(record.read_text())
    return TrainResult(out, out / "pipeline", facts["steps"], facts["final_loss"], facts["seconds"])


@dataclass(frozen=True)
class _Taken:
    """What a step leaves on the device. loss: this process's mean. norm: of the gradient. finite: 0 or 1."""

    loss: Tensor
    norm: Tensor
    finite: Tensor


class _Run:
    """One process's part of a run: what is trained, and how far it has come."""

    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator, progress: bool, profile: bool) -> None:
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        self.main = accelerator.is_main_process
        self.show = progress and self.main
        loop = recipe.training
        self.share = Share(
            loop.batch_size, loop.gradient_accumulation, accelerator.num_processes, accelerator.process_index
        )
        self.data: ImageData = make_data(recipe)
        self.objective = make_objective(recipe)
        torch.manual_seed(recipe.seed)  # the same first weights in every process
        self.transfer: list[Transfer] = []
        backbone = make_backbone(recipe, self.data, self.transfer)
        if loop.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        self.trained = Trained(recipe, make_network(recipe, backbone), accelerator)
        torch.manual_seed(randomness.network_seed(recipe.seed, accelerator.process_index))
        self.skips, self.spikes = Skips(loop.max_skipped), SpikeDetector()
        self.bins = NoiseBins(accelerator.device)
        self.evaluations: Any = None  # of the first process, where the recipe asks for them
        self.of_data: dict[str, float] | None = None  # read at the first preview
        self.profile = Profile(profile, accelerator.device)
        self.step, self.saved, self.seconds, self.began = 0, 0, 0.0, time.monotonic()

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
            forget_after(self.out / "skipped.jsonl", self.step)
            forget_after(self.out / "health.jsonl", self.step)
        if self.main and self.recipe.evaluation.every:
            from dinit.pipelines.runs.watch import Evaluations  # torch-fidelity is slow to import

            self.evaluations = Evaluations.of(self.recipe, self.out)
        if self.recipe.tracker:
            self.accelerator.init_trackers(self.recipe.name, config=scalars(self.recipe.to_dict()))
        loop = self.recipe.training
        with ExitStack() as opened:
            if self.main:
                opened.callback(self.log.close)
            display = opened.enter_context(
                Display(self.recipe.name, self.step, loop.steps, loop.batch_size, self.show)
            )
            stop = opened.enter_context(StopRequest(self.accelerator.num_processes))
            for line in (line for transfer in self.transfer for line in transfer.lines()):
                display.say(line)
            self._loop(display, stop)
        network = self._averaged()
        if self.main:
            self._page()
            self._export(network)
        self.accelerator.wait_for_everyone()
        result = _finished(self.out)
        assert result is not None, "the pipeline was just written"
        return result

    def _loop(self, display: Display, stop: StopRequest) -> None:
        loop, profile = self.recipe.training, self.profile
        source = batches(self.data, self.recipe.seed, self.share, self.step + 1, loop.steps, loop.workers)
        taken: list[_Taken] = []
        self.trained.network.train()
        if self.step == 0 and loop.sample_every:
            self._sample()
        while self.step < loop.steps:
            number = stop.agreed()
            if number:
                self._end_early(number, taken, display)
            self.step += 1
            taken.append(self._train_step(source))
            last = self.step == loop.steps
            save = last or self.step % loop.checkpoint_every == 0
            if save or self.step % loop.log_every == 0:  # only here does the host wait for the device
                with profile.part("log"):
                    self._report(taken, display)
                taken = []
            if last or self.step % self.recipe.ema.snapshot_every == 0:
                self._snapshot()
            if save:
                with profile.part("checkpoint"):
                    self._save()
            if loop.sample_every and (last or self.step % loop.sample_every == 0):
                with profile.part("samples"):
                    self._sample()
            if self.recipe.evaluation.due(self.step, last):
                with profile.part("evaluation"):
                    self._evaluate()
            profile.end_step()
        self._show_profile(display)

    def _end_early(self, number: int, taken: list[_Taken], display: Display) -> None:
        """Saves all that was trained, then TrainingStopped."""
        if taken:
            self._report(taken, display)
        if self.step > self.saved:
            self._save()
        self._show_profile(display)
        raise TrainingStopped(number, self.step)

    def _train_step(self, source: Iterator[tuple[Tensor, Tensor]]) -> _Taken:
        """One optimiser step. The host does not wait for the device."""
        recipe, share, device, profile = self.recipe, self.share, self.accelerator.device, self.profile
        with profile.part("noise"):
            t = self.objective.times(share.batch, randomness.time_generator(recipe.seed, self.step))
            log_snr = self.objective.process.log_snr(t)
            dropped = randomness.dropped_labels(recipe.seed, self.step, share.batch, recipe.label_dropout)
        total = torch.zeros((), device=device)
        for part in range(share.parts):
            rows = share.rows(part)
            with profile.part("data"):
                x0, labels = next(source)
            with profile.part("noise"):
                labels = torch.where(dropped[rows], self.data.num_classes, labels)
                position = (self.step - 1) * share.batch + rows.start
                eps = randomness.noise(recipe.seed, position, tuple(x0.shape))
                x0, labels, eps = (v.to(device, non_blocking=True) for v in (x0, labels, eps))
            with self.trained.gradients_of(last_part=part == share.parts - 1):
                with profile.part("forward"):
                    losses = self.objective.losses(self.trained, x0, labels, t[rows], eps, position)
                    loss = losses.mean() / share.parts
                with profile.part("backward"):
                    self.accelerator.backward(loss)
            with profile.part("log"):
                self.bins.add(losses, log_snr[rows])
            total += loss.detach()
        self.rate = learning_rate(self.step, recipe.training.steps, recipe.optimizer.lr, recipe.schedule)
        with profile.part("optimiser"):
            norm, finite = self.trained.step(self.rate, recipe.training.clip_norm)
        with profile.part("EMA"):
            self.trained.update_averages(self.step)
        return _Taken(total, norm, finite)

    def _report(self, taken: list[_Taken], display: Display) -> None:
        """The steps up to this one, averaged over processes: to the log, the tracker, the display, health.jsonl.

        TrainingDiverged where too many of them in a row had no finite gradient.
        """
        parts = [torch.stack([getattr(one, name).float() for one in taken]) for name in ("loss", "norm", "finite")]
        mean: Any = self.accelerator.reduce(torch.cat([*parts, self.bins.take()]), reduction="mean")
        values, count = mean.tolist(), len(taken)  # the one place where the host waits
        losses, norms, finite = (values[k * count : (k + 1) * count] for k in range(3))
        first = self.step - count + 1
        if self.main:
            self.log.append(first, losses)
        good = [value for value in losses if math.isfinite(value)]
        mean_loss = sum(good) / len(good) if good else math.nan
        display.show(self.step, mean_loss)
        for step, value in self.spikes.spikes(first, losses):
            display.warn(f"the loss of step {step} is {value:.4g}, far above those before it")
        figures = {"loss": mean_loss, "lr": self.rate, "images_per_second": display.images_per_second}
        figures["gradient_norm"] = sum(norms) / count
        self._count_skips(first, losses, finite)
        figures["skipped_steps"] = self.skips.total
        self._health(figures, bin_means(values[-2 * BINS :]))

    def _count_skips(self, first: int, losses: list[float], finite: list[float]) -> None:
        for step, (loss, good) in enumerate(zip(losses, finite, strict=True), first):
            if self.main and good < 0.5:
                start = (step - 1) * self.share.batch
                rows = self.data.indices(self.recipe.seed, start, self.share.batch)
                write_skip(self.out / "skipped.jsonl", step, loss, rows)
            self.skips.see(step, good > 0.5)

    def _health(self, figures: dict[str, float], by_noise: list[float | None]) -> None:
        if self.main:
            append_line(self.out / "health.jsonl", {"step": self.step, **figures, "loss_by_noise": by_noise})
        if self.recipe.tracker:
            named = zip(bin_names(), by_noise, strict=True)
            noisy = {f"loss_by_log_snr/{name}": value for name, value in named if value is not None}
            self.accelerator.log({**figures, **noisy}, step=self.step)

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _save(self) -> None:
        """A checkpoint, by the first process. TrainingDiverged, and nothing is saved, for weights not finite."""
        accelerator = self.accelerator
        if not self.trained.finite():
            raise TrainingDiverged(
                f"weights are not finite after step {self.step}, which is not saved; the last checkpoint is of "
                f"step {self.saved}. Lower optimizer.lr, or use precision fp32"
            )
        states = gather_object([random_state(accelerator.process_index, accelerator.device)])
        tensors: dict[str, Any] = self.trained.tensors()
        self.saved = self.step
        if not self.main:
            return
        checkpoint = Checkpoint(
            step=self.step,
            random={key: state for states_of_one in states for key, state in states_of_one.items()},
            extra={
                "seconds": self._seconds(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "skipped": self.skips.total,
                "skipped_in_a_row": self.skips.in_a_row,
            },
            **tensors,
        )
        save_checkpoint(self.out / "checkpoints", checkpoint, self.recipe.training.keep)
        self._page()

    def _restore(self) -> None:
        checkpoint = newest_checkpoint(self.out / "checkpoints")
        steps = gather_object([0 if checkpoint is None else checkpoint.step])
        if len(set(steps)) > 1:
            raise ValueError(f"processes read checkpoints of different steps, {steps}; is {self.out} one folder?")
        if checkpoint is None:
            return
        self.trained.load(checkpoint)
        restore_random_state(checkpoint.random, self.accelerator.process_index, self.accelerator.device)
        if self.accelerator.scaler is not None and checkpoint.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(dict(checkpoint.extra["scaler"]))
        self.skips.total = checkpoint.extra.get("skipped", 0)
        self.skips.in_a_row = checkpoint.extra.get("skipped_in_a_row", 0)
        self.step = self.saved = checkpoint.step
        self.seconds = checkpoint.extra["seconds"]

    def _averaged(self) -> Any:
        """The network that is sampled from; asked in all processes. None where this one has none to ask."""
        return self.trained.averaged(lambda: make_backbone(self.recipe, self.data))

    def _snapshot(self) -> None:
        for average in self.trained.powers:
            gathered = average.gathered()
            if self.main:
                save_snapshot(self.out / "ema", gathered, self.step)

    def _sample(self) -> None:
        """samples/step-XXXXXXXX-ema.png, always from the same noise, and what its pixels are like."""
        network = self._averaged()
        if not self.main:
            return
        pipeline = make_pipeline(network, self.recipe, self.objective, self.data, self.accelerator.device)
        target = self.out / "samples" / f"step-{self.step:08d}-ema.png"
        made = draw_samples(pipeline, self.recipe.seed, target)
        self.of_data = self.of_data or data_statistics(self.data)
        entry = {"step": self.step, "samples": made, "data": self.of_data}
        append_line(self.out / "health.jsonl", entry)
        self._page()
        if self.recipe.tracker:
            told = {f"samples/{key}": value for key, value in made.items()}
            self.accelerator.log(told, step=self.step)

    def _evaluate(self) -> None:
        """Scores of the averaged weights, to evaluations.jsonl and the tracker."""
        network = self._averaged()
        if self.evaluations is not None:
            pipeline = make_pipeline(network, self.recipe, self.objective, self.data, self.accelerator.device)
            self.accelerator.log(self.evaluations.figures(pipeline, self.step), step=self.step)

    def _page(self) -> None:
        write_page(self.out, self.recipe.name)

    def _show_profile(self, display: Display) -> None:
        if self.profile.enabled and self.main and self.profile.rows():
            self.profile.write(self.out / "profile.json")
            if self.show:
                display.say(self.profile.table())

    def _export(self, network: Any) -> None:
        facts = {
            "seconds": round(self._seconds(), 2),
            "final_loss": sum(self.log.recent) / max(len(self.log.recent), 1),
            "skipped_steps": self.skips.total,
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            **({"finetune": asdict(self.transfer[0])} if self.transfer else {}),
        }
        save_adapter(network, self.out / "adapter")
        pipeline = make_pipeline(network, self.recipe, self.objective, self.data, self.accelerator.device)
        export(self.out / "pipeline", pipeline, self.recipe, self.data, facts)
