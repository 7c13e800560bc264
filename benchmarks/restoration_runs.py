"""One entry of the table of restorations: a method on measurements of images that the pipeline has not seen."""

from __future__ import annotations

import contextlib
import io
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dinit import Pipeline
from dinit.data.digits import Digits
from dinit.data.glyphs import Glyphs
from dinit.evaluation.features.digits_classifier import classify
from dinit.evaluation.features.glyphs_classifier import read_glyphs
from dinit.inverse import OPERATORS, Measurement
from dinit.pipelines.method import nonlinear_methods
from dinit.pipelines.outputs.restoration import Scores, score
from dinit.posterior_conformance import posterior_methods
from dinit.samplers import NoiseSource

OPERATORS_OF: dict[str, dict[str, str]] = {
    "digits-dico": {
        "inpainting": "mask:box=2,2,6,6",
        "x2": "downscale:factor=2",
        "x4": "downscale:factor=4",
        "deblurring": "blur:std=1",
    },
    "glyphs-32": {
        "inpainting": "mask:box=8,8,24,24",
        "x2": "downscale:factor=2",
        "x4": "downscale:factor=4",
        "deblurring": "blur:std=1.5",
        "colourising": "grey",
    },
}
TRUTH, ENLARGED, NOTHING = "truth", "measurement", "no measurement"
REFERENCES = (TRUTH, ENLARGED, NOTHING)
# Beyond the defaults: what the paper of a method runs it under, where the pipeline's own sampler is another.
FURTHER = ("dps under ddpm, 100 steps", "pigdm under ddpm, 50 steps", "tmpd under ddpm, 50 steps")
# Steps that keep a method of many evaluations a step near 160 of them.
STEPS = {"mcmc": 8}
# Images at once: a gradient through all their particles takes longer where it does not fit the cache.
BATCH = {"tds": 4}
# They evaluate most, and would take a fourth of the time of the whole table under CFG.
WITHOUT_CFG = ("tds", "mcmc")
NOISE_STD = 0.05


@dataclass(frozen=True)
class Task:
    """What is run.

    Attributes:
        pipeline: Name of a shipped one.
        problem: A key of its operators.
        guidance: "cfg", the pipeline's own, or "none".
        method: A method, one of REFERENCES, or as in FURTHER.
        truths: Number of images that are measured.
        samples: Of each of them.
    """

    pipeline: str
    problem: str
    guidance: str
    method: str
    truths: int
    samples: int

    @property
    def key(self) -> str:
        return " / ".join((self.pipeline, self.problem, self.guidance, self.method))


@dataclass(frozen=True)
class Entry:
    """What was measured, means over images but for `largest`. Numbers that do not apply are NaN.

    Attributes:
        psnr, ssim: Of the samples.
        mean_psnr, mean_ssim: Of the mean of the samples of a measurement.
        each: `mean_psnr` for every truth.
        accuracy: Share of samples whose class is read as given.
        distance: Root mean square of A(x) - y in standard deviations of the noise, median over samples.
        rank: Of the truth among samples and truth by distance from the mean of the others, from 1.
        largest: The largest absolute value of all samples.
        nfe: Evaluations of the network an image, counted; with CFG both of its conditions count.
        vjp: Backward passes through the network an image, counted.
        seconds: Of a processor an image.
        error: What was refused; empty where nothing was.
    """

    psnr: float = math.nan
    ssim: float = math.nan
    mean_psnr: float = math.nan
    mean_ssim: float = math.nan
    accuracy: float = math.nan
    distance: float = math.nan
    rank: float = math.nan
    largest: float = math.nan
    nfe: float = math.nan
    vjp: float = math.nan
    seconds: float = math.nan
    each: tuple[float, ...] = ()
    error: str = ""

    def worse_by(self, other: Entry) -> tuple[float, float]:
        """By how many decibels the mean is worse than that of another, and the standard error of that."""
        pairs = zip(other.each, self.each, strict=True)
        apart = torch.tensor([one - two for one, two in pairs], dtype=torch.float64)
        return float(apart.mean()), float(apart.std() / math.sqrt(len(apart)))


def tasks(truths: int, samples: int) -> list[Task]:
    """All entries of the table; methods for linear operators alone are left out where the operator is not."""
    found = []
    for pipeline, operators in OPERATORS_OF.items():
        for problem, spec in operators.items():
            linear = OPERATORS.create(spec).linear
            methods = posterior_methods() if linear else nonlinear_methods()
            found += [Task(pipeline, problem, "none", name, truths, samples) for name in (TRUTH, ENLARGED)]
            for guidance in ("none", "cfg"):
                further = [one for one in FURTHER if guidance == "none" and one.split()[0] in methods]
                found += [
                    Task(pipeline, problem, guidance, name, truths, samples)
                    for name in (NOTHING, *methods, *further)
                    if guidance == "none" or name not in WITHOUT_CFG
                ]
    return found


@cache
def opened(name: str) -> Pipeline:
    with contextlib.redirect_stderr(io.StringIO()):
        pipe = Pipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def truths_of(pipeline: str, count: int) -> tuple[Tensor, list[int]]:
    """Images of the test split, (N, C, H, W) in [-1, 1], and their classes."""
    digits = pipeline.startswith("digits")
    data = Digits("test") if digits else Glyphs("test")
    # The class of a glyph is its number modulo 36: every fifth has all of them.
    rows = range(count) if digits else range(0, 5 * count, 5)
    pairs = [data[row] for row in rows]
    return torch.stack([image for image, _ in pairs]), [int(label) for _, label in pairs]


def read_classes(pipeline: str, images: Tensor) -> Tensor:
    """Classes (N,) by the shipped classifier."""
    shown = images.clamp(-1, 1).nan_to_num()
    return classify(shown)[0] if pipeline.startswith("digits") else read_glyphs(shown).characters.argmax(1)


class Counted:
    """Rows that a network is evaluated on, and rows of its backward passes."""

    def __init__(self) -> None:
        self.rows = self.backward = 0

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[Counted]:
        def after(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            self.rows += len(output)
            if output.requires_grad:
                output.register_hook(self._backward)

        handle = network.register_forward_hook(after)
        try:
            yield self
        finally:
            handle.remove()

    def _backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def measured(task: Task) -> Entry:
    """The entry of a task: `samples` restorations of each truth, in one call."""
    torch.set_num_threads(1)
    pipe = opened(task.pipeline)
    truth, classes = truths_of(task.pipeline, task.truths)
    operator = OPERATORS.create(OPERATORS_OF[task.pipeline][task.problem])
    clean = operator.apply(truth)
    noise = NoiseSource(tuple((0, i) for i in range(len(truth)))).normal("measurement", 0, clean)
    y = operator.clean(clean + NOISE_STD * noise, tuple(truth.shape[1:]))
    labels = [label for label in classes for _ in range(task.samples)]
    seen = Measurement(operator, y.repeat_interleave(task.samples, 0), NOISE_STD)
    if task.method in (TRUTH, ENLARGED):
        images, per = (truth if task.method == TRUTH else enlarged(y, truth)), 1
        return scored(task, images, per, truth, classes, Measurement(operator, y, NOISE_STD))
    options: dict[str, Any] = {"guidance": ()} if task.guidance == "none" else {}
    name, _, under = task.method.partition(" under ")
    if task.method != NOTHING:
        options |= {"measurement": seen, "method": name}
    if under:
        sampler, _, steps = under.removesuffix(" steps").partition(", ")
        options |= {"sampler": sampler, "steps": int(steps)}
    elif name in STEPS:
        options["steps"] = STEPS[name]
    batch = BATCH.get(name, 16)
    with Counted().watching(pipe.backbone) as counted, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what diverged: the table has it
        began = time.process_time()
        try:
            images = pipe(labels, output_type="raw", batch_size=batch, **options).images
        except ValueError as refusal:
            return Entry(error=str(refusal))
        seconds = time.process_time() - began
    entry = scored(task, images, task.samples, truth, labels, seen)
    cost = {"nfe": counted.rows, "vjp": counted.backward, "seconds": seconds}
    return Entry(**{**asdict(entry), **{key: value / len(labels) for key, value in cost.items()}})


def enlarged(y: Tensor, truth: Tensor) -> Tensor:
    """Measurements as images: bicubic where they are smaller, grey in every channel; a hole is grey."""
    larger = nn.functional.interpolate(y, tuple(truth.shape[2:]), mode="bicubic", align_corners=False)
    return larger.expand(-1, truth.shape[1], -1, -1).contiguous()


def scored(
    task: Task, images: Tensor, per: int, truth: Tensor, labels: list[int], measurement: Measurement
) -> Entry:
    """The scores of images (N per, C, H, W), blocks of `per` for each truth."""
    found: list[Scores] = [
        score(images[i * per : (i + 1) * per], measurement.rows(slice(i * per, (i + 1) * per)), truth[i : i + 1])
        for i in range(len(truth))
    ]

    def average(name: str) -> float:
        values = [getattr(one, name) for one in found]
        flat = torch.tensor(values, dtype=torch.float64).flatten()
        return float(flat.mean())

    distance = torch.tensor([one.distance for one in found], dtype=torch.float64).flatten()
    right = read_classes(task.pipeline, images) == torch.tensor(labels)
    exact = task.method == TRUTH  # whose error is 0
    return Entry(
        psnr=math.nan if exact else average("psnr"),
        ssim=average("ssim"),
        mean_psnr=math.nan if per == 1 else average("mean_psnr"),
        mean_ssim=math.nan if per == 1 else average("mean_ssim"),
        accuracy=float(right.double().mean()),
        distance=float(distance.median()) / NOISE_STD,
        rank=math.nan if per == 1 else average("rank"),
        largest=float(images.abs().max()),
        each=() if per == 1 else tuple(round(one.mean_psnr or 0.0, 3) for one in found),
    )
