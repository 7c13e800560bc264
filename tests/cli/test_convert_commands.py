"""`dinit convert` and `dinit export`: what they write and say, and that every mistake ends in a message."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference

from dinit.cli import main
from dinit.pipelines.generate import Pipeline

HEADS = ("--option", "num_heads=4")


@pytest.fixture(autouse=True)
def _in_a_folder_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Reference(GOLDEN / "dit_sigma.safetensors").state, "a.pt")


def run(*arguments: str) -> int:
    """The exit code of `dinit ...`."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def words(text: str) -> str:
    """The text of a panel without its frame and line breaks."""
    return " ".join(text.replace("│", " ").split())


def test_convert_says_what_it_took_for_what(capsys) -> None:
    assert run("convert", "a.pt", "--to", "p", *HEADS) == 0
    told = words(capsys.readouterr().out)
    for part in (
        "layout dit: the second half of its head was trained",
        "148,880 parameters: dit with image_size 8",
        "stabilityai/sd-vae-ft-ema",
        "→ p",
    ):
        assert part in told
    assert run("info", "p") == 0
    assert "not in it: stabilityai/sd-vae-ft-ema" in words(capsys.readouterr().out)
    pipe = Pipeline.from_pretrained("p")
    assert pipe([1], steps=2, output_type="latent").images.shape == (1, 4, 8, 8)


def test_every_option_arrives() -> None:
    torch.save({"model": torch.load("a.pt"), "ema": Reference(GOLDEN / "sit.safetensors").state}, "b.pt")
    digest = hashlib.sha256(Path("b.pt").read_bytes()).hexdigest()
    options = ["--layout", "sit", "--weights", "ema", "--process", "flow:shift=2", "--sha256", digest]
    assert run("convert", "b.pt", "--to", "p", *HEADS, *options, "--parameterization", "velocity") == 0
    pipe = Pipeline.from_pretrained("p")
    assert (pipe.process.shift, pipe.parameterization.registry_name) == (2, "velocity")
    assert type(pipe.backbone).__name__ == "SiT"


def test_overwrite() -> None:
    assert run("convert", "a.pt", "--to", "p", *HEADS) == 0
    assert run("convert", "a.pt", "--to", "p", *HEADS) == 2
    assert run("convert", "a.pt", "--to", "p", *HEADS, "--overwrite") == 0
    assert run("export", "p", "--format", "dit", "--to", "b.pt") == 0
    assert run("export", "p", "--format", "dit", "--to", "b.pt") == 2
    assert run("export", "p", "--format", "dit", "--to", "b.pt", "--overwrite") == 0
    one, other = torch.load("a.pt"), torch.load("b.pt")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.pt"], "there is no file or folder nothing.pt"),
        (["a.pt"], "--option num_heads="),
        (["a.pt", "--option", "num_heads"], "reads KEY=VALUE"),
        (["a.pt", "--option", "num_heads=four"], "num_heads must be"),
        (["a.pt", "--option", "num_headz=4"], "did you mean 'num_heads'"),
        (["a.pt", *HEADS, *HEADS], "given twice"),
        (["a.pt", *HEADS, "--layout", "ditt"], "did you mean 'dit'"),
        (["a.pt", *HEADS, "--layout", "dico"], "has not the tensors of layout 'dico'"),
        (["a.pt", *HEADS, "--weights", "emma"], "bare state with one set of weights: leave weights ('emma') out"),
        (["a.pt", *HEADS, "--weights", "ema"], "bare state"),
        (["a.pt", *HEADS, "--process", "flo"], "did you mean 'flow'"),
        (["a.pt", *HEADS, "--process", "flow:shif=2"], "did you mean 'shift'"),
        (["a.pt", *HEADS, "--process", "flow:shift=a"], "shift"),
        (["a.pt", *HEADS, "--parameterization", "epsilom"], "did you mean 'epsilon'"),
        (["a.pt", *HEADS, "--vae", "./no-folder"], "no-folder gave no AutoencoderKL"),
        (["a.pt", *HEADS, "--sha256", "12"], "64 hexadecimal digits"),
        (["a.pt", *HEADS, "--sha256", "0" * 64], "was not opened"),
        (["."], "no model folder"),
        (["a.pt", *HEADS, "--overwrit"], "No such option"),
    ],
)
def test_mistakes_in_convert_are_told(arguments: list[str], told: str, capsys) -> None:
    assert run("convert", *arguments, "--to", "p") == 2
    shown = capsys.readouterr().err
    assert told in words(shown)
    assert "Traceback" not in shown
    assert not Path("p").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["p", "--format", "dti", "--to", "b.pt"], "did you mean 'dit'"),
        (["p", "--format", "sit", "--to", "b.pt"], "runs a SiT"),
        (["p", "--format", "diffusers", "--to", "b"], "freq_shift = 1 built in"),
        (["p", "--format", "dit", "--to", "b.bin"], "must end in .pt or .pth"),
        (["q", "--format", "dit", "--to", "b.pt"], "no folder q"),
        (["a.pt", "--format", "dit", "--to", "b.pt"], "pickle checkpoint"),
        (["p", "--format", "dit"], "Missing option"),
    ],
)
def test_mistakes_in_export_are_told(arguments: list[str], told: str, capsys) -> None:
    assert run("convert", "a.pt", "--to", "p", *HEADS) == 0
    assert run("export", *arguments) == 2
    shown = capsys.readouterr().err
    assert told in words(shown)
    assert "Traceback" not in shown
    assert not Path("b.pt").exists()


def test_the_target_is_a_file(capsys) -> None:
    Path("file").touch()
    assert run("convert", "a.pt", "--to", "file", *HEADS) == 2
    assert "is a file, a folder is needed" in words(capsys.readouterr().err)
