"""A manifest that was edited: the picture is made again and compared, or the manifest is refused by its key."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged, edited
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinit.models.dit import DiT
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.files import save_folder, save_sheet
from dinit.pipelines.outputs.manifest import FILE, KEY
from dinit.pipelines.outputs.replay import replay
from dinit.pipelines.outputs.sets import generate_set

SCREEN = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, a folder of two pictures, a sheet of them, and a set of three."""
    root = tmp_path_factory.mktemp("made")
    backbone = DiT(image_size=4, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=3)
    Pipeline(
        backbone,
        process={"name": "vp-discrete"},
        parameterization={"name": "eps"},
        class_names=["a", "b", "c"],
        defaults={"sampler": "ddim:eta=0.5", "steps": 1, "guidance": ["cfg:scale=2"]},
    ).save_pretrained(root / "pipeline")
    pipe = Pipeline.from_pretrained(root / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    generated = pipe.run(pipe.prepare(["a", "c"], seed=3), "raw")
    save_folder(root / "folder", pipe, generated)
    save_sheet(root / "sheet.png", pipe, generated)
    generate_set(pipe, pipe.prepare(["a", "b", "c"], seed=3), root / "set", group=2, make_pack=False)
    return root


def outcome(path: Path, what: str, pipe: Pipeline | None = None) -> str:
    """'same', 'different', 'refused'; an error of more than a screen, or of another kind, fails."""
    try:
        result = replay(path, pipe)
    except (ValueError, OSError) as error:
        lines = str(error).splitlines()
        assert 0 < len(lines) <= SCREEN, what
        assert max(map(len, lines)) < 1000, what
        return "refused"
    assert result.same or result.notes, what
    return "same" if result.same else "different"


def check(counts: Counter[str]) -> None:
    assert counts["refused"] > 15
    assert counts["different"] > 1
    assert counts["same"] > 1


@pytest.fixture(scope="module")
def pipe(made: Path) -> Pipeline:
    """Opened once; the test of single edits opens what the manifest names."""
    return Pipeline.from_pretrained(made / "pipeline")


@pytest.mark.parametrize("kind", ["folder", "set"])
def test_edits_of_a_manifest(made: Path, pipe: Pipeline, kind: str) -> None:
    path = made / kind / FILE
    whole = path.read_bytes()
    assert outcome(made / kind, "nothing", pipe) == "same"
    counts: Counter[str] = Counter()
    try:
        for what, tree in edited(3, json.loads(whole)):
            path.write_text(json.dumps(tree))
            counts[outcome(made / kind, what, pipe)] += 1
    finally:
        path.write_bytes(whole)
    check(counts)


@pytest.mark.parametrize("kind", ["folder", "set"])
def test_damage_of_a_manifest(made: Path, pipe: Pipeline, kind: str) -> None:
    path = made / kind / FILE
    whole = path.read_bytes()
    try:
        for what, content in damaged(4, whole, 60 if kind == "folder" else 20):
            path.write_bytes(content)
            outcome(made / kind, what, pipe)
    finally:
        path.write_bytes(whole)


def sheet_with(made: Path, manifest: Any, target: Path) -> Path:
    with Image.open(made / "sheet.png") as picture:
        info = PngInfo()
        info.add_text(KEY, manifest if isinstance(manifest, str) else json.dumps(manifest))
        picture.save(target, pnginfo=info)
    return target


def test_edits_of_the_manifest_in_a_picture(made: Path, pipe: Pipeline, tmp_path: Path) -> None:
    with Image.open(made / "sheet.png") as picture:
        tree = json.loads(picture.info[KEY])
    assert outcome(sheet_with(made, tree, tmp_path / "x.png"), "nothing", pipe) == "same"
    counts: Counter[str] = Counter()
    part = {"picture": tree["picture"], "call": tree["call"], "nfe": tree["nfe"], "format": tree["format"]}
    for what, changed in edited(6, part, 60):
        counts[outcome(sheet_with(made, {**tree, **changed}, tmp_path / "x.png"), what, pipe)] += 1
    check(counts)


EDITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": ("folder", {}, "same"),
    "another date": ("folder", {"created": "2020-01-01"}, "same"),
    "another device": ("folder", {"device": "cuda"}, "same"),
    "a number of another type": ("folder", {"nfe": "2"}, "nfe: input should be a valid integer"),
    "no name": ("folder", {"pipeline": ""}, "give the pipeline yourself"),
    "a number for a name": ("folder", {"pipeline": 5}, "pipeline: input should be a valid string"),
    "a list for a name": ("set", {"pipeline": []}, "must be texts"),
    "versions in a list": ("folder", {"versions": ["1"]}, "versions: input should be an object"),
    "another format": ("folder", {"format": 2}, "has format 2"),
    "another dtype": ("folder", {"dtype": "none"}, "none of torch's"),
    "a key too many": ("folder", {"extra": 1}, "missing or unknown extra"),
    "other weights": ("folder", {"weights": {"backbone": "0"}}, "different"),
    "another process": ("folder", {"process": {"name": "vp"}}, "different"),
    "groups of none": ("set", {"asked.call.group": 0}, "at least 1"),
    "groups of many": ("set", {"asked.call.group": 10**9}, "groups of 1000000000 images"),
    "seeds of another kind": ("set", {"asked.call.seeds": 3}, "damaged"),
    "weights left out": ("set", {"asked.weights": None}, "different"),
    "another seed": ("set", {"asked.call.seeds": {"seed": 4, "images": 3}}, "different"),
    "a label out of range": ("folder", {"call.labels": [0, 9]}, "labels must be in 0 .. 2"),
    "a fraction of channels": (
        "folder",
        {"call.guidance": [{"name": "cfg", "channels": 1.5}]},
        "channels must be a whole number or None, got 1.5",
    ),
    "yes for a scale": (
        "set",
        {"asked.call.guidance": [{"name": "cfg", "scale": True}]},
        "scale must be a number, got True",
    ),
    "another machine": ("folder", {"device": "cp"}, "device 'cp' is none of torch's"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_of_a_manifest(made: Path, case: str) -> None:
    kind, edits, expected = EDITS[case]
    path = made / kind / FILE
    whole = path.read_bytes()
    tree = json.loads(whole)
    for key, value in edits.items():
        *parents, last = key.split(".")
        part = tree
        for parent in parents:
            part = part[parent]
        part[last] = value
    path.write_text(json.dumps(tree))
    try:
        if expected in ("same", "different"):
            assert outcome(made / kind, case) == expected
        else:
            with pytest.raises(ValueError, match=r"manifest|dtype|give the pipeline|labels|damaged") as caught:
                replay(made / kind)
            assert expected in str(caught.value)
    finally:
        path.write_bytes(whole)
