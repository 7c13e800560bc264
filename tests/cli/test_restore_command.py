"""`dinit restore`: what it writes and prints, what `replay` and `info` find, and every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinit.cli import main
from dinit.models.base import BACKBONES
from dinit.pipelines.outputs.manifest import read_manifest


@pytest.fixture(autouse=True)
def _in_a_folder_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(levels).save("whole.png")
    Image.fromarray(levels[::2, ::2]).save("small.png")


def run(*arguments: str) -> int:
    """The exit code of `dinit ...`."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


MASK = ("--operator", "mask:box=2,2,6,6")


def test_restore_writes_a_sheet_that_replays(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("--class", "3", "--num-images", "2", "--method", "ddnm", "--steps", "3", "--truth", "whole.png")
    assert run("restore", tiny, "whole.png", *MASK, *line, "--trajectory", "steps.gif") == 0
    said = capsys.readouterr().out
    for part in (
        "distance of A(x) from y: 0 (noise 0)",
        "PSNR: ",
        "SSIM: ",
        "rank of the truth: ",
        "of 3",
        "2 restorations in",
    ):
        assert part in said, part
    made = read_manifest(Path("restored.png"))
    assert made.call["labels"] == [3, 3]
    assert made.call["measurement"]["operator"]["box"] == [2, 2, 6, 6]
    assert made.call["guidance"][-1]["name"] == "ddnm"
    assert Path("restored.input.png").is_file()
    assert Path("steps.gif").read_bytes()[:4] == b"GIF8"
    assert run("replay", "restored.png") == 0
    assert run("info", "restored.png") == 0
    assert "mask" in capsys.readouterr().out
    assert run("restore", tiny, "whole.png", *MASK, "--out", "restored.png") == 2  # it is there already
    Path("restored.input.png").unlink()
    Path("restored.input.safetensors").unlink()
    assert run("replay", "restored.png") == 2


def test_a_small_picture_is_the_measurement_and_a_whole_one_is_measured(tiny: str, capsys) -> None:
    down = ("--operator", "downscale:factor=2", "--num-images", "1", "--method", "ddnm")
    assert run("restore", tiny, "small.png", *down, "--out", "one.png") == 0
    assert "PSNR" not in capsys.readouterr().out
    assert run("restore", tiny, "whole.png", *down, "--out", "two.png", "--noise", "0.1", "--seed", "4") == 0
    assert "PSNR" in capsys.readouterr().out
    assert run("restore", tiny, "whole.png", *down, "--input", "measurement", "--out", "three.png") == 2
    assert "4 x 4" in capsys.readouterr().err


@pytest.mark.parametrize("operator", ["mask:image=hole.png", "stack:operators=[{name: mask, image: hole.png}]"])
def test_a_mask_of_a_file_replays_where_the_file_is_another_or_gone(tiny: str, operator: str) -> None:
    levels = np.zeros((8, 8), dtype=np.uint8)
    levels[2:6, 1:5] = 255
    Image.fromarray(levels).save("hole.png")
    line = ("--operator", operator, "--num-images", "1", "--method", "ddnm", "--input", "image")
    assert run("restore", tiny, "whole.png", *line) == 0
    made = read_manifest(Path("restored.png")).call["measurement"]["operator"]
    mask = made.get("operators", [made])[0]
    assert mask["image"] is None
    assert mask["hidden"]["shape"] == [8, 8]
    Image.fromarray(255 - levels).save("hole.png")
    assert run("replay", "restored.png") == 0
    Path("hole.png").unlink()
    assert run("replay", "restored.png") == 0


WRONG = {
    "unknown operator 'msk'": ("whole.png", "--operator", "msk"),
    "unknown operator 'maks'; did you mean 'mask'": ("whole.png", "--operator", "maks:box=2,2,6,6"),
    "operator 'mask' has no option 'bx'; did you mean 'box'": ("whole.png", "--operator", "mask:bx=2,2,6,6"),
    "there is no picture other.png, the mask": ("whole.png", "--operator", "mask:image=other.png"),
    "does not fit in 8 x 8": ("whole.png", "--operator", "mask:box=2,2,9,9"),
    "has the shape (8, 6), and the images (1, 8, 8)": ("whole.png", "--operator", "mask:image=narrow.png"),
    "grey measures images of 3 channels": ("whole.png", "--operator", "grey"),
    "narrow.png is of 6 x 8 pixels": ("narrow.png", *MASK),
    "must be of 4 x 4 pixels": ("narrow.png", "--operator", "downscale:factor=2"),
    "--noise must be": ("whole.png", *MASK, "--noise", "-1"),
    "unknown method 'mmsp'; did you mean 'mmps'? (known: daps, ddnm,": ("whole.png", *MASK, "--method", "mmsp"),
    "iteration": ("whole.png", *MASK, "--method", "mmps:iteration=3"),
    "'cfg' does not take a measurement": ("whole.png", *MASK, "--method", "cfg:scale=3"),
    "unknown input 'picture'": ("whole.png", *MASK, "--input", "picture"),
    "there is no picture": ("nothing.png", *MASK),
    "there is no picture other.png": ("whole.png", *MASK, "--truth", "other.png"),
    "class": ("whole.png", *MASK, "--class", "12"),
    "must end in .png": ("whole.png", *MASK, "--out", "made.jpg"),
    "needs a linear operator": ("whole.png", "--operator", "jpeg:quality=30", "--method", "mmps"),
    "at least 1": ("whole.png", *MASK, "--num-images", "0"),
    "a picture": ("text.png", *MASK),
}


@pytest.mark.parametrize(("message", "line"), WRONG.items(), ids=WRONG)
def test_mistakes_end_in_a_message_and_write_nothing(
    tiny: str,
    message: str,
    line: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("text.png").write_text("a text")
    Image.new("L", (6, 8)).save("narrow.png")
    monkeypatch.setattr(BACKBONES["dit"], "forward", lambda *_: pytest.fail("the network was evaluated"))
    assert run("restore", tiny, *line) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in said
    assert not Path("restored.png").exists()
