"""Events of the page, without a browser: controls hold requests, results replay, mistakes are sentences."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinit import Pipeline
from dinit.app import serving
from dinit.app.request import Column, Request, default_request
from dinit.app.running import Pipelines
from dinit.pipelines.outputs.files import save_sheet
from dinit.pipelines.outputs.manifest import read_manifest
from dinit.pipelines.outputs.replay import replay

gr = pytest.importorskip("gradio")
module = pytest.importorskip("dinit.app.page")
Page, Switch = module.Page, module.Switch

SMALL = Request(
    "digits-dico",
    (Column("ddim:eta=0.5", 3), Column("dpmpp-2m:order=1", 2, "karras:rho=3.0")),
    (3, 5),
    2,
    ("cfg:scale=2.5,low=-3.0,channels=1,schedule=cosine", "clip-x0"),
    7,
)


def opened(name: str) -> Pipeline:
    pipe = Pipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipelines = Pipelines(["digits-dico", "digits-dit"], opened)
    return Page(pipelines, "auto", tmp_path_factory.mktemp("saved"))


def held(page: Any, request: Request) -> list[Any]:
    """The values of the controls after they were filled with a request."""
    controls = page.controls
    updates = controls.show(request, page.pipelines.open(request.pipeline))
    assert len(updates) == len(controls.outputs)
    values = []
    for component, update in zip(controls.values, updates, strict=False):
        plain = not isinstance(update, dict)
        values.append(update if plain else update.get("value", component.value))
    return values


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    """The newest value of every component."""
    found: dict[Any, Any] = {}
    for one in updates:
        found |= one
    return found


REQUESTS = [
    SMALL,
    replace(
        SMALL, classes=(), guidance=(), columns=(Column("unipc:uncorrected=[0, 1],lower_order_final=true", 4),)
    ),
    replace(SMALL, columns=(*SMALL.columns, Column("rk45:rtol=0.01", 3), Column("lms:order=2", 5))),
    replace(
        SMALL, guidance=("cfg:scale=12.0,schedule={name: log-snr, low: -3.0, high: 6.0, first: 0.0, last: 1.0}",)
    ),
]


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_controls_hold_a_request(page: Any, number: int) -> None:
    assert page.controls.read(held(page, REQUESTS[number])) == REQUESTS[number]


def test_controls_begin_with_the_pipelines_own_settings(page: Any) -> None:
    for name in page.pipelines.names:
        request = default_request(page.pipelines.open(name), name)
        assert page.controls.read(held(page, request)) == request
        updates = page.on_pipeline(name, "")
        assert updates[0] == name
        assert updates[-1] == ""
        again = page.on_pipeline(name, name)  # as a replay leaves them, whose settings stay
        assert len(again) == len(updates)
        assert all(one == gr.skip() for one in again)
    assert "no_such is not one of the pipelines" in page.on_pipeline("no_such", "")[-1]


def test_a_click_before_the_fields_of_a_choice_have_arrived_takes_its_defaults(page: Any) -> None:
    controls, values = page.controls, held(page, SMALL)
    sampler, guidance = controls.samplers[0].sampler, controls.guidances[0].guidance
    values[controls.values.index(sampler)] = "ancestral"  # its fields still hold ddim's
    values[controls.values.index(guidance)] = "clip-x0"
    request = controls.read(values)
    assert request.columns == (Column("ancestral", 3), SMALL.columns[1])
    assert request.guidance == ("clip-x0", "clip-x0")
    arrived = controls.samplers[0].form.updates("ancestral")
    for component, update in zip(controls.samplers[0].form.components, arrived, strict=True):
        value = update.get("value") if isinstance(update, dict) else update
        values[controls.values.index(component)] = value
    assert controls.read(values).columns == request.columns

    values[0] = "digits-dit"  # a pipeline whose settings have not arrived
    found = last(page.on_generate(Switch(), *values))
    request = default_request(page.pipelines.open("digits-dit"), "digits-dit")
    assert f"--steps {request.columns[0].steps} " in found[page.command]
    assert found[page.command].count("dinit generate digits-dit ") == 2


def test_results_are_shown_saved_and_replayed(page: Any) -> None:
    found = last(page.on_generate(Switch(), *held(page, SMALL)))
    assert found[page.status] == ""
    assert found[page.board].count("<img ") == 8
    assert found[page.scrubber]["maximum"] == 3
    assert (found[page.generate]["interactive"], found[page.stop]["interactive"]) == (True, False)
    assert page.on_scrub(3, found[page.state]) == found[page.board] != page.on_scrub(1, found[page.state])
    assert found[page.command].count("\n") == 1
    saved = [Path(found[button]["value"]) for button in page.saves[:2]]
    assert [one.name for one in saved] == ["digits-dico-ddim-seed7.png", "digits-dico-dpmpp-2m-seed7.png"]
    assert found[page.saves[2]]["visible"] is False
    assert all(replay(one, page.pipelines.open("digits-dico")).same for one in saved)

    dropped = last(page.on_drop(Switch(), str(saved[1])))
    assert re.search(r'class="same".*: the same picture, every pixel', dropped[page.status])
    assert dropped[page.controls.seed] == 7
    assert dropped[page.controls.samplers[0].grid] == "karras:rho=3.0"
    assert dropped[page.board].count("<img ") == 4


def test_a_dropped_picture_that_differs_or_cannot_be_made(page: Any, tmp_path: Path) -> None:
    pipe = page.pipelines.open("digits-dico")
    generated = pipe(["3", "5", "3"], steps=2, seed=[4, 5, 6], output_type="raw")  # not for the controls
    path = tmp_path / "odd.png"
    save_sheet(path, pipe, generated)
    found = last(page.on_drop(Switch(), str(path)))
    assert "the same picture" in found[page.status]
    assert "the controls cannot express this call" in found[page.status]
    assert found[page.command] == ""

    generated.images[0, 0, 4, 4] *= -1
    save_sheet(path, pipe, generated)
    found = last(page.on_drop(Switch(), str(path)))
    assert 'class="error"' in found[page.status]
    assert "a different picture, by up to" in found[page.status]

    other = opened("glyphs-32")
    save_sheet(path, other, other(0, steps=1, output_type="raw"))
    assert read_manifest(path).pipeline == "glyphs-32"
    (only,) = page.on_drop(Switch(), str(path))
    assert "the picture was made by glyphs-32, which is not one of this page" in only[page.status]
    Image.new("L", (8, 8)).save(path)
    (only,) = page.on_drop(Switch(), str(path))
    assert ">odd.png has no dinit manifest" in only[page.status]  # without the folder, which is the server's own
    assert list(page.on_drop(Switch(), None)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "ddim: steps must be at least 1, got 0"),
        ({"steps": 10**11}, "ddim: the page takes 10000 steps at most, got 100000000000"),
        ({"steps": 2.5}, "the number of steps of ddim must be a whole number, got 2.5"),
        ({"per_class": 10**9}, "2000000000 images are too many for the page"),
        ({"seed": 0.5}, "the seed must be a whole number, got 0.5"),
        ({"steps": None}, "the number of steps of ddim is missing"),
        ({"seed": None}, "the seed is missing"),
        ({"per_class": 33}, "66 images are too many for the page"),
        ({"grid": "kerras"}, "unknown grid"),
        ({"eta": 3.0}, "eta must be in [0, 1]"),
    ],
)
def test_mistakes_are_sentences_before_any_picture(page: Any, change: dict[str, Any], sentence: str) -> None:
    controls, values = page.controls, held(page, SMALL)
    slot = controls.samplers[0]
    places = {"steps": slot.steps, "seed": controls.seed, "per_class": controls.per_class, "grid": slot.grid}
    places["eta"] = slot.form.components[0]
    for name, value in change.items():
        values[controls.values.index(places[name])] = value
    (only,) = page.on_generate(Switch(), *values)
    assert set(only) == {page.status}
    assert 'class="error"' in only[page.status]
    assert sentence in only[page.status]


def test_a_fault_of_ours_is_a_sentence_too(page: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("t < 0")

    monkeypatch.setattr(Pipeline, "iterate", broken)
    found = last(page.on_generate(Switch(), *held(page, SMALL)))
    assert "This is a fault of dinit (KeyError); its traceback is in the terminal" in found[page.status]
    assert found[page.generate]["interactive"] is True
    assert "KeyError: 't &lt; 0'" not in found[page.status]
    assert "in broken" in capsys.readouterr().err


def test_two_pages_share_nothing_but_the_network(page: Any) -> None:
    other = replace(SMALL, seed=8)
    alone = [last(page.on_generate(Switch(), *held(page, one)))[page.board] for one in (SMALL, other)]
    runs = [page.on_generate(Switch(), *held(page, one)) for one in (SMALL, other)]
    found: list[dict[Any, Any]] = [{}, {}]
    for _ in range(40):
        for kept, one in zip(found, runs, strict=True):
            kept |= next(one, {})
    pictures = [re.findall(r'src="([^"]+)"', board) for board in alone]
    assert [re.findall(r'src="([^"]+)"', one[page.board]) for one in found] == pictures
    assert pictures[0] != pictures[1]


def test_a_stopped_run_takes_no_further_step_and_the_next_one_runs(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = page.pipelines.open("digits-dico")
    evaluations = []
    pipe.backbone.register_forward_pre_hook(lambda *_: evaluations.append(1))
    whole = last(page.on_generate(Switch(), *held(page, SMALL)))
    needed, switch = len(evaluations), Switch()
    run = page.on_generate(switch, *held(page, SMALL))
    next(run)
    next(run)  # the first step
    stop = page.on_stop(switch)
    assert stop["interactive"] is False
    done = len(evaluations)
    rest = list(run)
    assert len(evaluations) <= done + 2 < needed + done  # the step that was under way, with guidance
    assert "Stopped. No further step was taken." in rest[-1][page.status]
    assert rest[-1][page.generate]["interactive"] is True
    pictures = [
        re.findall(r'src="([^"]+)"', one[page.board])
        for one in (whole, last(page.on_generate(switch, *held(page, SMALL))))
    ]
    assert pictures[0] == pictures[1] != []


def test_the_server_needs_gradio_and_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind((serving.ADDRESS, 0))
        one.listen()
        taken = one.getsockname()[1]
        assert taken < serving.free_port(taken) < taken + 100
    for port in (0, -1, 65536):
        with pytest.raises(ValueError, match=f"--port must be from 1 to 65535, got {port}"):
            serving.free_port(port)
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"python -m pip install 'dinit\[app\]'"):
        serving.check_gradio()
