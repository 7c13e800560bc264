"""`dinit edit`: what it writes and prints, what `replay` and `info` find, and every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.cli import main
from dinit.inverse import EDITING_METHODS
from dinit.models.base import BACKBONES
from dinit.pipelines.editing import EditCall
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.manifest import read_manifest


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(levels).save("whole.png")


def run(*arguments: str) -> int:
    """The exit code of `dinit ...`."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_edit_writes_a_sheet_that_replays(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("--from", "digit 3", "--to", "8", "--method", "sdedit:strength=0.5", "--steps", "4", "--guidance", "2")
    assert run("edit", tiny, "whole.png", *line, "--trajectory", "steps.gif") == 0
    with Image.open("steps.gif") as steps:
        assert getattr(steps, "n_frames", 1) == 2
    assert "2 NFE in" in " ".join(capsys.readouterr().out.split())
    manifest = read_manifest(Path("edited.png"))
    assert manifest.call["edit"] == {"name": "sdedit", "strength": 0.5}
    assert (manifest.call["source"], manifest.call["target"], manifest.call["steps"]) == ([3], [8], 4)
    assert manifest.picture["texts"][0][2].startswith("digit 3 to digit 8, sdedit(strength=0.5), 4 steps")
    assert len(manifest.picture["cells"]) == 4
    assert run("replay", "edited.png") == 0
    assert "the same: edited.png, largest difference 0 of 255 in 4 comparisons" in capsys.readouterr().out
    assert run("info", "edited.png") == 0
    assert "sdedit" in capsys.readouterr().out


def test_a_replay_sees_another_input_and_another_edit(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("edit", tiny, "whole.png", "--from", "3", "--to", "8", "--method", "ddim", "--steps", "4") == 0
    before = Image.open("edited.png")
    kept = dict(before.info)
    changed = before.copy()
    x, y = read_manifest(Path("edited.png")).picture["cells"][2]
    changed.putpixel((x, y), (before.getpixel((x, y)) + 100) % 256)  # type: ignore[operator]
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("dinit", kept["dinit"])
    changed.save("edited.png", pnginfo=text)
    assert run("replay", "edited.png") == 1
    assert "edited differs by up to" in capsys.readouterr().out
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("edited.input.png")
    assert run("replay", "edited.png") == 2
    assert "has changed or is missing" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("name", EDITING_METHODS)
def test_every_method_is_recorded_and_made_again(tiny: str, name: str) -> None:
    pipe = Pipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    short = {"iterations": 1} if "iterations" in EDITING_METHODS[name].__dataclass_fields__ else {}  # type: ignore
    call = pipe.prepare_edit("whole.png", source=3, target=8, method={"name": name, **short}, steps=3, seed=4)
    tensors: dict[str, torch.Tensor] = {}
    config = call.to_config(tensors)
    again = EditCall.from_config(config, tensors)
    assert again.to_config() == config
    first, second = pipe.run_edit(call, "raw"), pipe.run_edit(again, "raw")
    assert torch.equal(first.images, second.images)
    assert first.nfe == second.nfe > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--from", "3", "--to", "digit 12"), "unknown class 'digit 12'"),
        (("--from", "x", "--to", "8"), "unknown class 'x'"),
        (
            ("--from", "3", "--to", "8", "--method", "direkt"),
            "'direkt'; did you mean 'direct'",
        ),
        (("--from", "3", "--to", "8", "--method", "sdedit:strenght=1"), "did you mean 'strength'"),
        (("--from", "3", "--to", "8", "--method", "sdedit:strength=2"), "strength must be in (0, 1], got 2"),
        (("--from", "3", "--to", "8", "--steps", "1"), "--steps must be at least 2, got 1"),
        (("--from", "3", "--to", "8", "--out", "sheet.jpg"), "sheet.jpg"),
        (("--from", "3", "--to", "8", "--trajectory", "steps.mp4"), "steps.mp4 must end in .gif or .webp"),
    ],
)
def test_mistakes(
    tiny: str,
    capsys: pytest.CaptureFixture[str],
    line: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BACKBONES["dit"], "forward", lambda *_: pytest.fail("the network was evaluated"))
    assert run("edit", tiny, "whole.png", *line) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert [path.name for path in Path().iterdir()] == ["whole.png"]
