"""Large sets: every image a function of its index, whatever ran when, and no half file under a name."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ranks
import torch
from PIL import Image
from torch import nn

from dinit.cli import main
from dinit.files import only_writer
from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs import sets as sharded
from dinit.pipelines.outputs.replay import replay
from dinit.pipelines.outputs.set_files import ImageSetError, differences, image_path, pack, png_bytes, read_labels
from dinit.pipelines.outputs.sets import Progress, class_of, generate_set

COUNT, GROUP = 22, 4  # the last group is half full


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = BACKBONES["dit"].preset("tiny")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    defaults = {"sampler": {"name": "ddim", "eta": 1.0}, "steps": 2}
    Pipeline(network, {"name": "vp"}, {"name": "v"}, defaults=defaults).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(pipeline_folder: Path) -> Pipeline:
    pipe = Pipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(pipe: Pipeline, batch_size: int = GROUP, **changes):
    labels = [class_of(k, range(10), "balanced", 0) for k in range(COUNT)]
    return pipe.prepare(labels, **{"seed": 3, "batch_size": batch_size, **changes})


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a set but its lock, and the manifest without what it is allowed to differ in."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    made = generate_set(pipe, call_of(pipe), folder, GROUP)
    assert (made.made, made.complete) == (COUNT, True)
    return folder


def test_images_are_those_of_the_pipeline(pipe: Pipeline, whole: Path) -> None:
    """Image k is what a plain call gives for seed and class of k."""
    expected = pipe([k % 10 for k in range(COUNT)], seed=3, batch_size=COUNT).images
    for k, picture in enumerate(expected):
        with Image.open(image_path(whole, k)) as found:
            facts = json.loads(found.info["dinit-image"])
            assert (facts["index"], facts["label"], facts["seed"]) == (k, k % 10, [3, k])
            difference = np.abs(np.asarray(found, dtype=int) - np.asarray(picture, dtype=int))
        assert difference.max() <= 1  # another batch size may round another way


def test_a_set_and_each_of_its_images_replay_the_same(whole: Path) -> None:
    result = replay(whole)
    assert (result.same, result.max_abs_diff, result.pictures) == (True, 0, 4 + 4 + 4 + 2)  # groups 0, 2, 3, 5 of 6
    for k in (0, 13, COUNT - 1):
        result = replay(image_path(whole, k))
        assert (result.same, result.pictures) == (True, 1)


def test_a_changed_image_of_a_set_is_different(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    with Image.open(image_path(folder, 9)) as picture:
        facts = json.loads(picture.info["dinit-image"])
        picture.putpixel((2, 3), picture.getpixel((2, 3)) ^ 1)
    image_path(folder, 9).write_bytes(png_bytes(picture, facts))
    for path in (folder, image_path(folder, 9)):
        result = replay(path)
        assert (result.same, result.max_abs_diff) == (False, 1)
        assert result.notes == ("image 9 differs by up to 1 of 255",)
    assert replay(image_path(folder, 8)).same
    assert replay(folder, tolerance=1).same


def test_what_cannot_be_replayed_of_a_set_is_told(whole: Path, tmp_path: Path) -> None:
    folder, alone = tmp_path / "set", tmp_path / "alone.png"
    shutil.copytree(whole, folder)
    shutil.copy(image_path(whole, 4), alone)
    with pytest.raises(ValueError, match="leave it in its set"):
        replay(alone)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["asked"]["call"]["steps"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not replay(folder).same
    with pytest.raises(ValueError, match="another set"):
        replay(image_path(folder, 4))
    del manifest["asked"]["call"]["seeds"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json is damaged: 'seeds'"):
        replay(folder)
    shutil.copy(whole / "manifest.json", folder)
    image_path(folder, 0).write_bytes(image_path(folder, 0).read_bytes()[:200])
    with pytest.raises(ValueError, match=r"00000000.png is missing or damaged"):
        replay(folder)
    image_path(folder, 0).unlink()
    with pytest.raises(ValueError, match=r"00000000.png is missing or damaged"):
        replay(folder)


def test_the_pack_is_adms(pipe: Pipeline, whole: Path) -> None:
    side = pipe.backbone.image_size
    channels = pipe.backbone.in_channels
    loaded = np.load(whole / f"samples_{COUNT}x{side}x{side}x{channels}.npz")
    assert loaded["arr_0"].dtype == np.uint8
    assert loaded["arr_0"].shape == (COUNT, side, side, channels)
    for k in (0, 7, COUNT - 1):
        with Image.open(image_path(whole, k)) as picture:
            assert np.array_equal(loaded["arr_0"][k].reshape(side, side, -1), np.atleast_3d(np.asarray(picture)))
    assert loaded["arr_1"].tolist() == [k % 10 for k in range(COUNT)]


@pytest.mark.parametrize("batch_size", [1, 9, 64])
def test_stopped_and_started_with_any_batch_size(
    pipe: Pipeline, whole: Path, tmp_path: Path, batch_size: int
) -> None:
    folder, looks = tmp_path / "set", iter(range(100))
    first = generate_set(pipe, call_of(pipe, batch_size), folder, GROUP, stop=lambda: next(looks) >= 2)
    if not first.complete:
        assert 0 < first.made < COUNT
        assert not list(folder.glob("*.npz"))
        assert not json.loads((folder / "manifest.json").read_text())["complete"]
    image_path(folder, 1).unlink()
    (image_path(folder, 1).parent / ".dinit-abc.tmp").write_bytes(b"half an image")
    second = generate_set(pipe, call_of(pipe, 64), folder, GROUP)
    assert second.complete
    assert files(folder) == files(whole)


def test_each_process_makes_its_share(
    pipe: Pipeline, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes one after the other: shares neither overlap nor leave anything, and the set is the same."""
    folder, made = tmp_path / "set", []
    agreed = sharded._begin(folder, sharded._spec_of(pipe, call_of(pipe), GROUP), call_of(pipe), "")
    monkeypatch.setattr(sharded, "broadcast_object_list", lambda given: given.__setitem__(0, agreed))
    for rank in (2, 1, 0):
        state = SimpleNamespace(is_main_process=rank == 0, process_index=rank, num_processes=3)
        monkeypatch.setattr(sharded, "launched_processes", lambda state=state: nullcontext(state))
        latest = time.monotonic() + 30  # not for ever, for a share that nobody makes
        done = generate_set(
            pipe, call_of(pipe), folder, GROUP, stop=lambda latest=latest: time.monotonic() > latest
        )
        made.append(done.made)
    assert made == [6, 8, 8]  # the last of the six groups, half full, is of the last
    ours, theirs = files(folder), files(whole)
    ours.pop("manifest.json"), theirs.pop("manifest.json")
    assert ours == theirs


def test_another_call_is_refused_by_what_differs(pipe: Pipeline, whole: Path, tmp_path: Path) -> None:
    before = files(whole)
    for change, said in {
        "steps": ({"steps": 3}, "call.steps: 2 there, 3 now"),
        "seed": ({"seed": 4}, "call.seeds.seed: 3 there, 4 now"),
        "guidance": ({"guidance": "cfg"}, "call.guidance"),
    }.values():
        with pytest.raises(ImageSetError, match=said):
            generate_set(pipe, call_of(pipe, **change), whole, GROUP)
    with pytest.raises(ImageSetError, match=r"call\.group: 4 there, 5 now"):
        generate_set(pipe, call_of(pipe), whole, 5)
    fewer = pipe.prepare([k % 10 for k in range(9)], seed=3)
    with pytest.raises(ImageSetError, match=r"call\.labels: 22 there, 9 now"):
        generate_set(pipe, fewer, whole, GROUP)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").write_bytes(b"")
    with pytest.raises(ImageSetError, match="holds no set of dinit"):
        generate_set(pipe, call_of(pipe), tmp_path / "other", GROUP)
    assert files(whole) == before


def test_differences_name_the_first_of_a_long_list() -> None:
    before, after = {"a": {"b": list(range(20))}, "c": 1}, {"a": {"b": [*range(17), 0, 0, 0]}}
    assert list(differences(before, after)) == [
        "a.b: 3 differ, the first at 17: 17 there, 0 now",
        "c: 1 there, None now",
    ]


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from dinit.files import only_writer
try:
    with only_writer(Path({str(tmp_path)!r})):
        print("held")
except OSError as error:
    print(error)
"""

    def attempt() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout

    with only_writer(tmp_path):
        assert "another process is writing into" in attempt()
    assert attempt() == "held\n"


def test_classes_in_turn_and_by_chance() -> None:
    assert [class_of(k, (4, 7), "balanced", 0) for k in range(5)] == [4, 7, 4, 7, 4]
    assert class_of(3, range(10), "none", 0) is None
    drawn = [class_of(k, range(10), "random", 1) for k in range(20_000)]
    counts = np.bincount(np.array(drawn), minlength=10)
    assert np.abs(counts - 2000).max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert drawn[:50] != [class_of(k, range(10), "random", 2) for k in range(50)]
    with pytest.raises(ValueError, match="balanced, random, none"):
        class_of(0, range(10), "even", 0)


def test_labels_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([3, 1, 2]))
    np.savez(tmp_path / "b.npz", arr_0=np.zeros((3, 2, 2, 3), np.uint8), arr_1=np.array([3, 1, 2]))
    (tmp_path / "c.txt").write_text("3\n1\nblue whale\n\n")
    assert read_labels(tmp_path / "a.npy") == read_labels(tmp_path / "b.npz") == [3, 1, 2]
    assert read_labels(tmp_path / "c.txt") == ["3", "1", "blue whale"]
    np.save(tmp_path / "d.npy", np.zeros((3, 10)))
    with pytest.raises(ValueError, match="one row of whole numbers"):
        read_labels(tmp_path / "d.npy")


def test_a_damaged_image_is_not_packed(pipe: Pipeline, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    generate_set(pipe, call_of(pipe), folder, GROUP, make_pack=False)
    path = image_path(folder, 5)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageSetError, match=r"00000005\.png is missing or damaged"):
        pack(folder, [k % 10 for k in range(COUNT)])
    assert not list(folder.glob("*.npz"))
    assert not list(folder.glob(".dinit-*"))
    path.unlink()
    generate_set(pipe, call_of(pipe), folder, GROUP)
    assert files(folder) == files(whole)


def test_progress_counts_what_is_on_the_disk(pipe: Pipeline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sharded, "_LOOK_EVERY", -1.0)
    seen: list[Progress] = []
    generate_set(pipe, call_of(pipe), tmp_path / "set", GROUP, on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert (done[-1], seen[-1].total, seen[-1].seconds_left) == (COUNT, COUNT, 0.0)
    assert Progress(20, 120, 4.0).seconds_left == 25.0


def test_command_line(pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*more: str) -> int:
        with pytest.raises(SystemExit) as stopped:
            main(["generate", str(pipeline_folder), "--out", str(tmp_path / "set"), "--group", "4", *more])
        return int(stopped.value.code or 0)

    assert run("--num-images", "10", "--classes", "2,5") == 0
    facts = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert facts["complete"]
    assert facts["asked"]["call"]["labels"] == [2, 5] * 5
    assert run("--num-images", "10", "--classes", "2,6") == 2
    assert "call.labels: 5 differ, the first at 1: 5 there, 6" in " ".join(capsys.readouterr().err.split())
    assert run("--num-images", "10", "--overwrite") == 2
    assert run("--labels", "3,1", "--num-images", "10") == 2


def _share(pipeline: str, count: int, folder: str, batch_size: int) -> None:
    pipe = Pipeline.from_pretrained(pipeline)
    pipe.set_progress_bar_config(disable=True)
    labels = [k % 10 for k in range(count)]
    generate_set(pipe, pipe.prepare(labels, seed=3, batch_size=batch_size), folder, 8)


@pytest.mark.slow
def test_three_kills_of_two_processes(pipeline_folder: Path, tmp_path: Path) -> None:
    """Killed at random, ended by one process alone: the same files, and none under its name is ever half there."""
    count, chance, folder = 600, random.Random(1), tmp_path / "killed"
    for attempt in range(3):
        children = ranks.start(2, _share, str(pipeline_folder), count, str(folder), 8)
        target = 150 * attempt + chance.randint(20, 140)
        ranks.wait_for(lambda target=target: len(list(folder.rglob("0*.png"))) >= target, children)
        time.sleep(chance.uniform(0, 0.05))
        ranks.kill(children)
        for path in folder.rglob("0*.png"):
            with Image.open(path) as picture:
                picture.load()
    ranks.join(ranks.start(1, _share, str(pipeline_folder), count, str(folder), 64))
    ranks.join(ranks.start(1, _share, str(pipeline_folder), count, str(tmp_path / "whole"), 16))
    assert files(folder) == files(tmp_path / "whole")
    assert len(files(folder)) == count + 2
