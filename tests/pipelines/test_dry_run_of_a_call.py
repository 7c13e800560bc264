"""A dry run of `generate`: its counts against real runs, its memory against real evaluations, and no trace left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.cli import main
from dinit.models import BACKBONES
from dinit.pipelines import Pipeline
from dinit.pipelines.outputs import dry_run as module
from dinit.pipelines.outputs.dry_run import DryRun, Wanted, dry_run
from dinit.pipelines.outputs.memory_trace import Trace, tensors_of


def pipeline(name: str = "dit") -> Pipeline:
    torch.manual_seed(0)
    network = BACKBONES[name].preset("tiny", image_size=8, in_channels=1, num_classes=3)
    return Pipeline(network, {"name": "vp"}, {"name": "epsilon"}, defaults={"sampler": "ddim", "steps": 3})


@pytest.mark.parametrize("name", ["dit", "unet"])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_memory_of_an_evaluation_is_what_the_kernels_hold(name: str, guidance: float | None) -> None:
    pipe = pipeline(name)
    call = pipe.prepare([0, 1, 2, 0], guidance=guidance)
    found = dry_run(pipe, call)
    real: list[int] = []
    forward = pipe.backbone.forward

    def watched(*args: Tensor) -> Tensor:
        trace = Trace()
        trace.known([*tensors_of(pipe.backbone), *args])
        with trace:
            made = forward(*args)
        real.append(trace.peak)
        return made

    pipe.backbone.forward = watched
    pipe.run(call, "raw")
    assert len(real) == 3
    assert found.activations == max(real)
    assert found.weights == sum(4 * one.numel() for one in tensors_of(pipe.backbone))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m", "ddpm", "unipc", "pndm"])
def test_nfe_is_that_of_the_run(sampler: str) -> None:
    pipe = pipeline()
    call = pipe.prepare([0, None, 2], sampler=sampler, steps=7, batch_size=2)
    found = dry_run(pipe, call)
    assert found.nfe == pipe.run(call, "raw").nfe
    assert (found.images, found.classes, found.batches, found.steps) == (3, 2, 2, 7)


def test_an_adaptive_sampler_has_a_lower_bound() -> None:
    pipe = pipeline()
    call = pipe.prepare([0, 1], sampler="rk45", steps=3)
    found = dry_run(pipe, call)
    assert found.adaptive
    assert not found.note
    assert found.nfe <= pipe.run(call, "raw").nfe
    assert "at least" in "\n".join(found.lines())


def test_memory_grows_with_what_is_kept() -> None:
    pipe = pipeline()
    few, many = pipe.prepare([0] * 4, batch_size=4), pipe.prepare([0] * 4000, batch_size=4)
    one, all_of_them = dry_run(pipe, few), dry_run(pipe, many)
    assert all_of_them.activations == one.activations
    assert all_of_them.working > one.working + 4 * 3996 * 64  # float32 images of 8 x 8
    moving = dry_run(pipe, pipe.prepare([0] * 400, batch_size=400), Wanted(animation=True))
    still = dry_run(pipe, pipe.prepare([0] * 400, batch_size=400))
    assert moving.samples >= still.samples + 2 * 4 * 400 * 64  # two posterior means more


@pytest.mark.parametrize("name", ["dit", "dis"])
def test_nothing_is_evaluated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(name)
    original = type(pipe.backbone).forward

    def without_numbers(self: Any, x: Tensor, *args: Any) -> Tensor:
        assert type(x) is not Tensor
        return original(self, x, *args)

    monkeypatch.setattr(type(pipe.backbone), "forward", without_numbers)
    before = {key: value.clone() for key, value in pipe.backbone.state_dict().items()}
    assert dry_run(pipe, pipe.prepare([0, 1])).activations > 0
    assert all(torch.equal(value, before[key]) for key, value in pipe.backbone.state_dict().items())


def test_the_peak_of_opening_counts() -> None:
    found = DryRun(1, 0, 1, 1, 1, "", False, 100, 1, 0, 1, 20, opening=150, available=140)
    assert found.total == 150
    assert not found.fits
    assert DryRun(1, 0, 1, 1, 1, "", False, 100, 1, 0, 1, 60, opening=150).total == 160


def lines_of(*arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["generate", "digits-dit", *arguments, "--dry-run"])
    assert (ended.value.code or 0) == code
    out = capsys.readouterr()
    return out.out + out.err


def test_the_command_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = lines_of("--classes", "1,2", "--per-class", "3", "--steps", "4", capsys=capsys)
    assert "6 images of 2 classes" in text
    assert "4 steps, 4 NFE each, in 1 batch" in text
    assert "files: samples.png" in text
    text = lines_of("--num-images", "130", "--class-order", "none", "--out", "set", capsys=capsys)
    assert "130 images" in text
    assert "in 3 batches" in text
    assert "130 PNGs and manifest.json in set, a .npz of all" in text
    assert "a.safetensors" in lines_of("--labels", "1", "--latents", "a.safetensors", capsys=capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_what_a_run_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("samples.png").touch()
    Path("other").mkdir()
    Path("other", "notes.txt").touch()
    for arguments in (["--out", "other"], ["--classes", "99"], ["--sampler", "ddmi"], []):
        refused = lines_of(*arguments, capsys=capsys, code=2)
        with pytest.raises(SystemExit):
            main(["generate", "digits-dit", *arguments])
        out = capsys.readouterr()
        assert out.out + out.err == refused


def test_a_call_that_does_not_fit_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "available", lambda: 1000)
    assert "will not fit" in lines_of("--labels", "1", capsys=capsys, code=1)


def test_a_dry_run_takes_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    pipe = pipeline()
    with pytest.raises(ValueError, match="one process"):
        dry_run(pipe, pipe.prepare([0]))


PEAK = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-m", "dinit", "generate", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(1024 * used.ru_maxrss, status)
"""


def peak_of(folder: Path, name: str, *options: str) -> int:
    """Bytes that `dinit generate` takes at its peak, started from a small process, whose size it would inherit."""
    out = ("--out", str(folder / f"{name}.png"))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder / name), *options, *out],
        capture_output=True,
        env=outside(),
        timeout=240,
    )
    peak, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    return peak


def outside() -> dict[str, str]:
    """The environment of a command that is started by hand."""
    return {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak as Linux counts it")
@pytest.mark.parametrize(("width", "depth", "guidance"), [(384, 2, "none"), (512, 4, "2")])
def test_memory_is_the_peak_of_the_command(width: int, depth: int, guidance: str, tmp_path: Path) -> None:
    """Within 10 % of what the process takes more than with a network of next to nothing."""
    for folder, size in (("small", {}), ("large", {"hidden_size": width, "depth": depth, "num_heads": 8})):
        network = BACKBONES["dit"].preset("tiny", image_size=16, in_channels=3, num_classes=3, **size)
        Pipeline(network, {"name": "vp"}, {"name": "epsilon"}).save_pretrained(tmp_path / folder)
    call = ("--sampler", "ddim", "--steps", "2", "--guidance", guidance)
    program = peak_of(tmp_path, "small", *call, "--labels", "1")
    labels = ("--labels", ",".join("0" * 64))
    done = subprocess.run(
        [sys.executable, "-m", "dinit", "generate", str(tmp_path / "large"), *call, *labels, "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=outside(),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    number, unit = re.findall(r"memory: about ([\d.]+) (MiB|GiB)", done.stdout)[0]
    estimated = float(number) * (1 << {"MiB": 20, "GiB": 30}[unit])
    assert estimated == pytest.approx(peak_of(tmp_path, "large", *call, *labels) - program, rel=0.1)
