"""Request of the page: plain values, from which the calls, the Python code and the command lines are made."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from dinit.app.spec_text import spec_text
from dinit.pipelines.call import Call, make_guidance
from dinit.pipelines.generate import Pipeline
from dinit.samplers.points import End

MOST_COLUMNS = 4
MOST_STEPS = 10_000  # whose pictures are kept; more is a slip of the hand
MOST_IMAGES = 64  # of one sampler: one batch, so that a picture does not depend on where batches are cut


@dataclass(frozen=True)
class Column:
    """One of the samplers that are compared.

    Attributes:
        sampler: name with options, as "ddim:eta=0.5".
        steps: sampling steps, at least 1.
        grid: name with options; None is the usual one.
        end: of the trajectory; None is the sampler's.
    """

    sampler: str
    steps: int
    grid: str | None = None
    end: str | None = None


@dataclass(frozen=True)
class Request:
    """Images to generate, by one sampler or by several from the same noise.

    Args:
        pipeline: shipped name or folder.
        columns: the samplers, 1 to 4.
        classes: class numbers; none is the null class, or what an unconditional pipeline generates.
        per_class: images of each class, at least 1; 64 in all at most.
        guidance: names with options, the last outermost.
        seed: of the noise, a whole number.

    Raises:
        ValueError: no sampler or too many; too few or too many images; too many steps.
    """

    pipeline: str
    columns: tuple[Column, ...]
    classes: tuple[int, ...] = ()
    per_class: int = 4
    guidance: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.columns) <= MOST_COLUMNS:
            raise ValueError(f"choose 1 to {MOST_COLUMNS} samplers, got {len(self.columns)}")
        if most := [column for column in self.columns if column.steps > MOST_STEPS]:
            name = most[0].sampler.split(":")[0]
            raise ValueError(f"{name}: the page takes {MOST_STEPS} steps at most, got {most[0].steps}")
        if self.per_class < 1:
            raise ValueError(f"the number of images must be at least 1, got {self.per_class}")
        count = self.per_class * max(1, len(self.classes))  # before the labels are made, which may be very many
        if count > MOST_IMAGES:
            raise ValueError(
                f"{count} images are too many for the page, which generates {MOST_IMAGES} at most: "
                "choose fewer classes or fewer images, or use `dinit generate`"
            )

    @property
    def labels(self) -> tuple[int | None, ...]:
        """The label of every image, class by class; None is the null class."""
        chosen: tuple[int | None, ...] = self.classes or (None,)
        return tuple(one for one in chosen for _ in range(self.per_class))

    def calls(self, pipe: Pipeline) -> tuple[Call, ...]:
        """The validated call of each column.

        Args:
            pipe: the opened pipeline.

        Raises:
            ValueError: what cannot run on this pipeline, with the sampler's name where there are several.
        """
        made = []
        for column in self.columns:
            try:
                call = self._call(pipe, column)
                pipe.check(call)
            except ValueError as error:
                name = column.sampler.split(":")[0]
                if len(self.columns) == 1 or name in str(error):
                    raise
                raise ValueError(f"{name}: {error}") from error
            made.append(call)
        return tuple(made)

    def _call(self, pipe: Pipeline, column: Column) -> Call:
        return pipe.prepare(
            list(self.labels),
            sampler=column.sampler,
            steps=column.steps,
            grid=column.grid,
            end=cast("End | None", column.end),
            guidance=list(self.guidance),
            seed=self.seed,
        )


def from_call(call: Call, pipe: Pipeline, name: str) -> Request | None:
    """The request that makes this call.

    Args:
        call: of a manifest.
        pipe: the opened pipeline.
        name: of the pipeline, as the page has it.

    Returns:
        None where the page's controls cannot express the call, such as labels in another order or several seeds.
    """
    seed = call.keys[0][0]
    classes = tuple(dict.fromkeys(label for label in call.labels if label is not None))
    count = len(call.labels) // max(1, len(classes))
    try:
        for grid, end in ((None, None), (None, call.end), (spec_text(call.grid), call.end)):
            column = Column(spec_text(call.sampler), call.steps, grid, end)
            request = Request(name, (column,), classes, count, tuple(map(spec_text, call.guidance)), seed)
            (made,) = request.calls(pipe)
            if _same(made, call):
                return request
    except ValueError:
        return None
    return None


def _same(one: Call, other: Call) -> bool:
    """Whether both make the same images: batches are cut at the same places."""
    a, b = one.to_config(), other.to_config()
    count = len(one.labels)
    a["batch_size"], b["batch_size"] = min(count, one.batch_size), min(count, other.batch_size)
    return a == b


def as_python(request: Request, pipe: Pipeline, device: str | None = None) -> str:
    """Python code that makes the same images, one call for each column.

    Args:
        request: what is generated.
        pipe: its pipeline.
        device: where it was opened, if it was named.
    """
    where = "" if device in (None, "auto") else f", device={device!r}"
    lines = ["from dinit import Pipeline", "", f"pipe = Pipeline.from_pretrained({request.pipeline!r}{where})"]
    guidance = ", ".join(map(repr, request.guidance))
    for column in request.columns:
        lines += [
            "images = pipe(",
            f"    {_labels_in_python(request, pipe)},",
            f"    sampler={column.sampler!r},",
            f"    steps={column.steps},",
            *([] if column.grid is None else [f"    grid={column.grid!r},"]),
            *([] if column.end is None else [f"    end={column.end!r},"]),
            f"    guidance=[{guidance}],",
            f"    seed={request.seed},",
            ").images",
        ]
    return "\n".join(lines) + "\n"


def _labels_in_python(request: Request, pipe: Pipeline) -> str:
    if not request.classes:
        return f"num_images={request.per_class}"
    chosen: Sequence[Any] = [_name(number, pipe) or number for number in request.classes]
    if request.per_class == 1:
        return repr(chosen)
    return f"[label for label in {chosen!r} for _ in range({request.per_class})]"


def as_command(request: Request, pipe: Pipeline, device: str | None = None) -> str:
    """Command lines that make the same images, one for each column; each writes a contact sheet.

    Args:
        request: what is generated.
        pipe: its pipeline.
        device: where it was opened, if it was named.
    """
    return "\n".join(
        " ".join(["dinit generate", *(shlex.quote(word) for word in words)])
        for words in command_words(request, pipe, device)
    )


def command_words(request: Request, pipe: Pipeline, device: str | None = None) -> list[list[str]]:
    """Arguments of `dinit generate`, one list for each column.

    Args:
        request: what is generated.
        pipe: its pipeline.
        device: where it was opened, if it was named.
    """
    if request.classes:
        images = [*_classes_option(request, pipe), "--per-class", str(request.per_class)]
    else:
        images = ["--num-images", str(request.per_class)]
    guidance = [word for one in request.guidance or ("none",) for word in ("--guidance", one)]
    where = [] if device in (None, "auto") else ["--device", str(device)]
    return [
        [
            request.pipeline,
            *images,
            *("--sampler", column.sampler, "--steps", str(column.steps)),
            *([] if column.grid is None else ["--grid", column.grid]),
            *([] if column.end is None else ["--end", column.end]),
            *guidance,
            *("--seed", str(request.seed)),
            *where,
            *("--out", file_name(request, index)),
        ]
        for index, column in enumerate(request.columns)
    ]


def _classes_option(request: Request, pipe: Pipeline) -> list[str]:
    names = [_name(number, pipe) or str(number) for number in request.classes]
    quoted = [_quoted(name) for name in names]
    together = ",".join(quoted)
    if together in (pipe.class_names or ()):  # the name of one class
        return [word for name in quoted for word in ("--classes", name)]
    return ["--classes", together]


def _quoted(name: str) -> str:
    """A name as it stands between commas."""
    if name == name.strip() and name not in ("all", "*") and not set(name) & set(',"\r\n'):
        return name
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="").writerow([name])
    return text.getvalue()


def _name(number: int, pipe: Pipeline) -> str | None:
    """The class's name, where no other class has it."""
    names = pipe.class_names
    return names[number] if names is not None and names.count(names[number]) == 1 else None


def image_names(request: Request, pipe: Pipeline) -> tuple[str, ...]:
    """Name of the class of every image; "" for none.

    Args:
        request: what is generated.
        pipe: its pipeline.
    """
    names = pipe.class_names
    return tuple("" if one is None else str(one) if names is None else names[one] for one in request.labels)


def file_name(request: Request, index: int) -> str:
    """Name of a column's contact sheet: pipeline, sampler and seed.

    Args:
        request: what is generated.
        index: of the column.
    """
    parts = [part for part in request.pipeline.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    stem = parts[-2] if len(parts) > 1 and parts[-1] == "pipeline" else parts[-1] if parts else "samples"
    sampler = request.columns[index].sampler.split(":")[0]
    twice = [column.sampler.split(":")[0] for column in request.columns].count(sampler) > 1
    return f"{stem}-{sampler}{f'-{index + 1}' if twice else ''}-seed{request.seed}.png"


def default_request(pipe: Pipeline, name: str, columns: int = 2) -> Request:
    """The request that the page begins with: the pipeline's own sampler, steps and guidance, and one to compare.

    Args:
        pipe: the opened pipeline.
        name: of it, as the page has it.
        columns: how many samplers, 1 or 2.
    """
    steps = pipe.steps or 20
    own = "ddim" if pipe.sampler is None else spec_text(pipe.sampler)
    other = next(one for one in ("dpmpp-2m", "ddim", "euler") if one != own.split(":")[0])
    grid = None if pipe.grid is None else spec_text(pipe.grid)
    both = (Column(own, steps, grid), Column(other, steps, None))[:columns]
    count = pipe.num_classes
    classes = tuple(range(count)) if count <= 10 else tuple(range(0, count, max(1, count // 4)))[:4]
    per_class = 16 if not classes else max(1, min(4, 40 // len(classes)))
    return Request(name, both, classes, per_class, tuple(map(spec_text, make_guidance(pipe.guidance))), 0)
