"""Requests of the page: their commands and their code make the same pixels, and a record of a call is read back."""

from __future__ import annotations

import shlex
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinit import Pipeline
from dinit.app.options import form_values, options_of, text_of_form
from dinit.app.request import (
    Column,
    Request,
    as_command,
    as_python,
    command_words,
    default_request,
    from_call,
)
from dinit.app.running import Frame, run
from dinit.app.spec_text import spec_text
from dinit.cli.app import app
from dinit.pipelines.outputs.manifest import read_manifest
from dinit.pipelines.outputs.replay import replay
from dinit.samplers import GRIDS, SAMPLERS
from dinit.samplers.guidance import GUIDANCES

ODD_NAMES = ["all", "red, green", 'a "b"', " x", "7", "cat", "cat", "3,4", "x y", "Ä"]
TWO = (Column("ddim:eta=0.5", 4), Column("dpmpp-2m:variant=heun", 5, "karras:rho=3.0"))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    made = Pipeline.from_pretrained("digits-dico")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("odd") / "my run" / "pipeline"
    Pipeline.from_pretrained("digits-dico", class_names=ODD_NAMES).save_pretrained(folder)
    return str(folder)


def results(pipe: Pipeline, request: Request) -> list[Frame]:
    """The last frame of every column."""
    frames = list(run(pipe, request.calls(pipe), threading.Lock()))
    assert not [one.error for one in frames if one.error]
    return sorted((one for one in frames if one.generated), key=lambda one: one.column)


def pixels(pictures: Any) -> np.ndarray:
    return np.stack([np.asarray(one) for one in pictures])


REQUESTS = {
    "two samplers": Request("digits-dico", TWO, (3, 5), 2, ("cfg:scale=2.5,low=-3.0",), 7),
    "no class": Request("digits-dico", (Column("euler", 3),), (), 3, (), 1),
    "a stack, one of each class": Request(
        "digits-dico",
        (Column("ddim", 3, None, "clean"),),
        (0, 9),
        1,
        ("cfg:scale=3.0,schedule={name: log-snr, low: -3.0}", "cads:scale=0.1", "clip-x0"),
        -4,
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_command_and_code_make_the_same_pixels(
    name: str, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = REQUESTS[name]
    shown = results(pipe, request)
    code = as_python(request, pipe)
    calls = code.count("images = pipe(")
    assert calls == len(shown) == len(request.columns)
    for index, (line, frame) in enumerate(zip(as_command(request, pipe).splitlines(), shown, strict=True)):
        words = shlex.split(line)
        assert words[:2] == ["dinit", "generate"]
        app(args=words[1:], standalone_mode=False)
        sheet = Path(words[-1])
        found = replay(sheet, pipe)
        assert found.same
        assert found.pictures >= len(request.labels)
        assert read_manifest(sheet).call == frame.generated.call.to_config()  # type: ignore[union-attr]
        alone = replace(request, columns=(request.columns[index],))
        scope: dict[str, Any] = {}
        exec(as_python(alone, pipe), scope)
        assert (pixels(scope["images"]) == pixels(frame.pictures)).all()
        direct = pipe.run(frame.generated.call)  # type: ignore[union-attr]
        assert (pixels(direct.images) == pixels(frame.pictures)).all()
        assert direct.nfe == frame.nfe
    assert len({pixels(one.pictures).tobytes() for one in shown}) == len(shown)


def test_class_names_of_any_kind_arrive(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with commas, quotes and spaces, the word 'all', and a name that two classes have."""
    monkeypatch.chdir(tmp_path)
    pipe = Pipeline.from_pretrained(odd)
    for classes in ((0,), (0, 1, 2, 3, 4, 7, 8, 9), (7, 1)):
        request = Request(odd, (Column("ddim", 1),), classes, 1, ())
        (words,) = command_words(request, pipe)
        app(args=["generate", *words], standalone_mode=False)
        assert read_manifest(Path(words[-1])).call["labels"] == list(classes)
        Path(words[-1]).unlink()
        scope: dict[str, Any] = {}
        exec(as_python(request, pipe).replace("pipe(\n", "pipe.prepare(\n").replace(").images", ")"), scope)
        assert scope["images"].labels == classes
        assert words[-1] == "my run-ddim-seed0.png"


def test_a_record_is_read_back_into_the_controls(pipe: Pipeline) -> None:
    for request in REQUESTS.values():
        for column, call in zip(request.columns, request.calls(pipe), strict=True):
            found = from_call(call, pipe, "digits-dico")
            assert found is not None
            assert found.calls(pipe) == (call,)
            assert (found.classes, found.per_class, found.seed) == (
                request.classes,
                request.per_class,
                request.seed,
            )
            assert found.columns[0].grid == column.grid
    (call,) = REQUESTS["no class"].calls(pipe)
    assert from_call(replace(call, labels=(3, 5, 3)), pipe, "digits-dico") is None
    assert from_call(replace(call, keys=((1, 0), (2, 0), (3, 0))), pipe, "digits-dico") is None
    assert from_call(replace(call, batch_size=2), pipe, "digits-dico") is None  # another batch, other rounding


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": ()}, "choose 1 to 4 samplers, got 0"),
        ({"per_class": 0}, "the number of images must be at least 1, got 0"),
        ({"per_class": 40}, "80 images are too many for the page"),
    ],
)
def test_requests_that_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(REQUESTS["two samplers"], **changed)


def test_the_sampler_that_cannot_run_is_named_before_any_evaluation(pipe: Pipeline) -> None:
    request = replace(REQUESTS["two samplers"], columns=(Column("ddim", 4), Column("heun", 0)))
    with pytest.raises(ValueError, match=r"^heun: steps must be at least 1, got 0$"):
        request.calls(pipe)


@pytest.mark.parametrize("registry", [SAMPLERS, GRIDS, GUIDANCES], ids=lambda one: one.kind)
def test_texts_of_all_entries_make_them_again(registry: Any) -> None:
    for name in set(registry) - {"searched", "times"}:
        part = registry.create(name)
        scale = f":scale={part.scale}" if hasattr(part, "scale") else ""  # which is written out
        assert spec_text(part) == name + scale
        assert text_of_form(registry, name, form_values(part)) == name + scale
        assert registry.create(spec_text(part)) == part


@pytest.mark.parametrize(
    ("registry", "text"),
    [
        (SAMPLERS, "rk45:rtol=1.0e-07"),
        (SAMPLERS, "ancestral:eta=inf,solver=dpm-2"),
        (SAMPLERS, "dpmpp-2m:order=1"),
        (SAMPLERS, "unipc:uncorrected=[0, 1],lower_order_final=true"),
        (SAMPLERS, "restart:intervals=[{low: 1.0e-05, high: 0.3, steps: 3, repeats: 2}]"),
        (SAMPLERS, "flow-sde:last_step=mean"),
        (GUIDANCES, "cfg:scale=4.0,low=-2.0,channels=3,schedule=cosine"),
        (GUIDANCES, "compose:classes=[1, 2],weights=[0.5, 1]"),
        (GUIDANCES, "clip-x0:limit=1.5"),
    ],
)
def test_options_pass_through_text_and_form(registry: Any, text: str) -> None:
    part = registry.create(text)
    assert spec_text(part) == text
    if "inf" not in text:  # which an empty field stands for where it is the default
        assert registry.create(text_of_form(registry, part.registry_name, form_values(part))) == part


def test_fields_have_the_ranges_of_the_docstrings() -> None:
    def of(registry: Any, name: str) -> dict[str, tuple[Any, ...]]:
        return {one.name: (one.kind, one.low, one.high, one.default) for one in options_of(registry[name])}

    cfg = of(GUIDANCES, "cfg")
    assert cfg["scale"] == ("slider", 0.0, 10.0, 1.5)
    assert cfg["rescale"] == ("slider", 0.0, 1.0, 0.0)
    assert cfg["channels"] == ("number", 1.0, None, None)
    assert cfg["schedule"][0] == "choice"
    assert of(SAMPLERS, "ddim") == {"eta": ("slider", 0.0, 1.0, 0.0)}
    assert of(SAMPLERS, "lms")["order"] == ("slider", 1.0, 4.0, 4)
    assert set(of(GUIDANCES, "autoguidance")) == {"scale", "low", "high"}  # no network
    with pytest.raises(ValueError, match=r"channels must be a whole number, got 2\.5"):
        text_of_form(GUIDANCES, "cfg", {"channels": 2.5})


def test_the_first_request_is_the_pipelines_own(pipe: Pipeline) -> None:
    request = default_request(pipe, "digits-dico")
    assert request.columns[0] == Column("ddim", 20)
    assert request.columns[1].sampler == "dpmpp-2m"
    assert request.guidance == ("cfg:scale=1.5",)
    assert request.classes == tuple(range(10))
    request.calls(pipe)
