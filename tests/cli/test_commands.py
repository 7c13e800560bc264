"""The command line: what it writes, and that every mistake ends in a message and a code other than 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dinit.cli import main
from dinit.cli.listing import KINDS
from dinit.cli.options import CallFlags
from dinit.models.base import BACKBONES
from dinit.pipelines.outputs.manifest import read_manifest
from dinit.samplers import SAMPLERS
from dinit.specs import parse_spec


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    """The exit code of `dinit ...`."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_import_and_help_load_no_torch() -> None:
    program = """
import sys
import dinit
assert "torch" not in sys.modules, "import dinit"
from dinit.cli import main
try:
    main(["--help"])
except SystemExit as stopped:
    assert not stopped.code
heavy = {"torch", "diffusers", "numpy", "PIL", "yaml", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for command in ("generate", "train", "evaluate", "list", "info", "verify", "replay", "convert", "export"):
        assert command in done.stdout


def test_generate_writes_what_the_call_says_and_replay_agrees(tiny: str, capsys) -> None:
    options = ["--classes", "2,digit 5", "--per-class", "3", "--sampler", "ddim:eta=0.5", "--steps", "3"]
    more = ["--guidance", "cfg:scale=2", "--guidance", "cads", "--seed", "4", "--grid", "log-snr"]
    assert run("generate", tiny, *options, *more, "--out-dir", "singles", "--out", "sheet.png") == 0
    manifest = read_manifest(Path("sheet.png"))
    assert manifest.call["labels"] == [2, 2, 2, 5, 5, 5]
    assert manifest.call["seeds"] == [[4, k] for k in range(6)]
    assert manifest.call["sampler"] == {"name": "ddim", "eta": 0.5}
    assert manifest.call["grid"]["name"] == "log-snr"
    assert [part["name"] for part in manifest.call["guidance"]] == ["cfg", "cads"]
    assert manifest.nfe == 3
    assert len(list(Path("singles").glob("*.png"))) == 6
    assert run("replay", "sheet.png") == 0
    assert run("replay", "singles") == 0
    assert run("replay", "singles/000004.png", "--pipeline", tiny) == 0
    assert "the same" in capsys.readouterr().out


def test_defaults_are_ten_of_each_class_in_samples_png(tiny: str) -> None:
    assert run("generate", tiny, "--sampler-option", "eta=1") == 0
    manifest = read_manifest(Path("samples.png"))
    assert manifest.call["labels"] == [label for label in range(10) for _ in range(10)]
    assert manifest.call["sampler"] == {"name": "ddim", "eta": 1}


def test_replay_says_no_to_a_changed_picture(tiny: str, capsys) -> None:
    assert run("generate", tiny, "--labels", "3", "--out-dir", "one") == 0
    path = Path("one/000000.png")
    with Image.open(path) as picture:
        picture.load()
    picture.putpixel((0, 0), 255 - picture.getpixel((0, 0)))
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("dinit", picture.info["dinit"])
    picture.save(path, pnginfo=info)
    assert run("replay", str(path)) == 1
    assert "different" in capsys.readouterr().out


def test_unconditional_and_trajectory(tiny: str) -> None:
    assert run("generate", tiny, "--num-images", "4", "--trajectory", "film.gif", "--out", "a.png") == 0
    assert read_manifest(Path("a.png")).call["labels"] == [None] * 4
    with Image.open("film.gif") as film:
        assert film.n_frames == 2  # type: ignore[attr-defined]


MISTAKES = {
    "unknown sampler": (["--sampler", "dddim"], "did you mean 'ddim'"),
    "unknown option": (["--sampler", "ddim:etta=1"], "did you mean 'eta'"),
    "option out of range": (["--sampler", "ddim:eta=3"], "eta must be in [0, 1]"),
    "option of a wrong type": (["--sampler", "ddim:eta=x"], "eta must be a number, got 'x'"),
    "option without value": (["--sampler", "ddim:eta"], "KEY=VALUE"),
    "unknown guidance": (["--guidance", "cgf:scale=1"], "did you mean 'cfg'"),
    "negative guidance": (["--guidance", "cfg:scale=-1"], ">= 0"),
    "grid without its times": (["--grid", "times"], "needs a value for values"),
    "no steps": (["--steps", "0"], "steps must be at least 1"),
    "class out of range": (["--classes", "10"], "out of range"),
    "unknown class": (["--classes", "digt 3"], "did you mean 'digit 3'"),
    "blank class": (["--classes", "1,,2"], "between commas"),
    "no images": (["--per-class", "0"], "at least 1"),
    "two ways of labels": (["--classes", "1", "--labels", "2"], "contradict"),
    "device": (["--device", "gpu7"], "cannot be used"),
    "dtype": (["--dtype", "float23"], "did you mean 'float32'"),
    "other suffix": (["--out", "a.jpg"], "must end in .png"),
    "film of another kind": (["--trajectory", "a.mp4"], "must end in .gif or .webp"),
    "below a file": (["--out", "taken.png/a.png"], "cannot be written"),
    "there already": (["--out", "taken.png"], "--overwrite"),
    "folder not empty": (["--out-dir", "."], "not empty"),
    "class order of a sheet": (["--class-order", "random"], "--class-order: for a set of images only"),
    "group and pack of a sheet": (["--group", "4", "--no-pack"], "--group, --no-pack: for a set of images only"),
    "labels of a sheet": (["--labels-from", "l.npy"], "--labels-from: for a set of images only"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_generate(tiny: str, mistake: str, capsys) -> None:
    options, message = MISTAKES[mistake]
    Path("taken.png").write_text("keep me")
    assert run("generate", tiny, *options) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.replace("│", " ").split())
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= 24, "one screen"
    assert [path.name for path in Path().iterdir()] == ["taken.png"]
    assert Path("taken.png").read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "no-such-pipeline"], "no shipped pipeline"),
        (["generate", "model.ckpt"], "pickle checkpoint"),
        (["info", "nothing.png"], "no picture"),
        (["replay", "nothing"], "no picture"),
        (["list", "smplers"], "did you mean 'samplers'"),
        (["verify", "--sampler", "dddim"], "did you mean 'ddim'"),
        (["train", "nothing.yaml"], "there is no recipe file nothing.yaml"),
        (["train", "digits-dcio"], "did you mean 'digits-dico'"),
        (["evaluate", "no-such-pipeline"], "no shipped pipeline"),
        (["evaluate", "no-such-pipeline", "--json", "report.txt"], "must end in .json"),
        (["generate"], "Missing argument"),
        (["generrate"], "No such command"),
    ],
)
def test_mistakes_of_other_commands(arguments: list[str], message: str, capsys) -> None:
    assert run(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_all_mistakes_of_a_recipe_are_shown(capsys) -> None:
    Path("r.yaml").write_text("data: digts\nbackbone: unet\ntraining: {stps: 3, batch_size: -1, steps: 5}\n")
    assert run("train", "r.yaml", "--out", "run") == 2
    shown = capsys.readouterr().err
    for part in ("digts", "stps", "batch_size"):
        assert part in shown
    assert not Path("run").exists()


def test_debug_keeps_the_traceback(tiny: str) -> None:
    with pytest.raises(ValueError, match="unknown sampler"):
        main(["--debug", "generate", tiny, "--sampler", "dddim"])


def test_overwrite_replaces(tiny: str) -> None:
    Path("samples.png").write_text("old")
    assert run("generate", tiny, "--labels", "1,2", "--overwrite") == 0
    assert read_manifest(Path("samples.png")).call["labels"] == [1, 2]


def test_list_reads_the_registries(capsys) -> None:
    assert run("list", "samplers", "--names") == 0
    assert capsys.readouterr().out.split() == SAMPLERS.names()
    assert run("list", "samplers") == 0
    shown = capsys.readouterr().out
    assert all(SAMPLERS.summary(name) in shown for name in SAMPLERS)
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in KINDS)


def test_info_counts_parameters(tiny: str, capsys) -> None:
    assert run("info", tiny) == 0
    count = sum(p.numel() for p in BACKBONES["dit"].preset("tiny").parameters())
    assert f"{count:,}" in capsys.readouterr().out


def test_specs() -> None:
    assert parse_spec("heun") == {"name": "heun"}
    spec = parse_spec("cfg:scale=4,range=[0.1, 0.9],low=-.inf,to-end=true", ["tiny=1e-3"])
    assert spec == {
        "name": "cfg", "scale": 4, "range": [0.1, 0.9], "low": float("-inf"), "to_end": True, "tiny": 1e-3
    }  # fmt: skip
    assert CallFlags(guidance=["none"]).options() == {"guidance": []}
    assert CallFlags(guidance=["4", "cads"]).options() == {"guidance": [4.0, {"name": "cads"}]}
    assert CallFlags().options() == {}
    assert json.dumps(spec)
