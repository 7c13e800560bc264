"""Edges of sets and files: groups that a replay makes again, rates of what was there, rights of what is written."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dinit.cli.convert import parse_options
from dinit.files import whole_file, whole_folder, write_atomically
from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs import sets
from dinit.pipelines.outputs.files import png_bytes as sheet_bytes
from dinit.pipelines.outputs.files import save_sheet
from dinit.pipelines.outputs.manifest import Manifest
from dinit.pipelines.outputs.replay import replay
from dinit.pipelines.outputs.set_files import image_path, png_bytes
from dinit.pipelines.outputs.sets import Progress, generate_set


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    torch.manual_seed(0)
    backbone: Any = BACKBONES["dit"].preset("tiny", num_classes=0)
    pipe = Pipeline(backbone, {"name": "vp"}, {"name": "v"}, defaults={"sampler": "ddim", "steps": 1})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("count", "group", "compared"),
    [(1, 4, 1), (4, 4, 4), (5, 4, 5), (17, 4, 13), (20, 2, 8)],
)
def test_a_replay_of_a_set_compares_its_first_and_its_last_group(
    pipe: Pipeline, count: int, group: int, compared: int, tmp_path: Path
) -> None:
    folder = generate_set(
        pipe, pipe.prepare(None, num_images=count), tmp_path / "set", group, make_pack=False
    ).folder
    found = replay(folder, pipe)
    assert (found.same, found.max_abs_diff, found.pictures) == (True, 0, compared)
    path = image_path(folder, count - 1)
    with Image.open(path) as picture:
        facts, changed = dict(picture.info), picture.copy()
    changed.putpixel((0, 0), 255 - int(changed.getpixel((0, 0))))  # pyright: ignore
    path.write_bytes(png_bytes(changed, json.loads(facts["dinit-image"])))
    assert not replay(folder, pipe).same


def test_a_rate_is_of_the_images_that_were_made_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, clock, shown = [100], [50.0], []
    monkeypatch.setattr(sets, "present", lambda *_: set(range(there[0])))
    monkeypatch.setattr(sets.time, "monotonic", lambda: clock[0])
    watch = sets._Watch(tmp_path, 200, shown.append)
    there[0], clock[0] = 120, 60.0
    watch.poll()
    clock[0] = 61.0
    assert watch.poll() == 0  # looked a second ago
    there[0] = 150
    assert watch.poll(now=True) == 150
    assert shown == [Progress(120, 200, 2.0), Progress(150, 200, pytest.approx(50 / 11))]
    assert shown[0].seconds_left == 40


# --- files -------------------------------------------------------------------------------------------------------


@contextmanager
def with_umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def atomically(path: Path) -> None:
    write_atomically(path, "text")


def streamed(path: Path) -> None:
    with whole_file(path) as stream:
        stream.write(b"bytes")


def in_a_folder(path: Path) -> None:
    with whole_folder(path) as temporary:
        (temporary / "a").write_text("a")
        (temporary / "b").mkdir()
        (temporary / "b" / "c").write_text("c")


def of_a_set(path: Path) -> None:
    sets.write_manifest(path.parent, {}, {}, {})
    (path.parent / "manifest.json").rename(path)


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
@pytest.mark.parametrize(
    ("mask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
@pytest.mark.parametrize("write", [atomically, streamed, in_a_folder, of_a_set])
def test_what_is_written_has_the_rights_of_any_other_file(
    write: Callable[[Path], None], mask: int, of_file: int, of_folder: int, tmp_path: Path
) -> None:
    for _ in range(2):  # new, and in place of what is there
        with with_umask(mask):
            write(tmp_path / "made")
    for path in (tmp_path / "made", *(tmp_path / "made").rglob("*")):
        expected = of_folder if path.is_dir() and path.parent == tmp_path else of_file
        if path.is_file() or path.parent == tmp_path:
            assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("write", [whole_file, whole_folder])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_not_written_whole_leaves_nothing(write: Any, error: type[BaseException], tmp_path: Path) -> None:
    old = tmp_path / "made"
    old.mkdir() if write is whole_folder else old.write_text("old")

    def fail() -> None:
        with write(old) as place:
            (place / "a").write_text("a") if write is whole_folder else place.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert not list(old.iterdir()) if write is whole_folder else old.read_text() == "old"


# --- options on the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["num_heads=6"], {"num_heads": 6}),
        (["num-heads=6"], {"num_heads": 6}),
        ([" num-heads =6"], {"num_heads": 6}),
        (["mlp-norm-eps=1e-6", "learn_sigma=true"], {"mlp_norm_eps": 1e-6, "learn_sigma": True}),
    ],
)
def test_an_option_is_written_with_dashes_too(given: list[str], read: dict[str, Any]) -> None:
    assert parse_options(given) == read


@pytest.mark.parametrize("given", [["num-heads=6", "num_heads=6"], ["num_heads=6", "num-heads=4"]])
def test_both_spellings_are_one_option(given: list[str]) -> None:
    with pytest.raises(ValueError, match="num_heads is given twice"):
        parse_options(given)


@pytest.mark.parametrize(
    ("recorded", "there", "used"),
    [
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
        ("cuda", False, "cpu"),
        ("mps", False, "mps"),
    ],
)
def test_what_was_made_on_a_gpu_is_made_again_where_there_is_none(
    recorded: str, there: bool, used: str, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []

    def from_pretrained(name: str, **options: Any) -> Pipeline:
        opened.append({"name": name, **options})
        return pipe

    save_sheet(tmp_path / "a.png", pipe, pipe(num_images=1, output_type="raw"))
    with Image.open(tmp_path / "a.png") as picture:
        facts, copy = json.loads(picture.info["dinit"]), picture.copy()
    facts |= {"pipeline": "some-name", "device": recorded, "dtype": "bfloat16"}
    (tmp_path / "b.png").write_bytes(sheet_bytes(copy, Manifest(**facts)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(Pipeline, "from_pretrained", from_pretrained)
    replay(tmp_path / "b.png")
    assert opened == [{"name": "some-name", "device": used, "dtype": torch.bfloat16}]
