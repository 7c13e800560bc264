"""`dinit generate --image --strength --mask`: the images of the call, its record, its replay, and every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.cli import main
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.latents import read_latents
from dinit.pipelines.outputs.manifest import read_manifest

LINE = ("--classes", "3", "--per-class", "2", "--steps", "4", "--seed", "5")


@pytest.fixture(autouse=True)
def _in_a_folder_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(levels).save("whole.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 1:5] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask[:, :6]).save("narrow.png")
    Path("text.png").write_text("a text")


def run(*arguments: str) -> int:
    """The exit code of `dinit ...`."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


GIVEN: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "strength": (("--strength", "0.5"), {"strength": 0.5}),
    "strength 0": (("--strength", "0"), {"strength": 0.0}),
    "mask and strength": (("--mask", "mask.png", "--strength", "0.5"), {"mask": "mask.png", "strength": 0.5}),
}


@pytest.mark.parametrize(("line", "given"), GIVEN.values(), ids=GIVEN)
def test_the_images_are_those_of_the_call_and_replay(
    tiny: str, line: tuple[str, ...], given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", tiny, "--image", "whole.png", *line, *LINE, "--out-dir", "made", "--out", "a.png") == 0
    pipe = Pipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe([3, 3], image="whole.png", steps=4, seed=5, **given)
    for index, one in enumerate(expected.images):
        with Image.open(f"made/{index:06d}.png") as made:
            assert made.tobytes() == one.tobytes()
    record = read_manifest(Path("a.png"))
    assert record.nfe == expected.nfe
    assert {"image", "strength"} <= record.call.keys()
    assert ("mask" in record.call) == ("mask" in given)
    assert len(record.call["image"]["sha256"]) == 64
    with Image.open("a.input.png") as copy, Image.open("whole.png") as whole:
        assert copy.tobytes() == whole.tobytes()
    for path in ("whole.png", "mask.png"):
        Path(path).unlink()  # the copies are enough
    capsys.readouterr()
    for made in ("a.png", "made", "made/000001.png"):
        assert run("replay", made) == 0
        assert "largest difference 0 of 255" in capsys.readouterr().out
    Image.new("L", (8, 8)).save("a.input.png")
    assert run("replay", "a.png") == 2
    assert "has changed or is missing" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_latents_of_an_image_are_written_with_its_copy(tiny: str) -> None:
    line = ("--image", "whole.png", "--strength", "0.5", *LINE)
    assert run("generate", tiny, *line, "--latents", "x.safetensors", "--trajectory", "a.gif") == 0
    latents, record = read_latents("x.safetensors")
    assert record.nfe == 2
    assert record.call["strength"] == 0.5
    assert Path("x.input.png").is_file()
    pipe = Pipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    again = pipe([3, 3], image="whole.png", strength=0.5, steps=4, seed=5, output_type="latent").images
    assert torch.equal(latents, again)
    with Image.open("a.gif") as steps:
        assert getattr(steps, "n_frames", 1) == 2


def test_a_dry_run_counts_what_is_taken_from_the_image(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("generate", tiny, "--image", "whole.png", *LINE, "--dry-run")
    for more, counted, shown in (
        (("--strength", "0.5"), "2 steps, 2 NFE each", "memory: about"),
        (("--strength", "0"), "0 steps, 0 NFE each", "memory: about"),
        (("--mask", "mask.png", "--guidance", "ddnm"), "4 steps, 4 NFE each", "memory: about"),
        (("--mask", "mask.png"), "4 steps, 4 NFE each", "takes gradients of the network"),
    ):
        assert run(*line, *more) == 0
        said = capsys.readouterr().out
        assert counted in said
        assert shown in said
    assert not Path("samples.png").exists()
    assert not Path("samples.input.png").exists()


WRONG = {
    "there is no picture nothing.png": ("--image", "nothing.png"),
    "text.png is a text, wanted: a picture": ("--image", "text.png"),
    "there is no picture other.png": ("--image", "whole.png", "--mask", "other.png"),
    "--strength is about an image: give --image too": ("--strength", "0.5"),
    "--mask is about an image: give --image too": ("--mask", "mask.png"),
    "--strength must be in 0 .. 1, got 1.5": ("--image", "whole.png", "--strength", "1.5"),
    "--strength must be in 0 .. 1, got -1": ("--image", "whole.png", "--strength", "-1"),
    "a set of images has no": ("--image", "whole.png", "--out", "folder"),
}
OF_THE_PIPELINE = {
    "mask is of 6 x 8 pixels, and it must be 8 x 8": ("--image", "whole.png", "--mask", "narrow.png"),
    "less than one step: take 11 steps": ("--image", "whole.png", "--strength", "0.1"),
}


@pytest.mark.parametrize(("message", "line"), (WRONG | OF_THE_PIPELINE).items(), ids=WRONG | OF_THE_PIPELINE)
def test_mistakes_end_in_a_message_and_write_nothing(
    tiny: str,
    message: str,
    line: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        pytest.fail("the network was opened")

    if message in WRONG:
        monkeypatch.setattr(Pipeline, "from_pretrained", opened)
    before = sorted(Path().iterdir())
    assert run("generate", tiny, *LINE, *line) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(Path().iterdir()) == before
