"""Layout of the page of `dinit app`, and its events."""

from __future__ import annotations

import html
import itertools
import random
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default

from dinit.app.board import Board, Card
from dinit.app.controls import NONE, Controls, SamplerSlot
from dinit.app.request import (
    MOST_COLUMNS,
    Request,
    as_command,
    as_python,
    default_request,
    file_name,
    from_call,
    image_names,
)
from dinit.app.running import Frame, Pipelines, is_of_memory, run
from dinit.app.spec_text import spec_text
from dinit.pipelines.call import Call
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.files import save_sheet
from dinit.pipelines.outputs.manifest import read_manifest
from dinit.pipelines.outputs.replay import compare

_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
THEME = Default(
    primary_hue="indigo", neutral_hue="slate", font=_SYSTEM, font_mono=_MONO, spacing_size="sm", radius_size="md"
)  # fonts of the system: none is loaded from elsewhere
CSS = (files("dinit.app") / "page.css").read_text(encoding="utf-8")
_TO_RESULT = """(...values) => {
    if (window.innerWidth < 800) document.getElementById("result").scrollIntoView({behavior: "smooth"});
    return values;
}"""  # on a telephone the result is below the controls


@dataclass
class Switch:
    """Whether a visitor has stopped the run: after Gradio's own `cancels` a page runs nothing again."""

    stopped: bool = False


class Page:
    """The page: a layout whose events run requests. All that belongs to a visitor is in the visitor's own state.

    Args:
        pipelines: that are offered; the first is shown.
        device: where they are opened, as it was named; the code and the commands have it too.
        folder: for the files that visitors save.
    """

    def __init__(self, pipelines: Pipelines, device: str, folder: Path) -> None:
        self.pipelines, self.device, self.folder = pipelines, device, folder
        self._numbers = itertools.count(1)
        with gr.Blocks(title="dinit", fill_width=True, analytics_enabled=False) as self.blocks:
            gr.HTML(
                '<h1 class="title">dinit <span>samplers on one trained network, from the same noise</span></h1>'
            )
            with gr.Row(elem_classes="page"):
                with gr.Column(scale=4, min_width=320, elem_id="controls"):
                    self.controls = Controls(pipelines.names)
                with gr.Column(scale=9, min_width=320, elem_id="result"):
                    self._make_result()
        with self.blocks:
            self._connect()

    def _make_result(self) -> None:
        with gr.Row(elem_id="go"):
            self.generate = gr.Button("Generate", variant="primary", scale=3, elem_id="generate", min_width=120)
            self.stop = gr.Button("Stop", scale=1, interactive=False, elem_id="stop", min_width=80)
        self.status = gr.HTML(elem_id="status")
        self.board = gr.HTML(elem_id="board")
        self.scrubber = gr.Slider(
            1, 2, value=2, step=1, label="Step (posterior mean)", visible=False, elem_id="scrubber"
        )
        with gr.Row():
            self.saves = [
                gr.DownloadButton("Save", visible=False, size="sm", min_width=120, elem_id=f"save-{index + 1}")
                for index in range(MOST_COLUMNS)
            ]
        with gr.Tabs():
            with gr.Tab("As command"):
                self.command = gr.Code(
                    language="shell",
                    interactive=False,
                    wrap_lines=True,
                    elem_id="command",
                    lines=2,
                    show_line_numbers=False,
                )
            with gr.Tab("As Python"):
                self.python = gr.Code(
                    language="python", interactive=False, elem_id="python", lines=2, show_line_numbers=False
                )
            with gr.Tab("Replay a PNG"):
                self.drop = gr.File(
                    label="Drop a PNG that dinit wrote: it is generated again and compared",
                    file_types=[".png"],
                    height=120,
                    elem_id="drop",
                )
        self.state = gr.State()
        self.switch = gr.State(Switch())  # each visitor has a copy

    def _connect(self) -> None:
        controls = self.controls
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        filled = [*controls.outputs, self.status]
        # `input` comes twice for one click, and its second answer would undo what the visitor chose after the first
        gr.on(
            [self.blocks.load, controls.pipeline.change],
            self.on_pipeline,
            [controls.pipeline, controls.holds],
            filled,
            **quiet,
        )
        controls.dice.click(lambda: random.randrange(2**31), None, controls.seed, **quiet)
        controls.no_classes.click(list, None, controls.classes, **quiet)
        controls.all_classes.click(self.on_all_classes, controls.pipeline, controls.classes, **quiet)
        for slots, name in ((controls.samplers, "sampler"), (controls.guidances, "guidance")):
            for index, slot in enumerate(slots):
                following = [slots[index + 1].group] if index + 1 < len(slots) else []
                parts = [slot.steps, slot.more] if isinstance(slot, SamplerSlot) else []
                choose = _chooser(slot.form, bool(following), len(parts))
                chosen = getattr(slot, name)
                chosen.input(choose, chosen, [*slot.form.components, *following, *parts], **quiet)
        shown = [
            *(self.status, self.board, self.scrubber, self.state, self.command, self.python),
            *(self.generate, self.stop, *self.saves),
        ]
        many: dict[str, Any] = {"concurrency_limit": 16, "concurrency_id": "run", **quiet}
        given = [self.switch, *controls.values]
        self.generate.click(self.on_generate, given, shown, js=_TO_RESULT, **many)
        self.drop.upload(self.on_drop, [self.switch, self.drop], [self.drop, *controls.outputs, *shown], **many)
        self.stop.click(self.on_stop, self.switch, self.stop, **quiet)
        self.scrubber.input(
            self.on_scrub, [self.scrubber, self.state], self.board, trigger_mode="always_last", **quiet
        )

    # --- events --------------------------------------------------------------------------------------------------

    def on_pipeline(self, name: str, holds: str) -> list[Any]:
        """The pipeline's own settings in all controls, unless they hold settings of this pipeline already."""
        try:
            if name == holds:
                return [*[gr.skip()] * len(self.controls.outputs), gr.skip()]
            pipe = self.pipelines.open(name)
            return [*self.controls.show(default_request(pipe, name), pipe), ""]
        except Exception as error:
            return [*[gr.skip()] * len(self.controls.outputs), _error(error)]

    def on_all_classes(self, name: str) -> list[int]:
        """Numbers of all classes of the pipeline."""
        return list(range(self.pipelines.open(name).num_classes))

    def on_generate(self, switch: Switch, *values: Any) -> Iterator[dict[Any, Any]]:
        """Runs what the controls hold."""
        try:
            held = self.controls.read(values)
            pipe = self.pipelines.open(held if isinstance(held, str) else held.pipeline)
            request = default_request(pipe, held) if isinstance(held, str) else held
            calls = request.calls(pipe)
        except Exception as error:
            yield {self.status: _error(error)}
            return
        yield from self._run(request, pipe, calls, switch)

    def on_drop(self, switch: Switch, path: str | None) -> Iterator[dict[Any, Any]]:
        """Runs the call of a picture's manifest, and compares."""
        if path is None:
            return
        try:
            manifest = read_manifest(Path(path))
            name = self.pipelines.find(manifest.pipeline)
            pipe = self.pipelines.open(name)
            call = Call.from_config(manifest.call)
            pipe.check(call)
            request = from_call(call, pipe, name)
        except Exception as error:
            yield {self.status: _error(error, Path(path)), self.drop: None}
            return
        yield {self.drop: None}  # ready for the next picture
        if request is not None:
            yield dict(zip(self.controls.outputs, self.controls.show(request, pipe), strict=True))
        results: list[Frame] = []
        yield from self._run(request, pipe, (call,), switch, results, name)
        if not results:
            return
        try:
            assert results[0].generated is not None
            found = compare(Path(path), manifest, pipe, results[0].generated)
        except Exception as error:
            yield {self.status: _error(error)}
            return
        notes = list(found.notes)
        if request is None:
            notes.append(
                "the controls cannot express this call (its labels, seeds or batches), and are as they were"
            )
        yield {self.status: _verdict(found.same, Path(path).name, found.max_abs_diff, notes)}

    def _run(
        self,
        request: Request | None,
        pipe: Pipeline,
        calls: Sequence[Call],
        switch: Switch,
        results: list[Frame] | None = None,
        name: str = "",
    ) -> Iterator[dict[Any, Any]]:
        """Frames of the calls as updates. request: None for a call that the controls cannot express."""
        names = image_names_of(calls[0], pipe) if request is None else image_names(request, pipe)
        board = Board([Card(*_titles(call)) for call in calls], names, next(self._numbers))
        hidden = [gr.update(visible=False)] * len(self.saves)
        yield {
            self.status: "",
            self.board: board.to_html(),
            self.state: board,
            self.scrubber: gr.update(visible=False),
            self.command: "" if request is None else as_command(request, pipe, self.device),
            self.python: "" if request is None else as_python(request, pipe, self.device),
            self.generate: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
            **dict(zip(self.saves, hidden, strict=True)),
        }
        over = {self.generate: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        ends, began, drawn = [], time.monotonic(), 0.0
        switch.stopped = False
        try:
            for frame in run(pipe, calls, self.pipelines.lock):
                board.add(frame)
                if switch.stopped:
                    note = '<p class="note">Stopped. No further step was taken.</p>'
                    yield {self.status: note, self.board: board.to_html(), **over}
                    return
                if frame.generated is not None:
                    ends.append(frame)
                now = time.monotonic()
                if now - drawn > _pause(now - began):
                    yield {self.board: board.to_html()}
                    drawn = time.monotonic()
            yield {self.board: board.to_html(), self.scrubber: _scrubber(board)}
            saved = {
                self.saves[frame.column]: gr.update(
                    value=str(self._save(request, pipe, frame, name)),
                    label=f"Save {calls[frame.column].sampler.registry_name}",  # type: ignore[attr-defined]
                    visible=True,
                )
                for frame in ends
            }
            yield {**saved, **over}
        except Exception as error:
            yield {self.status: _error(error), self.board: board.to_html(), **over}
            return
        if results is not None:
            results += ends

    def _save(self, request: Request | None, pipe: Pipeline, frame: Frame, name: str) -> Path:
        """The contact sheet of a result, with its manifest, in a folder of its own."""
        assert frame.generated is not None
        file = f"{Path(name).name}.png" if request is None else file_name(request, frame.column)
        path = Path(tempfile.mkdtemp(dir=self.folder)) / file
        save_sheet(path, pipe, frame.generated)
        return path

    def on_stop(self, switch: Switch) -> dict[str, Any]:
        """Ends the visitor's run after its present step."""
        switch.stopped = True
        return gr.update(interactive=False)

    def on_scrub(self, position: float, board: Board | None) -> str:
        """The stored pictures of a step."""
        return "" if board is None else board.to_html(int(position))


def _chooser(form: Any, has_following: bool, parts: int) -> Any:
    """The event of a dropdown: the fields of what was chosen, and the next empty slot."""

    def choose(name: str | None) -> list[Any]:
        following = [gr.update(visible=True)] if has_following and name not in (None, NONE) else []
        if has_following and not following:
            following = [gr.skip()]
        return [*form.updates(name or NONE), *following, *[gr.update(visible=name not in (None, NONE))] * parts]

    return choose


def image_names_of(call: Call, pipe: Pipeline) -> tuple[str, ...]:
    """Name of the class of every image of a call; "" for none.

    Args:
        call: of a manifest.
        pipe: its pipeline.
    """
    names = pipe.class_names
    return tuple("" if one is None else str(one) if names is None else names[one] for one in call.labels)


def _pause(elapsed: float) -> float:
    """Seconds between two updates of the pictures; they grow with the time since the run's start.

    A browser takes tenths of a second to draw an update where the processor is busy; updates that come faster
    wait in it, and the Stop button with them.
    """
    return min(1.0, max(0.1, elapsed / 12))


def _titles(call: Call) -> tuple[str, str]:
    return spec_text(call.sampler), f"{call.steps} steps · {spec_text(call.grid)} grid"


def _scrubber(board: Board) -> Any:
    count = board.positions
    return gr.update(visible=count > 1, maximum=max(2, count), value=max(2, count))


def _error(error: Exception, dropped: Path | None = None) -> str:
    """A sentence for the page; a fault of ours goes to the terminal with its traceback.

    dropped: a file whose folder here is of no use to the visitor.
    """
    if isinstance(error, (ValueError, OSError)):
        text = str(error) if dropped is None else str(error).replace(str(dropped), dropped.name)
    elif is_of_memory(error):
        text = "There is too little memory for these images at once; fewer images need less."
    else:
        traceback.print_exception(error)
        text = (
            f"This is a fault of dinit ({type(error).__name__}); its traceback is in the terminal of `dinit app`."
        )
    return f'<p class="error" role="alert">{html.escape(text)}</p>'


def _verdict(same: bool, name: str, difference: int, notes: Sequence[str]) -> str:
    first = (
        f"{html.escape(name)}: the same picture, every pixel."
        if same
        else f"{html.escape(name)}: a different picture, by up to {difference} of 255."
    )
    more = "".join(f"<br>{html.escape(note)}" for note in notes)
    return f'<p class="{"same" if same else "error"}" role="status">{first}{more}</p>'
