"""Controls of the page: their components, the request that they hold, and the controls of a request."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dinit.app.options import Option, form_values, options_of, text_of_form
from dinit.app.request import MOST_COLUMNS, Column, Request
from dinit.checkpoints.runs import is_checkpoint
from dinit.pipelines.generate import Pipeline
from dinit.registry import Registry
from dinit.samplers import GRIDS, SAMPLERS
from dinit.samplers.guidance import GUIDANCES, apply_guidance

MOST_GUIDANCES = 3
NONE = "–"
USUAL = "usual"
_KINDS = ("slider", "choice", "number", "switch", "text")


class OptionForm:
    """Components for the options of whichever entry of a registry is chosen; what it does not need is hidden.

    The components are made once: another entry changes their labels, ranges and choices. Call it inside a layout.

    Args:
        registry: of samplers or guidances.
    """

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry
        counts = [Counter(one.kind for one in options_of(registry[name])) for name in registry]
        make: dict[str, Any] = {
            "slider": lambda: gr.Slider(0, 1, visible=False, container=True),
            "choice": lambda: gr.Dropdown([], visible=False, min_width=120, allow_custom_value=True),
            "number": lambda: gr.Number(visible=False, min_width=120, step=0.1),
            "switch": lambda: gr.Checkbox(visible=False, min_width=120),
            "text": lambda: gr.Textbox(visible=False, min_width=240),
        }
        self.pool = {kind: [make[kind]() for _ in range(max(one[kind] for one in counts))] for kind in _KINDS}
        self.holds = gr.Textbox(NONE, visible=False)  # name of the entry whose values the others hold

    @property
    def components(self) -> list[Any]:
        """All components, in a fixed order."""
        return [*(one for kind in _KINDS for one in self.pool[kind]), self.holds]

    def _places(self, name: str) -> Iterator[tuple[int, Option]]:
        """The place in `components` of each option of an entry."""
        starts = {kind: sum(len(self.pool[one]) for one in _KINDS[: _KINDS.index(kind)]) for kind in _KINDS}
        for option in options_of(self.registry[name]) if name in self.registry.names() else ():
            yield starts[option.kind], option
            starts[option.kind] += 1

    def updates(self, name: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """Updates of all components for an entry.

        Args:
            name: of the entry; another text hides all.
            values: of `form_values`; None is the entry's defaults.
        """
        updates = [*[gr.update(visible=False)] * (len(self.components) - 1), name]
        if name not in self.registry.names():
            return updates
        given = form_values(self.registry.create(name)) if values is None else values
        for place, option in self._places(name):
            updates[place] = _update(option, given.get(option.name))
        return updates

    def read(self, name: str, values: Sequence[Any]) -> str:
        """The text form of the entry with what its components hold.

        Between the choice of an entry and the arrival of its fields the components hold the values of another one:
        then it is the entry's defaults, with which the fields arrive.

        Args:
            name: of the entry.
            values: of `components`.

        Raises:
            ValueError: a value that the entry refuses.
        """
        arrived = values[-1] == name
        given = {option.name: values[place] for place, option in self._places(name)} if arrived else {}
        return text_of_form(self.registry, name, given)


def _update(option: Option, value: Any) -> Any:
    label = option.name.replace("_", " ")
    common: dict[str, Any] = {"label": label, "visible": True, "value": value}
    if option.kind == "slider":
        low, high = option.low or 0.0, max(option.high or 1.0, value or 0.0)
        step = 1 if option.whole else 0.1 if high - low > 2 else 0.01
        return gr.update(minimum=low, maximum=high, step=step, **common)
    if option.kind == "choice":
        return gr.update(choices=list(option.choices), **common)
    if option.kind == "number":
        default = "∞" if option.default == float("inf") else "−∞" if option.default == -float("inf") else "none"
        return gr.update(placeholder=default if option.empty else "", step=1 if option.whole else 0.1, **common)
    return gr.update(**common)


@dataclass(frozen=True)
class SamplerSlot:
    """Components of one sampler of the comparison."""

    group: Any
    sampler: Any
    steps: Any
    grid: Any
    form: OptionForm
    more: Any  # around grid and form

    @property
    def components(self) -> list[Any]:
        """All, in the order in which `Controls.read` takes them."""
        return [self.sampler, self.steps, self.grid, *self.form.components]


@dataclass(frozen=True)
class GuidanceSlot:
    """Components of one guidance of the stack."""

    group: Any
    guidance: Any
    form: OptionForm

    @property
    def components(self) -> list[Any]:
        """All, in the order in which `Controls.read` takes them."""
        return [self.guidance, *self.form.components]


class Controls:
    """All controls. Made inside a layout, in their order on the page.

    Args:
        names: of the pipelines that are offered.
    """

    def __init__(self, names: Sequence[str]) -> None:
        gr.HTML('<h2 class="part">What</h2>')
        with gr.Group():
            self.pipeline = gr.Dropdown(list(names), value=names[0], label="Pipeline", filterable=len(names) > 12)
            self.holds = gr.Textbox("", visible=False)  # name of the pipeline that the controls were filled for
            self.facts = gr.HTML(elem_classes="facts")
            self.classes = gr.Dropdown([], multiselect=True, label="Classes (none: unconditional)")
            with gr.Row(elem_classes="small"):
                self.all_classes = gr.Button("All classes", size="sm", min_width=60, elem_id="all-classes")
                self.no_classes = gr.Button("None", size="sm", min_width=60, elem_id="no-classes")
            with gr.Row():
                self.per_class = gr.Number(1, label="Images per class", min_width=90)
                self.seed = gr.Number(0, label="Seed", min_width=90)
                self.dice = gr.Button("New seed", min_width=52, scale=0, elem_id="dice")
        gr.HTML('<h2 class="part">How</h2>')
        self.samplers = [self._sampler_slot(index) for index in range(MOST_COLUMNS)]
        self.guidances = [self._guidance_slot(index) for index in range(MOST_GUIDANCES)]

    def _sampler_slot(self, index: int) -> SamplerSlot:
        with gr.Group(visible=index == 0) as group:
            with gr.Row():
                label = "Sampler" if index == 0 else "Compare with"
                sampler = gr.Dropdown([NONE, *SAMPLERS], value=NONE, label=label, scale=3, min_width=150)
                steps = gr.Number(20, label="Steps", scale=1, min_width=76, visible=False)
            with gr.Accordion("Grid and options", open=False, visible=False) as more, gr.Row():
                grids = [name for name in GRIDS if name not in ("searched", "times")]
                grid = gr.Dropdown(
                    [USUAL, *grids], value=USUAL, label="Grid", min_width=120, allow_custom_value=True
                )
                form = OptionForm(SAMPLERS)
        return SamplerSlot(group, sampler, steps, grid, form, more)

    def _guidance_slot(self, index: int) -> GuidanceSlot:
        with gr.Group(visible=index == 0) as group:
            label = "Guidance" if index == 0 else "and outside it"
            guidance = gr.Dropdown([NONE], value=NONE, label=label)
            with gr.Row():
                form = OptionForm(GUIDANCES)
        return GuidanceSlot(group, guidance, form)

    @property
    def values(self) -> list[Any]:
        """The components that `read` takes the values of, in this order."""
        slots = [*self.samplers, *self.guidances]
        plain = [self.pipeline, self.holds, self.classes, self.per_class, self.seed]
        return [*plain, *(one for slot in slots for one in slot.components)]

    @property
    def outputs(self) -> list[Any]:
        """The components that `show` updates, in this order."""
        slots = [*self.samplers, *self.guidances]
        more = [slot.more for slot in self.samplers]
        return [*self.values, *(slot.group for slot in slots), *more, self.facts]

    def read(self, values: Sequence[Any]) -> Request | str:
        """The request that the controls hold.

        Args:
            values: of the components of `values`.

        Returns:
            The name of the pipeline alone, where it was chosen and its own settings have not arrived yet.

        Raises:
            ValueError: a number that is missing, or an option that is refused.
        """
        rest = list(values)
        name, holds, classes, per_class, seed = (rest.pop(0) for _ in range(5))
        if name != holds:
            return str(name)
        columns = []
        for slot in self.samplers:
            sampler, steps, grid, *options = (rest.pop(0) for _ in slot.components)
            if sampler not in (None, NONE):
                number = _number(f"the number of steps of {sampler}", steps)
                placed = None if grid in (None, "", USUAL) else grid
                columns.append(Column(slot.form.read(sampler, options), number, placed))
        stack = []
        for slot in self.guidances:
            guidance, *options = (rest.pop(0) for _ in slot.components)
            if guidance not in (None, NONE):
                stack.append(slot.form.read(guidance, options))
        count, number = _number("the number of images per class", per_class), _number("the seed", seed)
        return Request(str(name), tuple(columns), tuple(classes or ()), count, tuple(stack), number)

    def show(self, request: Request, pipe: Pipeline) -> list[Any]:
        """Updates of `outputs` for a request.

        Args:
            request: what the controls are to hold.
            pipe: its pipeline.
        """
        names = pipe.class_names or [str(number) for number in range(pipe.num_classes)]
        choices = [(name, number) for number, name in enumerate(names)]
        label = "Classes (none: unconditional)" if pipe.num_classes else "Classes (this pipeline has none)"
        updates: list[Any] = [
            request.pipeline,
            request.pipeline,
            gr.update(choices=choices, value=list(request.classes), interactive=bool(choices), label=label),
            request.per_class,
            request.seed,
        ]
        for slot, column in _padded(self.samplers, request.columns):
            if column is None:
                updates += [NONE, gr.update(visible=False), USUAL, *slot.form.updates(NONE)]
                continue
            part = SAMPLERS.create(column.sampler)
            name, listed = _name(part, column.sampler, SAMPLERS)
            form = slot.form.updates(name, form_values(part) if listed else None)
            known = [NONE, *SAMPLERS] if listed else [NONE, name, *SAMPLERS]
            updates += [gr.update(choices=known, value=name), gr.update(value=column.steps, visible=True)]
            updates += [column.grid or USUAL, *form]
        offered = [NONE, *guidances_for(pipe)]
        for slot, text in _padded(self.guidances, request.guidance):
            if text is None:
                updates += [gr.update(choices=offered, value=NONE), *slot.form.updates(NONE)]
                continue
            part = GUIDANCES.create(text)
            name, _ = _name(part, text, GUIDANCES)
            form = slot.form.updates(name, form_values(part))
            updates += [gr.update(choices=list(dict.fromkeys([*offered, name])), value=name), *form]
        for slots, used in ((self.samplers, len(request.columns)), (self.guidances, len(request.guidance))):
            updates += [gr.update(visible=index <= used) for index in range(len(slots))]
        updates += [gr.update(visible=index < len(request.columns)) for index in range(MOST_COLUMNS)]
        return [*updates, facts(pipe)]


def _name(part: Any, text: str, registry: Registry[Any]) -> tuple[str, bool]:
    """What a dropdown shows for an entry: its name; the whole text of one that is not listed."""
    listed = part.registry_name in registry.names()
    return (part.registry_name if listed else text), listed


def _padded(slots: Sequence[Any], given: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each slot with what it holds, or None."""
    return zip(slots, [*given, *[None] * (len(slots) - len(given))], strict=True)


def _number(what: str, value: float | None) -> int:
    if value is None:
        raise ValueError(f"{what} is missing; give a whole number")
    if int(value) != value:
        raise ValueError(f"{what} must be a whole number, got {value}")
    return int(value)


def guidances_for(pipe: Pipeline) -> list[str]:
    """Names of the guidances that this pipeline can use as they are, without another network.

    Args:
        pipe: the opened pipeline.
    """
    denoiser, found = pipe.denoiser(), []
    for name in GUIDANCES:
        try:
            apply_guidance(denoiser, name)
        except (ValueError, TypeError):
            continue
        found.append(name)
    return found


def facts(pipe: Pipeline) -> str:
    """A line about the pipeline: what it is made of, its size and its classes.

    Args:
        pipe: the opened pipeline.
    """
    parts: list[str] = [
        type(pipe.backbone).__name__,
        pipe.process.registry_name,  # pyright: ignore[reportAttributeAccessIssue]
        pipe.parameterization.registry_name,  # pyright: ignore[reportAttributeAccessIssue]
    ]
    classes = f"{pipe.num_classes} classes" if pipe.num_classes else "no classes"
    opened = Path(pipe.name_or_path or "")
    unfinished = f" · not finished: {html.escape(opened.name)}" if is_checkpoint(opened) else ""
    size = f"{pipe.image_size}&thinsp;×&thinsp;{pipe.image_size} pixels"
    return f"{' × '.join(parts)} · {size} · {classes}{unfinished}"
