"""Latents as files: of a pipeline with and without autoencoder, read again, decoded, with the call's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dinit import Pipeline
from dinit.cli.app import app
from dinit.models import BACKBONES
from dinit.pipelines.call import Call
from dinit.pipelines.outputs.latents import read_latents

CALL = ["--labels", "1,0,1", "--sampler", "ddim", "--steps", "2", "--batch-size", "2", "--seed", "5"]
MEAN, STD = [0.5, -1.0, 0.0, 2.0], [2.0, 1.0, 0.5, 4.0]


def saved(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    backbone = BACKBONES["dit"].preset("tiny", in_channels=4, image_size=4, num_classes=2)
    for parameter in backbone.parameters():  # a network that begins at zero has the same output for every class
        torch.nn.init.normal_(parameter, std=0.2)
    plain = {"process": {"name": "vp-discrete"}, "parameterization": {"name": "epsilon"}}
    Pipeline(backbone, **plain, **options).save_pretrained(folder)
    return folder


def tiny_vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.3)


def generate(*arguments: str | Path) -> None:
    app(args=["generate", *map(str, arguments)], standalone_mode=False)


def test_a_pipeline_without_its_autoencoder_writes_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    normalization = {"mean": MEAN, "std": STD}
    folder = saved(tmp_path / "p", vae_reference="owner/vae", latent_normalization=normalization)
    monkeypatch.setattr(Pipeline, "_iterate", lambda *_: pytest.fail("evaluated"))
    for more in ((), ("--out", "a.png", "--latents", "a.safetensors")):
        with pytest.raises(ValueError, match=r"owner/vae, which is not in it.*`dinit generate --latents FILE"):
            generate(folder, *CALL, *more)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["p"]

    generate(folder, *CALL, "--latents", "a.safetensors")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors", "p"]  # no sheet
    assert "3 latents in" in capsys.readouterr().out
    latents, manifest = read_latents(tmp_path / "a.safetensors")
    pipe = Pipeline.from_pretrained(folder)
    call = Call.from_config(manifest.call)
    assert torch.equal(pipe.run(call, "latent").images, latents)
    assert (call.labels, call.steps, call.keys[2]) == ((1, 0, 1), 2, (5, 2))
    assert latents.std() > 0.1
    assert manifest.picture == {"kind": "latents", "shape": [3, 4, 4, 4], "dtype": "float32"}
    numbers = {"scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": MEAN, "latents_std": STD}
    assert manifest.codec == {"name": "autoencoder-kl", "reference": "owner/vae", **numbers}

    vae = tiny_vae()
    images = Pipeline.from_pretrained(folder, vae=vae).codec.decode(latents)
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    torch.testing.assert_close(images, vae.decode(latents * std + mean).sample)


def test_a_pipeline_with_its_autoencoder_writes_both(tmp_path: Path) -> None:
    folder = saved(tmp_path / "p", vae=tiny_vae())
    generate(folder, *CALL, "--out", tmp_path / "alone.png")
    generate(folder, *CALL, "--out", tmp_path / "both.png", "--latents", tmp_path / "new" / "a.safetensors")
    with Image.open(tmp_path / "alone.png") as one, Image.open(tmp_path / "both.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    latents, manifest = read_latents(tmp_path / "new" / "a.safetensors")
    assert manifest.codec == {"name": "autoencoder-kl", "scaling_factor": 0.3, "shift_factor": 0.0}
    assert latents.shape == (3, 4, 4, 4)


@pytest.mark.parametrize(
    ("more", "error", "sentence"),
    [
        (["--latents", "a.png"], ValueError, "a.png must end in .safetensors"),
        (["--latents", "there.safetensors"], FileExistsError, "there.safetensors is there already"),
        (["--latents", "a.safetensors", "--out", "set"], ValueError, "a set of images has no .*--latents"),
    ],
)
def test_wrong_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], error: type[Exception], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").touch()
    with pytest.raises(error, match=sentence):
        generate("digits-dico", *CALL, *more)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_latents(path)
    save_file({"latents": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"weights.safetensors has no dinit manifest"):
        read_latents(path)
    for text, sentence in (
        ("{", "is damaged"),
        ("[]", "has format None"),
        ('{"format": 1}', "is damaged: missing"),
    ):
        save_file({"latents": torch.zeros(1)}, path, {"dinit": text})
        with pytest.raises(ValueError, match=sentence):
            read_latents(path)
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="wanted: latents that `dinit generate --latents` wrote"):
        read_latents(path)
