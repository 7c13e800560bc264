"""Edges that data sets share: which files are images, and what a cache of latents takes from its plan."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_latents import PLAN_10, write  # pyright: ignore[reportMissingImports]
from test_webdataset import number_of, write_tars  # pyright: ignore[reportMissingImports]

from dinit.data.folder import ImageFolder, image_files
from dinit.data.latent_cache import read_manifest
from dinit.data.latents import Latents
from dinit.data.order import epoch_order
from dinit.data.webdataset import WebDataset
from dinit.evaluation.samples import is_samples, read_samples

SEEN = ("a.png", "b.JPG", "below/c.png", "with.dot/d.e.png")
HIDDEN = (
    ".a.png",
    ".thumbnails/a.png",
    "below/.cache/deep/a.png",
    "notes.txt",
    "below/a.json",
    "no_suffix",
    "d.pdf.txt",
)


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 20 * k, dtype=np.uint8)).save(path, "PNG")
    return folder


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_files_and_those_in_hidden_folders_are_no_images(hidden: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "plain", SEEN)
    expected = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    assert sorted(expected) == sorted(SEEN)
    more = fill(tmp_path / "more", (*SEEN, hidden))
    assert [path.relative_to(more).as_posix() for path in image_files(more)] == expected
    assert len(read_samples(more).images) == len(SEEN)
    data = ImageFolder(fill(tmp_path / "classes", (*(f"cat/{name}" for name in SEEN), f"cat/{hidden}")), 4)
    assert len(data) == len(SEEN)
    assert data.class_names == ("cat",)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_folder_of_hidden_files_alone_holds_no_images(hidden: str, tmp_path: Path) -> None:
    assert not is_samples(fill(tmp_path / "only", (hidden,)))


def test_a_folder_in_a_hidden_one_is_read(tmp_path: Path) -> None:
    assert len(list(image_files(fill(tmp_path / ".mine" / "set", SEEN)))) == len(SEEN)


@pytest.mark.parametrize(
    ("field", "value", "attribute", "expected"),
    [
        ("features", "inception-v3", "features", "inception-v3"),
        ("features", "digits-classifier", "features", "digits-classifier"),
        ("image_channels", 1, "picture_channels", 1),
        ("latent_shape", (3, 2, 2), "image_size", 2),
        ("num_classes", 4, "num_classes", 4),
        ("class_names", ("x", "y"), "class_names", ("x", "y")),
        ("flips", False, "horizontal_flip", False),
        ("images", 7, "__len__", 7),
    ],
)
def test_a_cache_of_latents_says_what_its_plan_says(
    field: str, value: Any, attribute: str, expected: Any, tmp_path: Path
) -> None:
    data = Latents(write(tmp_path / "cache", dataclasses.replace(PLAN_10, **{field: value})))
    found = getattr(data, attribute)
    assert (found() if callable(found) else found) == expected
    plain = Latents(write(tmp_path / "plain"))
    usual = getattr(plain, attribute)
    assert expected != (usual() if callable(usual) else usual), "a value that shows nothing"


@pytest.mark.parametrize("sampled", [True, False])
def test_the_manifest_has_the_spread_of_draws(sampled: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "cache", dataclasses.replace(PLAN_10, images=60))
    _, measured, manifest = read_manifest(folder)
    mean, std = measured.normalisation(True)
    assert manifest["latents"] == {"mean": mean, "std": std}
    data = Latents(folder, sample=sampled)
    drawn = torch.stack([data.sample(i, key)[0] for key in range(3) for i in range(60)]).double()
    assert bool(((drawn.std(dim=(0, 2, 3)) - 1).abs() < 0.06).all())
    assert all(one > other for one, other in zip(std, measured.normalisation(False)[1], strict=True))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files")
def test_a_set_of_many_tars_holds_few_open(tmp_path: Path) -> None:
    data = WebDataset(write_tars(tmp_path / "w", tars=70, each=1), size=8)

    def opened() -> int:
        return sum(".tar" in os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())

    assert [number_of(data[k][0]) for k in range(70)] == list(range(70))
    assert opened() == 64
    assert [number_of(data[k][0]) for k in (69, 0, 3, 1)] == [69, 0, 3, 1]  # opened once more
    assert opened() == 64


@pytest.mark.parametrize(("epoch", "n"), [(-1, 5), (-2, 5), (0, 0), (0, -1), (-1, 0)])
def test_an_epoch_that_does_not_exist_has_no_order(epoch: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got n={n}, epoch={epoch}"):
        epoch_order(0, epoch, n)
