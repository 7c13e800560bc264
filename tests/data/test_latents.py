"""Latents from a cache written by hand: what is drawn, how it is normalised, what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinit.data import DATASETS
from dinit.data.latent_cache import (
    MANIFEST,
    PLAN,
    CachePlan,
    Measured,
    finish,
    read_manifest,
    shard_file,
    write_shard,
)
from dinit.data.latents import Latents, source_of
from dinit.data.order import hash_words
from dinit.training.batches import Share, batches

OWN = {"scaling_factor": 0.5, "shift_factor": 0.25, "latents_mean": None, "latents_std": None}
PLAN_10 = CachePlan(
    data={"name": "glyphs", "count": 10},
    data_fingerprint="abc",
    features="glyphs-classifier",
    images=10,
    image_channels=3,
    image_size=32,
    num_classes=2,
    class_names=("a", "b"),
    autoencoder={"name": "tiny", "weights": "123", **OWN},
    latent_shape=(3, 4, 4),
    flips=True,
    network_dtype="float32",
    dtype="float32",
    shard_size=4,
    measured=3,
)


def posteriors(plan: CachePlan, seed: int = 0) -> dict[str, torch.Tensor]:
    """Means far from 0 and of different spread, as autoencoders have them."""
    generator = torch.Generator().manual_seed(seed)
    shape, spread = (plan.images, *plan.latent_shape), torch.tensor([0.1, 1.0, 5.0])[:, None, None]
    names = ("", "_flipped") if plan.flips else ("",)
    made = {}
    for name in names:
        made[f"mean{name}"] = 3.0 + spread * torch.randn(shape, generator=generator)
        made[f"std{name}"] = spread * torch.rand(shape, generator=generator)
    return made


def write(folder: Path, plan: CachePlan = PLAN_10, seed: int = 0) -> Path:
    folder.mkdir()
    (folder / PLAN).write_text(json.dumps(plan.to_json()))
    made = posteriors(plan, seed)
    labels = torch.arange(plan.images) % 2
    for shard in range(plan.shards):
        first, last = plan.bounds(shard)
        tensors = {name: tensor[first:last].clone() for name, tensor in made.items()}
        copies = [[t for n, t in tensors.items() if n.startswith(part)] for part in ("mean", "std")]
        measured = Measured.of(copies[0], copies[1], torch.tensor([20.0]), torch.tensor([0.5]))
        write_shard(folder, plan, shard, {**tensors, "labels": labels[first:last]}, measured)
    finish(folder, plan, {"torch": torch.__version__})
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("caches") / "ten")


def test_normalised_draws_have_mean_0_and_standard_deviation_1(tmp_path: Path) -> None:
    data = Latents(write(tmp_path / "many", dataclasses.replace(PLAN_10, images=500)))
    drawn = torch.stack([data.sample(i, key)[0] for key in range(4) for i in range(len(data))]).double()
    count = drawn.numel() / 3
    assert drawn.mean(dim=(0, 2, 3)).abs().max() < 5 / count**0.5
    assert (drawn.var(dim=(0, 2, 3)) - 1).abs().max() < 5 * (2 / count) ** 0.5
    means = Latents(tmp_path / "many", sample=False, horizontal_flip=True)
    both = torch.stack([means.sample(i, key)[0] for key in range(20) for i in range(len(data))]).double()
    assert both.mean(dim=(0, 2, 3)).abs().max() < 0.02
    assert (both.std(dim=(0, 2, 3)) - 1).abs().max() < 0.02  # the flips that keys draw are half, not exactly


def test_the_statistics_are_those_of_all_numbers_together(cache: Path) -> None:
    plan, measured, _ = read_manifest(cache)
    made = posteriors(plan)
    m = torch.cat([made["mean"], made["mean_flipped"]]).double()
    s = torch.cat([made["std"], made["std_flipped"]]).double()
    for sampled in (False, True):
        mean, std = measured.normalisation(sampled)
        variance = m.var(dim=(0, 2, 3), unbiased=False) + (s * s).mean(dim=(0, 2, 3)) * sampled
        torch.testing.assert_close(torch.tensor(mean).double(), m.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.tensor(std).double(), variance.sqrt(), rtol=1e-6, atol=0)


def test_a_draw_is_the_posterior_at_the_keys_noise(cache: Path) -> None:
    data, made = Latents(cache), posteriors(PLAN_10)
    mean, std = (torch.tensor(x)[:, None, None] for x in read_manifest(cache)[1].normalisation(sampled=True))
    seen = set()
    for index, key in ((0, 5), (3, 5), (4, 5), (9, 6), (9, 7)):
        flipped = bool(hash_words(key, index) & 1)
        seen.add(flipped)
        name = "_flipped" if flipped else ""
        noise = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(hash_words(key, index, 2) >> 1))
        z = made[f"mean{name}"][index] + made[f"std{name}"][index] * noise
        latent, label = data.sample(index, key)
        torch.testing.assert_close(latent, (z - mean) / std, rtol=1e-4, atol=1e-5)
        assert label == index % 2
        assert torch.equal(latent, data.sample(index, key)[0])
    assert seen == {False, True}
    plain = (made["mean"][7] - mean) / std
    torch.testing.assert_close(data[7][0], plain, rtol=1e-4, atol=1e-5)
    assert not torch.equal(data.sample(2, 1)[0], data.sample(2, 3)[0])


def test_the_autoencoders_own_scale_and_shift_on_demand(cache: Path, tmp_path: Path) -> None:
    own = Latents(cache, sample=False, normalization="autoencoder", horizontal_flip=False)
    torch.testing.assert_close(own[5][0], (posteriors(PLAN_10)["mean"][5] - 0.25) * 0.5)
    assert not own.augments
    assert Latents(cache).augments
    channels = {"shift_factor": 0.0, "latents_mean": [1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 4.0]}
    plan = dataclasses.replace(PLAN_10, autoencoder={**PLAN_10.autoencoder, **channels})
    data = Latents(write(tmp_path / "own", plan), normalization="autoencoder")
    shift, scale = torch.tensor([1.0, 2.0, 3.0])[:, None, None], torch.tensor([0.5, 0.25, 0.125])[:, None, None]
    torch.testing.assert_close(data[5][0], (posteriors(plan)["mean"][5] - shift) * scale)


def test_workers_and_ranks_read_the_run_that_one_process_reads(cache: Path) -> None:
    data = Latents(cache)
    whole = list(batches(data, 3, Share(4), 1, 6, workers=0))
    again = torch.stack([data.sample(i, k)[0] for i, k in _stream(data, 24)])
    assert torch.equal(torch.cat([x for x, _ in whole]), again)
    assert pickle.loads(pickle.dumps(data)).fingerprint() == data.fingerprint()
    for rank in (0, 1):
        share = Share(4, processes=2, rank=rank)
        for (x, y), (mine, labels) in zip(whole[2:], batches(data, 3, share, 3, 6, workers=1), strict=True):
            assert torch.equal(mine, x[share.rows(0)])
            assert torch.equal(labels, y[share.rows(0)])


def _stream(data: Latents, count: int) -> list[tuple[int, int]]:
    from dinit.data import sample_key

    return [(i, sample_key(3, k)) for k, i in enumerate(data.indices(3, 0, count))]


def test_measured_images_are_spread_evenly() -> None:
    for measured in (0, 1, 3, 7, 10):
        plan = dataclasses.replace(PLAN_10, measured=measured)
        chosen = [i for i in range(10) if plan.is_measured(i)]
        assert len(chosen) == measured
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_fingerprint_knows_contents_and_options(cache: Path, tmp_path: Path) -> None:
    plain = Latents(cache).fingerprint()
    assert Latents(write(tmp_path / "again")).fingerprint() == plain
    other = dataclasses.replace(PLAN_10, autoencoder={**PLAN_10.autoencoder, "weights": "124"})
    changed = [
        Latents(cache, sample=False).fingerprint(),
        Latents(cache, horizontal_flip=False).fingerprint(),
        Latents(cache, normalization="autoencoder").fingerprint(),
        Latents(write(tmp_path / "other", other)).fingerprint(),
        Latents(write(tmp_path / "numbers", seed=1)).fingerprint(),
    ]
    assert len({plain, *changed}) == 6


def test_what_is_no_finished_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; make it with `dinit encode"):
        DATASETS.create("latents", path=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no cache of latents"):
        Latents(tmp_path / "empty")
    unfinished = write(tmp_path / "unfinished")
    (unfinished / MANIFEST).unlink()
    shard_file(unfinished, 2).unlink()
    with pytest.raises(ValueError, match="unfinished: 2 of 3 shards; run the same"):
        Latents(unfinished)
    damaged = write(tmp_path / "damaged")
    whole = shard_file(damaged, 1).read_bytes()
    shard_file(damaged, 1).write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"latents-00001.safetensors cannot be read.*remove it"):
        Latents(damaged)
    shard_file(damaged, 1).write_bytes(shard_file(damaged, 0).read_bytes())
    with pytest.raises(ValueError, match="is not shard 1 of this cache"):
        Latents(damaged)
    (damaged / MANIFEST).write_text('{"format": 1, "images": 3}')
    with pytest.raises(ValueError, match=r"manifest.json is damaged: it has no data"):
        Latents(damaged)
    (damaged / MANIFEST).write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        Latents(damaged)


def test_options_that_do_not_fit_the_cache_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mirrored images; encode it again with --flips"):
        Latents(write(tmp_path / "plain", dataclasses.replace(PLAN_10, flips=False)), horizontal_flip=True)
    with pytest.raises(ValueError, match="must be 'measured' or 'autoencoder', got 'unit'"):
        DATASETS.create("latents", path=str(cache), normalization="unit")
    with pytest.raises(ValueError, match=r"no pixels.*'glyphs'"):
        Latents(cache).uint8_images()
    with pytest.raises(IndexError, match=r"0 \.\. 9"):
        Latents(cache).sample(10, 1)


def test_the_images_behind_latents_are_those_that_were_encoded(cache: Path) -> None:
    assert source_of({"name": "latents", "path": str(cache), "sample": False}) == {"name": "glyphs", "count": 10}
    assert source_of({"name": "digits", "split": "test"}) == {"name": "digits", "split": "test"}


def test_a_channel_that_never_changes_cannot_be_normalised(tmp_path: Path) -> None:
    folder = write(tmp_path / "constant")
    sums = json.loads((folder / MANIFEST).read_text())
    for key, value in (("mean", 0.0), ("square", 0.0), ("variance", 0.0)):
        sums["sums"][key][1] = value
    (folder / MANIFEST).write_text(json.dumps(sums))
    with pytest.raises(ValueError, match=r"channel 1 of the latents in .* never changes"):
        Latents(folder)
    assert Latents(folder, normalization="autoencoder")[0][0].isfinite().all()


def test_a_shard_is_the_same_file_whenever_it_is_written(cache: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    for path in cache.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    tensors = load_file(shard_file(cache, 2))
    assert sorted(tensors) == ["labels", "mean", "mean_flipped", "std", "std_flipped"]
    assert tensors["mean"].shape == (2, 3, 4, 4)
    save_file(tensors, shard_file(again, 2))  # without what it says of itself
    with pytest.raises(ValueError, match="is not shard 2"):
        Latents(again)
