"""Encoding a data set: what is stored is the autoencoder's own, whatever happened on the way."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from dinit.cli import main
from dinit.data import DATASETS
from dinit.data.latent_cache import MANIFEST, shard_file
from dinit.data.latents import Latents
from dinit.evaluation.metrics.reconstruction import psnr, ssim
from dinit.files import only_writer
from dinit.models.codec import AutoencoderKLCodec
from dinit.pipelines.weights.encode import Encoded, Options, encode
from dinit.training.autoencoder import AutoencoderRecipe, make_autoencoder

DATA = {"name": "digits", "split": "test"}  # 359 images of 8×8
SMALL = Options(shard_size=8, batch_size=8, measure=50, workers=0)
FEW = Options(flips=True, shard_size=100, batch_size=40, measure=50, workers=0)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not trained; its latents are far from standard."""
    torch.manual_seed(0)
    vae: Any = make_autoencoder(AutoencoderRecipe(widths=(8, 8), latent_channels=3), channels=1, size=8)
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.tensor([2.0, -1.0, 0.5, -3.0, -2.0, -1.0]))
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    folder = tmp_path_factory.mktemp("autoencoders") / "untrained"
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return encode(autoencoder, DATA, tmp_path_factory.mktemp("caches") / "digits", FEW, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@torch.no_grad()
def test_the_cache_holds_the_encoders_own_posteriors(autoencoder: Path, cache: Encoded) -> None:
    vae, digits = AutoencoderKL.from_pretrained(autoencoder), DATASETS.create(DATA)
    stored = Latents(cache.folder)
    images = torch.stack([digits.image(i) for i in range(len(digits))])
    for flipped in (False, True):
        posterior = vae.encode(images.flip(-1) if flipped else images).latent_dist
        found = [stored.posterior(i, flipped) for i in range(len(digits))]
        torch.testing.assert_close(torch.stack([m for m, _ in found]), posterior.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.stack([s for _, s in found]), posterior.std, rtol=1e-5, atol=1e-6)
    assert (stored.labels == digits.labels).all()
    assert stored.class_names == digits.class_names
    assert (stored.channels, stored.image_size, stored.picture_channels, stored.features) == (
        3,
        4,
        1,
        "digits-classifier",
    )


@torch.no_grad()
def test_the_reconstruction_is_measured_on_images_spread_over_the_set(cache: Encoded) -> None:
    vae, digits = AutoencoderKL.from_pretrained(cache.folder / "vae"), DATASETS.create(DATA)
    chosen = [i for i in range(len(digits)) if Latents(cache.folder).plan.is_measured(i)]
    images = torch.stack([digits.image(i) for i in chosen])
    decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
    assert cache.measured == len(chosen) == 50
    parts = np.array_split(np.arange(len(digits)), 10)  # a tenth of the measured ones in each tenth of the set
    assert [len(set(chosen) & set(part.tolist())) for part in parts] == [5] * 10
    assert cache.psnr == pytest.approx(float(psnr(images, decoded).mean()), abs=1e-3)
    assert cache.ssim == pytest.approx(float(ssim(images, decoded).mean()), abs=1e-5)


def test_what_training_sees_is_standard_and_decodes_to_the_image(autoencoder: Path, cache: Encoded) -> None:
    """The pipeline's normalisation is the data's, so its codec undoes what the data did."""
    data = Latents(cache.folder)
    drawn = torch.stack([data.sample(i, key)[0] for key in range(6) for i in range(len(data))]).double()
    assert drawn.mean(dim=(0, 2, 3)).abs().max() < 0.04  # pixels of one image hang together: no sharper bound
    assert (drawn.std(dim=(0, 2, 3)) - 1).abs().max() < 0.04
    parts = data.pipeline_parts()
    own = {f"latents_{key}": value for key, value in parts["latent_normalization"].items()}
    codec = AutoencoderKLCodec(parts["vae"], **own)
    digits = DATASETS.create(DATA)
    images = torch.stack([digits.image(i) for i in range(5)])
    with torch.no_grad():
        latents = torch.stack([data[i][0] for i in range(5)])
        torch.testing.assert_close(codec.encode(images), latents, rtol=1e-4, atol=1e-4)
        plain = AutoencoderKL.from_pretrained(autoencoder)
        decoded = plain.decode(plain.encode(images).latent_dist.mean).sample
        torch.testing.assert_close(codec.decode(latents), decoded, rtol=1e-4, atol=1e-4)
        published = Latents(cache.folder, normalization="autoencoder")
        assert published.pipeline_parts()["latent_normalization"] is None
        again = AutoencoderKLCodec(published.pipeline_parts()["vae"]).encode(images)
        torch.testing.assert_close(again, torch.stack([published[i][0] for i in range(5)]), rtol=1e-4, atol=1e-4)


def test_what_was_stopped_goes_on_and_gives_the_same_files(
    autoencoder: Path, cache: Encoded, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    encode(autoencoder, DATA, folder, FEW, progress=False)
    kept = shard_file(folder, 0).stat().st_mtime_ns
    (folder / MANIFEST).unlink()
    shard_file(folder, 1).unlink()
    shard_file(folder, 3).unlink()
    (folder / ".dinit-half.tmp").write_bytes(b"half a shard")
    made = encode(autoencoder, DATA, folder, FEW, progress=False)
    assert (made.shards, made.made) == (4, 2)
    assert shard_file(folder, 0).stat().st_mtime_ns == kept
    assert contents(folder) == contents(cache.folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert encode(autoencoder, DATA, folder, FEW, progress=False).made == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def _encode_in_child(autoencoder: str, folder: str) -> None:
    os.environ.pop("ACCELERATE_USE_CPU", None)
    encode(autoencoder, DATA, folder, SMALL, progress=False)


def encoded_by(processes: int, autoencoder: Path, folder: Path) -> Path:
    """Forked from a server: a fork of this process would hang in OpenMP, whose other threads it has not."""
    children = ranks.start(processes, _encode_in_child, str(autoencoder), str(folder))
    ranks.join(children)
    assert [child.exitcode for child in children] == [0] * processes
    return folder


@pytest.fixture(scope="module")
def by_one(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that one process made without interruption."""
    return encoded_by(1, autoencoder, tmp_path_factory.mktemp("one") / "cache")


def test_killed_and_restarted_encoding_is_the_uninterrupted_one(
    autoencoder: Path, by_one: Path, tmp_path: Path
) -> None:
    chance, kills, folder = random.Random(0), 0, tmp_path / "killed"
    for _ in range(4):
        before = len(list(folder.glob("latents-*")))
        (child,) = ranks.start(1, _encode_in_child, str(autoencoder), str(folder))
        ranks.wait_for(
            lambda child=child, before=before: (
                not child.is_alive() or len(list(folder.glob("latents-*"))) >= before + 3
            )
        )
        time.sleep(chance.uniform(0, 0.03))
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            kills += 1
        ranks.join([child])
        assert not (folder / MANIFEST).exists() or child.exitcode == 0
    assert kills >= 3
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("latents-*")}
    assert len(kept) < len(list(by_one.glob("latents-*")))
    assert contents(encoded_by(1, autoencoder, folder)) == contents(by_one)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # whole shards are not made again


def test_a_cache_of_other_images_or_another_autoencoder_is_not_mixed(autoencoder: Path, cache: Encoded) -> None:
    before = contents(cache.folder)
    with pytest.raises(ValueError, match=r"other latents; nothing was written.*\n.*data_fingerprint: '4275"):
        encode(autoencoder, "digits", cache.folder, FEW)
    with pytest.raises(ValueError, match=r"shard_size: 100 there, 64 now"):
        encode(autoencoder, DATA, cache.folder, Options(flips=True, shard_size=64, measure=50))
    other = cache.folder.parent / "other"
    torch.manual_seed(1)
    make_autoencoder(AutoencoderRecipe(widths=(8, 8), latent_channels=3), 1, 8).save_pretrained(other)
    with pytest.raises(ValueError, match=r"autoencoder.weights: '[0-9a-f]{64}' there"):
        encode(other, DATA, cache.folder, FEW)
    assert contents(cache.folder) == before


def test_what_does_not_fit_is_refused_before_anything_is_written(autoencoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for data, message in (
        ({"name": "glyphs", "count": 4}, "takes images of 1 channels, and those of 'glyphs' have 3"),
        ({"name": "digit"}, "did you mean 'digits'"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(autoencoder, data, out)
    odd = tmp_path / "odd"
    make_autoencoder(AutoencoderRecipe(widths=(8, 8, 8, 8, 8)), 1, 16).save_pretrained(odd)
    with pytest.raises(ValueError, match="multiples of 16, got 8 x 8"):
        encode(odd, DATA, out)
    with pytest.raises(ValueError, match="gave no AutoencoderKL"):
        encode(tmp_path / "nowhere", DATA, out)
    for wrong, message in (
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"store": "int8"}, "unknown store 'int8'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**wrong)
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no latents; nothing was written"):
        encode(autoencoder, DATA, tmp_path / "full")
    with pytest.raises(ValueError, match="is a file"):
        encode(autoencoder, DATA, tmp_path / "full" / "thesis.txt")
    assert contents(tmp_path / "full") == {"thesis.txt": b"mine"}


def test_two_calls_do_not_write_into_one_folder(autoencoder: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_hold, args=(held, ready))
    child.start()
    assert ready.wait(30)
    with pytest.raises(OSError, match="another process is writing into"):
        encode(autoencoder, DATA, held, SMALL, progress=False)
    ranks.kill([child])
    assert encode(autoencoder, DATA, held, SMALL, progress=False).made == 45


def _hold(folder: Path, ready: Any) -> None:
    with only_writer(folder):
        ready.set()
        time.sleep(60)


def test_latents_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    vae: Any = make_autoencoder(AutoencoderRecipe(widths=(8, 8), latent_channels=3), 1, 8)
    with torch.no_grad():
        vae.quant_conv.bias[0] = 1e6  # more than float16 can hold
    vae.save_pretrained(tmp_path / "vae")
    half = Options(store="float16", measure=0, workers=0)
    with pytest.raises(ValueError, match=r"NaN or infinity \(it ran in float32, stored as float16\)"):
        encode(tmp_path / "vae", DATA, tmp_path / "out", half)
    assert not list((tmp_path / "out").glob("latents-*"))


def test_half_precision_is_stored_and_measured_as_stored(autoencoder: Path, cache: Encoded, tmp_path: Path) -> None:
    half = encode(autoencoder, DATA, tmp_path / "half", Options(store="float16", measure=0, workers=0))
    assert (half.psnr, half.measured) == (None, 0)
    mean, std = Latents(half.folder).posterior(7)
    exact_mean, exact_std = Latents(cache.folder).posterior(7)
    assert torch.equal(mean, exact_mean.half().float())
    assert torch.equal(std, exact_std.half().float())


def test_the_command(autoencoder: Path, cache: Encoded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--flips", "--shard-size", "100", "--batch-size", "40", "--measure", "50", "--workers", "0"]
    arguments = ["encode", str(autoencoder), "--data", "digits:split=test", "--out", str(tmp_path / "c"), *options]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert "359 images, and mirrored in 4 shards, 4 of them now; reconstruction of 50: PSNR" in said
    assert contents(tmp_path / "c") == contents(cache.folder)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments[:3], "glyphs:count=9", *arguments[4:]])
    assert stopped.value.code == 2
    assert "takes images of 1 channels" in " ".join(capsys.readouterr().err.split()).replace("│ ", "")


def test_two_processes_make_what_one_makes(autoencoder: Path, by_one: Path, tmp_path: Path) -> None:
    assert contents(encoded_by(2, autoencoder, tmp_path / "two")) == contents(by_one)
