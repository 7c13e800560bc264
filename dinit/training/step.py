"""Training loop and its step.

One optimiser step, in `TrainingStep.__call__`: times → x_t → network → loss → gradient → weights → averages. The
loop around it, `TrainingLoop.run`, reports, saves, samples and evaluates at the recipe's intervals, and ends on
request.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from dinit.data import ImageData
from dinit.devices import upload
from dinit.files import remove_leftovers, write_atomically
from dinit.progress import stage
from dinit.training import randomness
from dinit.training.averaging.snapshots import save_snapshot
from dinit.training.batches import Share, batches
from dinit.training.build import make_backbone, make_data, make_network, make_objective
from dinit.training.finetune.transfer import Transfer
from dinit.training.objective import Objective
from dinit.training.optimizer import learning_rate
from dinit.training.recipe.model import Recipe
from dinit.training.run.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from dinit.training.run.data import differs, write_record
from dinit.training.run.divergence import Skips, SpikeDetector, TrainingDiverged, write_skip
from dinit.training.run.folder import (
    CLASSES,
    DIVERGED,
    RunFolderError,
    check_classes,
    read_recipe,
    scalars,
    write_recipe,
)
from dinit.training.run.health import (
    BINS,
    NoiseBins,
    append_line,
    bin_means,
    bin_names,
    describe_session,
    forget_after,
    session,
)
from dinit.training.run.log import LossLog
from dinit.training.run.page import HealthPage
from dinit.training.run.profile import Profile
from dinit.training.run.progress import Display
from dinit.training.run.start import start_lines, usable_workers
from dinit.training.run.stopping import StopRequest, TrainingStopped
from dinit.training.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """The result of one optimiser step, on the device; the host reads it at the log interval alone.

    Attributes:
        loss: Mean loss of this process's samples, 0-dimensional.
        gradient_norm: L2 norm of the gradient before clipping, 0-dimensional, equal in all processes.
        finite: 1 where the gradient was finite, else 0 and the weights were left as they were.
    """

    loss: Tensor
    gradient_norm: Tensor
    finite: Tensor


class TrainingStep:
    """One optimiser step on one process's share of a batch.

    Args:
        recipe: What is trained.
        data: The training images.
        objective: The loss.
        state: Network, optimiser and averages.
        share: Which rows of a batch are this process's, in how many accumulated parts.
        bins: Gathers the loss by noise level.
        profile: Times the parts of a step.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        objective: Objective,
        state: TrainState,
        share: Share,
        bins: NoiseBins,
        profile: Profile,
    ) -> None:
        self.recipe, self.data, self.objective, self.state = recipe, data, objective, state
        self.share, self.bins, self.profile = share, bins, profile

    def __call__(self, step: int, source: Iterator[tuple[Tensor, Tensor]]) -> StepResult:
        """Takes optimiser step number `step` (from 1) on the next images of `source`. No host-device sync.

        Args:
            step: Decides times, noise and dropped labels, together with the recipe's seed.
            source: Images (B, C, H, W) and int64 labels (B,), one accumulated part at a time.

        Returns:
            Loss, gradient norm and whether it was finite, on the device.
        """
        recipe, share, device, profile = self.recipe, self.share, self.state.accelerator.device, self.profile
        with profile.part("noise"):
            t = self.objective.times(share.batch, randomness.time_generator(recipe.seed, step))
            log_snr = self.objective.process.log_snr(t)
            dropped = randomness.dropped_labels(recipe.seed, step, share.batch, recipe.label_dropout)
        total = torch.zeros((), device=device)
        for part in range(share.parts):
            rows = share.rows(part)
            with profile.part("data"):
                x0, labels = next(source)
            with profile.part("noise"):
                labels = torch.where(dropped[rows], self.data.num_classes, labels)
                position = (step - 1) * share.batch + rows.start
                eps = randomness.noise(recipe.seed, position, tuple(x0.shape))
                x0, labels, eps = (upload(v, device) for v in (x0, labels, eps))
            with self.state.gradients_of(last_part=part == share.parts - 1):
                with profile.part("forward"):
                    losses = self.objective.losses(self.state, x0, labels, t[rows], eps, position)
                    loss = losses.mean() / share.parts
                with profile.part("backward"):
                    self.state.accelerator.backward(loss)
            with profile.part("log"):
                self.bins.add(losses, log_snr[rows])
            total += loss.detach()
        with profile.part("optimiser"):
            norm, finite = self.state.step(self.learning_rate(step), recipe.training.clip_norm)
        with profile.part("EMA"):
            self.state.update_averages(step)
        return StepResult(total, norm, finite)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, by the recipe's schedule."""
        recipe, loop = self.recipe, self.recipe.training
        return learning_rate(step, loop.steps, recipe.optimizer.lr, recipe.schedule, loop.extended)


OnStep = Callable[["TrainingLoop", StepResult], None]
Hook = Callable[["TrainingLoop", Any], None]


class TrainingLoop:
    """One process's part of a run: what is trained, the current step, and the loop that continues from it.

    Args:
        recipe: What is trained.
        out: The run's folder.
        accelerator: Of `dinit.pipelines.launch.training_processes`, which must outlive this object.
        progress: Show a progress bar, or a line at intervals.
        profile: Show the time of each part of a step, and write profile.json.
        on_step: Called after every optimiser step with this loop and the step's result. The result's tensors are
            on the device: reading one waits for it.
        preview: Called with this loop and the averaged network, in the first process, when samples are due.
        evaluate: The same, when an evaluation is due.
        begin: Called with this loop in the first process, once the run's files are there.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        accelerator: Accelerator,
        *,
        progress: bool = True,
        profile: bool = False,
        on_step: OnStep | None = None,
        preview: Hook | None = None,
        evaluate: Hook | None = None,
        begin: Callable[[TrainingLoop], None] | None = None,
    ) -> None:
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        self.on_step, self.preview, self.evaluate, self.begin = on_step, preview, evaluate, begin
        self.main = accelerator.is_main_process
        self.show = progress and self.main
        loop = recipe.training
        share = Share(
            loop.batch_size, loop.gradient_accumulation, accelerator.num_processes, accelerator.process_index
        )
        with stage(f"{recipe.name}: reading the data set", enabled=self.show):
            self.data: ImageData = make_data(recipe)
        self.objective = make_objective(recipe)
        torch.manual_seed(recipe.seed)  # the same first weights in every process
        self.transfer: list[Transfer] = []
        backbone = make_backbone(recipe, self.data, self.transfer)
        parameters = sum(parameter.numel() for parameter in backbone.parameters())
        self.session = session(recipe, self.data, parameters, accelerator.device, accelerator.num_processes)
        if loop.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        self.state = TrainState(recipe, make_network(recipe, backbone), accelerator)
        torch.manual_seed(randomness.network_seed(recipe.seed, accelerator.process_index))
        self.skips, self.spikes = Skips(loop.max_skipped), SpikeDetector()
        self.bins = NoiseBins(accelerator.device)
        self.profile = Profile(profile, accelerator.device)
        self.train_step = TrainingStep(
            recipe, self.data, self.objective, self.state, share, self.bins, self.profile
        )
        self.page, self.begun = HealthPage(out, recipe.name), False
        self.step, self.saved, self._seconds, self._began = 0, 0, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all sessions of the run."""
        return self._seconds + time.monotonic() - self._began

    @property
    def final_loss(self) -> float:
        """Mean loss of the last 100 steps, or of as many as there are, which the display and the result show.

        In the first process alone. NaN where no loss was finite.
        """
        return sum(self.log.recent) / len(self.log.recent) if self.log.recent else math.nan

    def run(self) -> None:
        """Trains from the newest checkpoint to the recipe's last step.

        Raises:
            TrainingStopped: SIGTERM or Ctrl-C was received; everything is saved.
            TrainingDiverged: `training.max_skipped` consecutive steps had no finite gradient.
        """
        self._restore()
        self.accelerator.wait_for_everyone()
        if self.main:
            self._begin_files()
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
            display.say(f"{self.recipe.name}: {describe_session(self.session)}")
            for line in (*(line for transfer in self.transfer for line in transfer.lines()), *start_lines(self)):
                display.say(line)
            if other := differs(self.out, self.data):
                display.warn(f"the data is not what it was when the run was begun: {other}")
            if self.main:
                write_record(self.out, self.data)
            if self.begin is not None and self.main:
                self.begin(self)
            try:
                self._steps(display, stop)
            except TrainingDiverged as error:
                if self.main:
                    append_line(self.out / DIVERGED, {"step": self.step, "reason": str(error)})
                raise

    def note(self, event: Mapping[str, Any]) -> None:
        """A line of events.jsonl, of the current step. In the first process alone.

        Args:
            event: Its other keys.
        """
        append_line(self.out / "events.jsonl", {"step": self.step, **event})

    def close(self) -> None:
        """Drop all references to the process groups, so that they can be destroyed while this loop still exists."""
        self.state.release()

    def averaged(self) -> Any:
        """The network of averaged weights, which is sampled from. Called in all processes.

        Returns:
            The network, or None where this process holds a part of it alone (training.sharding).
        """
        return self.state.averaged(lambda: make_backbone(self.recipe, self.data))

    def _begin_files(self) -> None:
        for folder in (self.out, self.out / "checkpoints", self.out / "samples"):
            folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
        write_recipe(self.out, self.recipe)
        (self.out / DIVERGED).unlink(missing_ok=True)
        write_atomically(self.out / CLASSES, json.dumps(self.data.class_names) + "\n")
        self.log = LossLog(self.out / "losses.jsonl", self.step)
        forget_after(self.out / "skipped.jsonl", self.step)
        forget_after(self.out / "health.jsonl", self.step)
        forget_after(self.out / "events.jsonl", self.step)
        self.note({"session": self.session})
        self.begun = True
        self.page.write(now=True)

    def _steps(self, display: Display, stop: StopRequest) -> None:
        loop, profile, share = self.recipe.training, self.profile, self.train_step.share
        source = batches(
            self.data, self.recipe.seed, share, self.step + 1, loop.steps, usable_workers(loop.workers)
        )
        unread: list[StepResult] = []
        self.state.network.train()
        if self.step == 0 and loop.sample_every:
            self._call(self.preview)
        while self.step < loop.steps:
            if number := stop.agreed():
                self._end_early(number, unread, display)
            self.step += 1
            unread.append(self.train_step(self.step, source))
            display.tick(self.step)
            if self.on_step is not None:
                self.on_step(self, unread[-1])
            last = self.step == loop.steps
            save = last or self.step % loop.checkpoint_every == 0
            if save or self.step % loop.log_every == 0:  # only here does the host wait for the device
                with profile.part("log"):
                    self._report(unread, display)
                unread = []
            if last or self.step % self.recipe.ema.snapshot_every == 0:
                self._snapshot()
            if save:
                with profile.part("checkpoint"):
                    self._save()
            if loop.sample_every and (last or self.step % loop.sample_every == 0):
                with profile.part("samples"):
                    self._call(self.preview)
            if self.recipe.evaluation.due(self.step, last):
                with profile.part("evaluation"):
                    self._call(self.evaluate)
            profile.end_step()
        self._show_profile(display)

    def _call(self, hook: Hook | None) -> None:
        """A hook with the averaged network, gathered in all processes and used in the first."""
        network = self.averaged()
        if self.main and hook is not None:
            hook(self, network)

    def _end_early(self, number: int, unread: list[StepResult], display: Display) -> None:
        """Saves all that was trained, then TrainingStopped."""
        if unread:
            self._report(unread, display)
        if self.step > self.saved:
            self._save()
        self._show_profile(display)
        raise TrainingStopped(number, self.step)

    def _report(self, unread: list[StepResult], display: Display) -> None:
        """The steps up to this one, averaged over processes: to the log, the tracker, the display, health.jsonl.

        TrainingDiverged where too many consecutive ones had no finite gradient.
        """
        columns = [[one.loss, one.gradient_norm, one.finite] for one in unread]
        parts = [torch.stack([value.float() for value in column]) for column in zip(*columns, strict=True)]
        mean: Any = self.accelerator.reduce(torch.cat([*parts, self.bins.take()]), reduction="mean")
        values, count = mean.tolist(), len(unread)  # the one place where the host waits
        losses, norms, finite = (values[k * count : (k + 1) * count] for k in range(3))
        first = self.step - count + 1
        if self.main:
            self.log.append(first, losses)
        good = [value for value in losses if math.isfinite(value)]
        mean_loss = sum(good) / len(good) if good else math.nan
        display.show(self.step, self.final_loss if self.main else mean_loss)
        for step, value in self.spikes.spikes(first, losses):
            message = f"the loss of step {step} is {value:.4g}, far above those before it"
            display.warn(message)
            if self.main:
                self.note({"warning": message})
        rate = self.train_step.learning_rate(self.step)
        figures = {"loss": mean_loss, "lr": rate, "images_per_second": display.images_per_second}
        figures["gradient_norm"] = sum(norms) / count
        self._count_skips(first, losses, finite)
        figures["skipped_steps"] = self.skips.total
        self._health(figures, bin_means(values[-2 * BINS :]))
        if self.main:
            self.page.write()

    def _count_skips(self, first: int, losses: list[float], finite: list[float]) -> None:
        batch = self.train_step.share.batch
        for step, (loss, good) in enumerate(zip(losses, finite, strict=True), first):
            if self.main and good < 0.5:
                rows = self.data.indices(self.recipe.seed, (step - 1) * batch, batch)
                write_skip(self.out / "skipped.jsonl", step, loss, rows)
            self.skips.record(step, good > 0.5)

    def _health(self, figures: dict[str, float], by_noise: list[float | None]) -> None:
        if self.main:
            entry = {"step": self.step, **figures, "seconds": round(self.seconds, 2), "loss_by_noise": by_noise}
            append_line(self.out / "health.jsonl", entry)
        if self.recipe.tracker:
            named = zip(bin_names(), by_noise, strict=True)
            noisy = {f"loss_by_log_snr/{name}": value for name, value in named if value is not None}
            self.accelerator.log({**figures, **noisy}, step=self.step)

    def _save(self) -> None:
        """A checkpoint, by the first process. TrainingDiverged, and nothing is saved, for weights not finite."""
        accelerator = self.accelerator
        if not self.state.finite():
            raise TrainingDiverged(
                f"weights are not finite after step {self.step}, which is not saved; the last checkpoint is of "
                f"step {self.saved}. Lower optimizer.lr, or use precision fp32"
            )
        states = gather_object([random_state(accelerator.process_index, accelerator.device)])
        tensors: dict[str, Any] = self.state.tensors()
        self.saved = self.step
        if not self.main:
            return
        checkpoint = Checkpoint(
            step=self.step,
            random={key: state for states_of_one in states for key, state in states_of_one.items()},
            extra={
                "seconds": self.seconds,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "skipped": self.skips.total,
                "skipped_in_a_row": self.skips.consecutive,
            },
            **tensors,
        )
        save_checkpoint(self.out / "checkpoints", checkpoint, self.recipe.training.keep)

    def _restore(self) -> None:
        self._check_moved()
        checkpoint = newest_checkpoint(self.out / "checkpoints")
        steps = gather_object([0 if checkpoint is None else checkpoint.step])
        if len(set(steps)) > 1:
            raise ValueError(f"processes read checkpoints of different steps, {steps}; is {self.out} one folder?")
        if checkpoint is None:
            return
        check_classes(self.out, self.data)
        self.state.load(checkpoint)
        restore_random_state(checkpoint.random, self.accelerator.process_index, self.accelerator.device)
        if self.accelerator.scaler is not None and checkpoint.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(dict(checkpoint.extra["scaler"]))
        self.skips.total = checkpoint.extra.get("skipped", 0)
        self.skips.consecutive = checkpoint.extra.get("skipped_in_a_row", 0)
        self.step = self.saved = checkpoint.step
        self._seconds = checkpoint.extra["seconds"]

    def _check_moved(self) -> None:
        """RunFolderError where the recipe has another path than the run, and other data there."""
        if not (self.out / "recipe.yaml").is_file():
            return
        before, now = (recipe.data.options.get("path") for recipe in (read_recipe(self.out), self.recipe))
        if before != now and (other := differs(self.out, self.data)):
            raise RunFolderError(
                f"{self.out} holds a run on {before}, and {now} is not the same data: {other}; nothing was "
                "written. Give another folder, or the same data"
            )

    def _snapshot(self) -> None:
        for average in self.state.powers:
            gathered = average.gathered()
            if self.main:
                save_snapshot(self.out / "ema", gathered, self.step)

    def _show_profile(self, display: Display) -> None:
        if self.profile.enabled and self.main and self.profile.rows():
            self.profile.write(self.out / "profile.json")
            if self.show:
                display.say(self.profile.table())
