"""Recipe for a data set and a machine: YAML text in which every line has its reason."""

from __future__ import annotations

import inspect
import json
import math
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinit.data.base import DATASETS
from dinit.data.folder import KEPT_BYTES
from dinit.data.survey import Survey
from dinit.training.recipe import rules
from dinit.training.recipe.model import Recipe

_COLUMN, _WIDTH = 34, 118  # where comments begin, and where lines end
_STANDING = '"' + "'#:{}[],&*!|>%@`"  # of YAML's syntax; text with one of them is quoted
_NAMED = 8
VAE = "stabilityai/sd-vae-ft-mse"
"""The autoencoder of a recipe on latents, unless another is given."""


@dataclass(frozen=True)
class Machine:
    """What training runs on.

    Attributes:
        device: 'cpu', 'cuda' or 'mps'.
        cores: CPU cores that this process may use.
        name: of the GPU; empty without one.
        memory: bytes of the GPU, 0 without one.
        bf16: whether the GPU computes in bfloat16.
    """

    device: str = "cpu"
    cores: int = 1
    name: str = ""
    memory: int = 0
    bf16: bool = False

    @property
    def gpu(self) -> bool:
        """Whether the rules for a GPU hold; Apple's count as CPUs, which they are nearer to in speed."""
        return self.device == "cuda"

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' if self.cores > 1 else ''}"
        if not self.name:
            return cores
        return f"{self.name} ({self.memory / 2**30:.0f} GiB), {cores}" if self.memory else f"{self.name}, {cores}"


@dataclass(frozen=True)
class Suggestion:
    """A recipe that fits pictures and machine.

    Attributes:
        name: of the recipe.
        source: the data as it was typed.
        survey: of the data.
        machine: that trains.
        minutes: that training may take.
        size: side of the pictures.
        vae: the autoencoder whose latents are trained on; None for pixels.
        batch: pictures of a step.
        choice: width and steps.
        measured: whether the time of a step was measured, and not estimated.
    """

    name: str
    source: str
    survey: Survey
    machine: Machine
    minutes: float
    size: int
    vae: str | None
    batch: int
    choice: rules.Choice
    measured: bool

    @property
    def side(self) -> int:
        """Side of what the network works on."""
        return self.size // 8 if self.vae else self.size

    @property
    def conditional(self) -> bool:
        """Whether there are classes to choose from."""
        return len(self.survey.counts) > 1

    @property
    def flip(self) -> bool:
        """Whether pictures are mirrored."""
        return self.survey.one_way < rules.ONE_WAY

    @property
    def seen(self) -> float:
        """How often each picture is trained on."""
        return self.batch * self.choice.steps / self.survey.images

    @property
    def latents(self) -> str:
        """Folder of the latents."""
        return f"{self.name.removesuffix('-latent')}-latents"

    def encode_command(self) -> str:
        """The command that encodes the latents."""
        options = [f"path={self.survey.spec['path']}", f"size={self.size}"]
        options += ["check=skip"] if self.survey.unreadable else []
        command = ["dinit", "encode", str(self.vae), "--data", f"folder:{','.join(options)}", "--out", self.latents]
        return shlex.join([*command, *(["--flips"] if self.flip else [])])

    def title(self) -> str:
        """What is trained, from what, at which size, and how long it takes."""
        kind = {"dico": "DiCo", "dit": "DiT"}[rules.backbone(self.side, self.choice.width)["name"]]
        what = "latents of the pictures" if self.vae else "the pictures"
        classes = f", {len(self.survey.counts)} classes" if self.conditional else ""
        run = f"{self.choice.steps:,} steps, {duration(self.choice.minutes)} on {self.machine}"
        return f"{kind} on {what} of {self.source}{classes}, {self.size}×{self.size}: {run}."

    def text(self) -> str:
        """The recipe in YAML."""
        head = [self.title()]
        head += [
            f"Written by `dinit recipe` for {self.survey.images:,} pictures and {self.minutes:g} minutes; the time "
            f"of a step is {'measured on this machine' if self.measured else 'an estimate'}. Change any line."
        ]
        if self.vae:
            head += [f"First, once: `{self.encode_command()}`"]
        head += [f"`dinit train {self.name}.yaml --dry-run` tries it, `dinit train {self.name}.yaml` trains it."]
        lines = [f"# {line}" for part in head for line in _wrapped(part, _WIDTH - 2)]
        for indent, key, value, why in self.entries():
            lines += commented(f"{'  ' * indent}{key}:{'' if value is None else ' ' + plain(value)}", why)
        return "\n".join(lines) + "\n"

    def sections(self) -> dict[str, Any]:
        """The recipe as plain values."""
        found: dict[str, Any] = {}
        stack = [found]
        for indent, key, value, _ in self.entries():
            del stack[indent + 1 :]
            inner: dict[str, Any] = {}
            stack[-1][key] = inner if value is None else value
            stack.append(inner)
        return found

    def entries(self) -> Iterator[tuple[int, str, Any, str]]:
        """(indentation, key, value, reason); a value None begins a section."""
        machine, choice = self.machine, self.choice
        yield 0, "name", self.name, f"of the pipeline; the run is in runs/{self.name}"
        yield from self._data()
        yield from self._backbone()
        yield 0, "process", "flow", "straight path from noise to picture (rectified flow): few steps follow it"
        yield 0, "parameterization", "velocity", "what the network predicts on that path: noise minus picture"
        yield 0, "time", None, "noise levels of training"
        yield 1, "name", "stratified", "spread evenly over each batch, for a steadier loss"
        yield 1, "base", "logit-normal", "more often in the middle, where classes and shapes are decided"
        yield (
            (0, "label_dropout", 0.1, "a tenth of the pictures trains the model without a class, for guidance")
            if self.conditional
            else (0, "label_dropout", 0.0, "one class alone, so there is nothing to guide to")
        )
        yield 0, "optimizer", None, "how weights are updated"
        yield 1, "kind", "muon", "of glyphs after 32,000 pictures, 32 % could be read with Muon, 7 % with AdamW"
        yield 1, "lr", rules.learning_rate(choice.width), "0.012 at width 16, and lower as 1/√width"
        yield 1, "betas", [0.95, 0.99], "Muon's momentum, and AdamW's, which trains what is no matrix"
        yield 0, "schedule", None, "learning rate over the run"
        yield 1, "kind", "cosine", "falls to 0 at the last step"
        yield 1, "warmup_steps", rules.warmup_steps(choice.steps), "a fiftieth of the steps, 10 to 500"
        yield 0, "ema", None, "average of the weights, which is what generates"
        yield 1, "decay", rules.ema_decay(choice.steps), "over about a tenth of the run"
        yield 0, "training", None, "the loop"
        yield 1, "steps", choice.steps, self._steps_reason()
        device = "a GPU" if machine.gpu and self.batch > 32 else "a CPU" if not machine.gpu else "a small set"
        yield 1, "batch_size", self.batch, f"pictures in a step; {self.batch} suit {device}"
        workers, why = self._workers()
        yield 1, "workers", workers, why
        if machine.bf16:
            yield 1, "precision", "bf16", f"{machine.name} computes faster in it; weights stay in fp32"
        yield 1, "sample_every", rules.every(choice.steps, 10), "ten previews in the run's samples/ and health.html"
        yield 1, "checkpoint_every", rules.every(choice.steps, 20), "an interrupted run repeats a twentieth at most"
        yield 0, "sampling", None, "how the trained pipeline generates; all of it can be changed at each call"
        yield 1, "sampler", "dpmpp-2m", "DPM-Solver++(2M): sharp in few steps; `dinit list samplers` has others"
        yield 1, "steps", 16, "evaluations of the network for a picture; more change little"
        if self.conditional:
            yield 1, "guidance", None, "towards the class"
            yield 2, "name", "cfg", "classifier-free guidance, which label_dropout makes possible"
            yield 2, "scale", 2.0, "1 is none; higher makes classes clearer and pictures less diverse: try 1.5 to 4"
        yield 0, "evaluation", None, "scores during training"
        yield 1, "every", 0, f"none, to save time; afterwards: `dinit evaluate runs/{self.name}`"

    def _data(self) -> Iterator[tuple[int, str, Any, str]]:
        survey = self.survey
        names = [f"{name} ({count:,})" for name, count in survey.counts.items()]
        rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        listed = ", ".join(names[:_NAMED]) + rest if self.conditional else f"{survey.images:,} pictures"
        yield 0, "data", None, listed
        asymmetry = f"pictures of a class share {100 * survey.one_way:.0f} % of their left-right asymmetry"
        if self.flip:
            flip = f"mirrors half of the pictures: they face either way ({asymmetry}; from 5 % on: false)"
        else:
            flip = f"{asymmetry}, as letters or products that face one way do; mirrored they would be wrong"
        if self.vae:
            yield 1, "name", "latents", "of an autoencoder: such pictures have too many pixels to train on"
            yield 1, "path", self.latents, "of the command above"
            return
        known = inspect.signature(DATASETS[survey.spec["name"]]).parameters
        for key, value in survey.spec.items():
            if key != "horizontal_flip":
                yield 1, key, value, self._given(key, value)
        if survey.shape is None:
            yield 1, "size", self.size, self._size_reason()
            colour = f"{100 * (1 - survey.grey):.0f} % of the pictures have colour"
            yield 1, "channels", survey.channels, f"3 for colour, 1 for grey: {colour}"
        if "horizontal_flip" in known and survey.spec["name"] != "latents":
            yield 1, "horizontal_flip", self.flip, flip
        if survey.shape is None:
            bad = len(survey.unreadable)
            were = "were decoded" if survey.complete else "looked at"
            yield (
                (1, "check", "skip", f"leaves out what cannot be read, as {bad} of the files")
                if bad
                else (1, "check", True, f"refuses a picture that cannot be read; none of those that {were}")
            )

    def _given(self, key: str, value: Any) -> str:
        if key == "name":
            return "a sub-folder for each class" if value == "folder" else f"{self.survey.images:,} pictures"
        return "from where `dinit train` is called" if key == "path" else "as given"

    def _size_reason(self) -> str:
        survey = self.survey
        width, height = np.median(survey.sides, axis=0).astype(int)
        cut = f", of which the central square is used ({100 / survey.aspect:.0f} %)" if survey.aspect > 1.05 else ""
        larger = self.size >= 32 and survey.short_side >= 2 * self.size and not self.vae
        cost = f"; {2 * self.size} would take four times as long" if larger else ""
        if self.size > survey.short_side:
            cost = "; larger than the pictures, which are enlarged"
        return f"side in pixels; the pictures are {width}×{height} (median){cut}{cost}"

    def _backbone(self) -> Iterator[tuple[int, str, Any, str]]:
        options, choice = rules.backbone(self.side, self.choice.width), self.choice
        images = self.survey.images
        yield 0, "backbone", None, f"the network, for {self.side}×{self.side}"
        if options["name"] == "dico":
            yield 1, "name", "dico", "DiCo, of convolutions: draws whole shapes earlier than a DiT at this cost"
        else:
            yield 1, "name", "dit", f"DiT: DiCo needs a side that is a multiple of 4, and this is {self.side}"
            yield 1, "patch_size", options["patch_size"], "divides the side"
        if choice.width >= rules.widest(images) and choice.width < rules.WIDTHS[-1]:
            why = f"channels; wider networks would learn {images:,} pictures by heart"
        elif choice.width == rules.WIDTHS[0]:
            why = "channels; the narrowest that is tried, for the time"
        else:
            why = f"channels; the widest that leaves {choice.enough:,} steps in {self.minutes:g} minutes"
        yield 1, "hidden_size", options["hidden_size"], f"{why} ({1000 * choice.seconds:.0f} ms a step)"
        if options["name"] == "dico":
            yield (
                1,
                "depth",
                options["depth"],
                "blocks at full, 1/2, 1/4, 1/2 and full resolution: most where cheap",
            )
        else:
            yield 1, "depth", options["depth"], "blocks"
            yield 1, "num_heads", options["num_heads"], "of 32 channels each"
        rate = rules.dropout(self.seen)
        why = "against learning a small set by heart" if rate else "no picture is seen so often that it needs some"
        yield 1, "dropout", rate, why

    def _steps_reason(self) -> str:
        choice = self.choice
        often = f"each picture is seen {self.seen:,.0f} times" if self.seen >= 1.5 else "each picture is seen once"
        if choice.limit == "pictures":
            return f"{often}, and more would learn them by heart: {duration(choice.minutes)}"
        return f"what {self.minutes:g} minutes hold at {self.batch / choice.seconds:,.0f} pictures/s; {often}"

    def _workers(self) -> tuple[int, str]:
        """Processes that read data, and the reason."""
        survey, many = self.survey, min(max(self.machine.cores - 1, 1), 8)
        if self.vae:
            return min(many, 2), "processes that read the latents"
        size = survey.images * survey.channels * self.size**2
        if survey.shape is None and size <= KEPT_BYTES:
            return 0, f"processes that read pictures; none: decoded once, they take {max(size / 2**20, 1):.0f} MiB"
        if survey.shape is not None and survey.seconds == 0:
            return 0, "processes that read pictures; none: they are in memory"
        return many if self.machine.gpu else 1, "processes that read pictures while the network trains"

    def remarks(self) -> Iterator[str]:
        """What the user should know of the pictures, and what to do."""
        survey, choice = self.survey, self.choice
        if survey.unreadable:
            shown = ", ".join(f"{file} ({why})" for file, why in survey.unreadable[:3])
            more = len(survey.unreadable) - 3
            count = f"{len(survey.unreadable)} file{'s' if len(survey.unreadable) > 1 else ''} cannot be read"
            yield f"{count} and will be left out (check: skip): {shown}{f' and {more} more' if more > 0 else ''}"
        small = rules.small_classes(survey.counts) if self.conditional else []
        if small:
            listed = ", ".join(f"{name} ({survey.counts[name]})" for name in small[:_NAMED])
            rest = f" and {len(small) - _NAMED} more" if len(small) > _NAMED else ""
            yield (
                f"fewer than {rules.FEW} pictures in class {listed}{rest}: add pictures, join the class to another "
                "one, or move its folder elsewhere"
            )
        if self.conditional and rules.is_uneven(survey.counts):
            most, least = (pick(survey.counts, key=lambda name: survey.counts[name]) for pick in (max, min))
            share = 100 * survey.counts[least] / survey.images
            yield (
                f"class {most} has {survey.counts[most]:,} pictures and {least} {survey.counts[least]:,}: training "
                f"sees {least} in {share:.2g} % of its pictures; add pictures to it, or take some of {most} away"
            )
        if survey.images < 500:
            yield (
                f"{survey.images} pictures are few: the model will repeat some of them; `dinit evaluate` measures "
                "it (nearest training images)"
            )
        if not self.conditional:
            yield "one class: the model generates without a choice of class. Classes are sub-folders"
        if choice.limit == "time" and choice.steps < rules.LEAST:
            yield (
                f"{self.minutes:g} minutes are {choice.steps:,} steps here: pictures will be blurred. "
                f"--minutes {math.ceil(choice.minutes_for_enough)} holds {choice.enough:,}"
            )
        reading = survey.seconds * self.batch / max(self._workers()[0], 1)
        if self._workers()[0] and reading > choice.seconds and not self.vae:
            yield (
                f"reading is slower than training ({reading:.2g} s for a step of {choice.seconds:.2g} s): save the "
                "pictures smaller once, or use a machine with more cores"
            )

    def recipe(self) -> Recipe:
        """The recipe as a value, its types checked and its data set not opened."""
        return Recipe.model_validate_json(json.dumps(self.sections()), strict=True)


def duration(minutes: float) -> str:
    """A time in words: '30 minutes', '2.5 hours'."""
    if minutes < 1:
        return "1 minute"
    if minutes < 120:
        return f"{minutes:.0f} minute{'' if round(minutes) == 1 else 's'}"
    return f"{minutes / 60:.3g} hours"


def plain(value: Any) -> str:
    """A value in YAML, on one line."""
    if isinstance(value, Mapping | list | tuple | bool | float | int) or value is None:
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    simple = text.isprintable() and not any(one in _STANDING for one in text) and text == text.strip() != ""
    words = text.lower() in ("true", "false", "null", "yes", "no", "on", "off", "~")
    numeric = text[:1].isdigit() or text[:1] in "-+.?"
    return text if simple and not words and not numeric else json.dumps(text, ensure_ascii=False)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def commented(text: str, why: str) -> list[str]:
    """A line of YAML with its comment, continued below where it is long."""
    column = max(_COLUMN, len(text) + 2) if len(text) < 60 else 0
    if not column:
        indent = text[: len(text) - len(text.lstrip())]
        return [*(f"{indent}# {line}" for line in _wrapped(why, _WIDTH - 2 - len(indent))), text]
    first, *rest = _wrapped(why, _WIDTH - 2 - column)
    return [f"{text:<{column}}# {first}", *(f"{'':<{column}}# {line}" for line in rest)]


def suggest(
    survey: Survey,
    machine: Machine,
    measure: Callable[[Suggestion], float] | None,
    *,
    name: str,
    source: str,
    minutes: float,
    size: int | None = None,
    vae: str = VAE,
) -> Suggestion:
    """A recipe for a data set and a machine.

    Args:
        survey: Of the data.
        machine: That trains.
        measure: Seconds of a step of a suggestion, whose steps are not chosen yet; None estimates.
        name: Of the recipe.
        source: The data as it was typed, for comments.
        minutes: That training may take.
        size: Side of the pictures of a folder, in pixels; None chooses.
        vae: Autoencoder for a size of 128 or more.

    Returns:
        The suggestion.

    Raises:
        ValueError: A size that is not accepted, or minutes that are not positive.
    """
    rules.check_minutes(minutes)
    if size is not None:
        if survey.shape is not None:
            raise ValueError(f"--size is for folders; the pictures of {source} are {survey.shape}×{survey.shape}")
        rules.check_size(size)
    side = size or survey.shape or rules.data_size(survey.short_side, machine.gpu, minutes)
    latent = survey.shape is None and side >= rules.LATENT_FROM
    batch = rules.batch_size(machine.gpu, survey.images)
    draft = Suggestion(
        name, source, survey, machine, minutes, side, vae if latent else None, batch,
        choice=rules.Choice(rules.WIDTHS[0], 1.0, 1000, 1000, "time"), measured=measure is not None,
    )  # fmt: skip

    def step_seconds(width: int) -> float:
        if measure is None:
            return rules.estimated_step(draft.side, batch, width, machine.cores, machine.gpu)
        return measure(replace(draft, choice=replace(draft.choice, width=width)))

    return replace(draft, choice=rules.choose(step_seconds, survey.images, batch, minutes, machine.gpu))
