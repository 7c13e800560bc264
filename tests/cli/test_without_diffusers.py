"""`dinit generate` on a small pipeline in pixels imports nothing of diffusers, and makes the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from dinit import DiCo, Pipeline, compat
from dinit.cli import main
from dinit.cli.checks import is_small_in_pixels
from dinit.pipelines.outputs.manifest import read_manifest

LINE = "generate PIPELINE --classes 1,3 --per-class 2 --steps 3 --sampler ddim:eta=0.5 --out a.png --out-dir b"
HEAVY = ("diffusers", "accelerate", "transformers", "torchvision", "scipy", "sympy", "torch._dynamo")
_PROGRAM = f"""
import sys
from dinit.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
import dinit.models.base, torch
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


def _files(folder: Path) -> dict[str, bytes | str]:
    """Contents, without the time of day."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            record = asdict(read_manifest(path))
            record.pop("created")
            found[str(path.relative_to(folder))] = json.dumps(record)
            if path.suffix == ".png":
                from PIL import Image

                with Image.open(path) as picture:
                    found[f"{path.name} pixels"] = picture.tobytes()
    return found


@pytest.mark.parametrize("name", ["fashion-28"])  # whose weights are kept in float16
def test_generates_the_same_without_diffusers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light, full = tmp_path / "light", tmp_path / "full"
    line = LINE.replace("PIPELINE", name).split()
    for folder in (light, full):
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *line], cwd=light, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    monkeypatch.chdir(full)
    with pytest.raises(SystemExit):
        main(line)
    assert len(_files(full)) == 11
    assert _files(light) == _files(full)


def test_classes_are_of_diffusers_outside_such_a_command() -> None:
    compat.without_diffusers()  # in a process that runs more than one command
    assert not compat.is_light()
    assert issubclass(Pipeline, DiffusionPipeline)
    assert issubclass(DiCo, ModelMixin)


def test_other_pipelines_are_opened_with_diffusers(tmp_path: Path) -> None:
    assert is_small_in_pixels("digits-dico")
    assert not is_small_in_pixels("owner/name")
    index = {"_class_name": "Pipeline", "vae_reference": None}
    for change in ({"_class_name": "DiTPipeline"}, {"vae_reference": "owner/vae"}):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, **change}))
        assert not is_small_in_pixels(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert is_small_in_pixels(str(tmp_path))
    (tmp_path / "vae").mkdir()
    assert not is_small_in_pixels(str(tmp_path))
