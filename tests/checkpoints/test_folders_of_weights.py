"""Folders with variants, averages and shards are read; pointers and web pages are refused with the reason."""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference

from dinit.checkpoints.reading import read_checkpoint
from dinit.data.arrays import NpzImages
from dinit.evaluation.reference import load_reference
from dinit.models.base import BACKBONES
from dinit.models.codec import open_autoencoder
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.convert import convert

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0])}
NAME = "diffusion_pytorch_model"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 134217728\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>" + b" " * 600


def scaled(factor: float) -> dict[str, Tensor]:
    return {key: factor * one for key, one in STATE.items()}


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[key].float(), expected[key]) for key in state)


def folder(path: Path, files: dict[str, dict[str, Tensor]], config: str | None = '{"in_channels": 4}') -> Path:
    path.mkdir(parents=True)
    if config is not None:
        (path / "config.json").write_text(config)
    for name, state in files.items():
        (save_file if name.endswith(".safetensors") else torch.save)(state, path / name)
    return path


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: one.half() for key, one in state.items()}


# --- variants and averages ---


@pytest.mark.parametrize(
    ("files", "factor", "notes"),
    [
        ([f"{NAME}.safetensors"], 1, 0),
        ([f"{NAME}.fp16.safetensors"], 1, 2),  # the name, and the dtype
        ([f"{NAME}.fp16.bin"], 1, 2),
        (["model.safetensors"], 1, 0),
        (["pytorch_model.bin"], 1, 0),
        ([f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], 1, 0),
        ([f"{NAME}.safetensors", f"{NAME}.non_ema.safetensors"], 1, 0),
        ([f"{NAME}.safetensors", f"{NAME}.bin"], 1, 0),
        ([f"{NAME}.bin", f"{NAME}.fp16.bin"], 1, 0),
        ([f"{NAME}.ema.safetensors", f"{NAME}.safetensors"], 1, 0),
    ],
)
def test_the_usual_weights_of_a_folder(files: list[str], factor: float, notes: int, tmp_path: Path) -> None:
    """The first file is the one that is meant; the others have other numbers."""
    states = {name: scaled(i + 1) for i, name in enumerate(files)}
    states |= {name: half(state) for name, state in states.items() if "fp16" in name}
    read = read_checkpoint(folder(tmp_path / "m", states))
    assert same(read.state, STATE)
    assert len(read.notes) == notes


def test_a_variant_is_chosen_by_its_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {f"{NAME}.fp16.safetensors": STATE, f"{NAME}.bf16.safetensors": scaled(2)})
    with pytest.raises(ValueError, match=r"the variants bf16, fp16 and no usual one: choose one, weights='bf16'"):
        read_checkpoint(path)
    read = read_checkpoint(path, "bf16")
    assert (same(read.state, scaled(2)), read.entry) == (True, "bf16")
    with pytest.raises(ValueError, match="variants bf16, fp16, not 'fp8'"):
        read_checkpoint(path, "fp8")
    assert same(read_checkpoint(path / f"{NAME}.fp16.safetensors").state, STATE)  # and by its file
    assert read_checkpoint(path / f"{NAME}.fp16.safetensors").config == {"in_channels": 4}


@pytest.mark.parametrize("weights", [None, "ema", "unet_ema"])
def test_an_average_next_to_the_model_is_taken(weights: str | None, tmp_path: Path) -> None:
    """As diffusers' training scripts save it, with further keys in its config.json."""
    path = tmp_path / "checkpoint-500"
    folder(path / "unet", {f"{NAME}.safetensors": scaled(2)})
    folder(path / "unet_ema", {f"{NAME}.safetensors": STATE}, '{"in_channels": 4, "decay": 0.99, "power": 0.75}')
    read = read_checkpoint(path, weights)
    assert (same(read.state, STATE), read.entry) == (True, "unet_ema")
    assert same(read_checkpoint(path, "model").state, scaled(2))
    with pytest.raises(ValueError, match="has unet, unet_ema: weights is ema or model"):
        read_checkpoint(path, "vae")
    folder(path / "ema_unet_2", {f"{NAME}.safetensors": scaled(3)})
    with pytest.raises(ValueError, match="several averages of unet, ema_unet_2, unet_ema: give the folder of one"):
        read_checkpoint(path)
    assert same(read_checkpoint(path, "ema_unet_2").state, scaled(3))


def test_an_average_next_to_the_file_of_a_folder_is_pointed_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": STATE, "ema.safetensors": scaled(2)})
    with pytest.warns(UserWarning, match="ema.safetensors next to it may be its averaged weights"):
        assert same(read_checkpoint(path).state, STATE)
    run = folder(tmp_path / "run", {"model.safetensors": STATE, "model_1.safetensors": scaled(2)}, config=None)
    with pytest.raises(ValueError, match=r"no model folder.*\(it has model.safetensors, model_1.safetensors\)"):
        read_checkpoint(run)


def test_the_pipeline_of_a_part_is_read_with_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "p" / "unet", {f"{NAME}.safetensors": STATE})
    (tmp_path / "p" / "scheduler").mkdir()
    (tmp_path / "p" / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    (tmp_path / "p" / "model_index.json").write_text('{"_class_name": "X"}')
    for source in (tmp_path / "p", path, path / f"{NAME}.safetensors"):
        read = read_checkpoint(source)
        assert same(read.state, STATE)
        assert (read.scheduler, read.index) == ({"beta_schedule": "linear"}, {"_class_name": "X"})
        assert read.config == {"in_channels": 4}


# --- shards ---


def sharded(path: Path, end: str = ".safetensors", index: str | None = None) -> Path:
    names = {key: f"{NAME}-{i + 1:05d}-of-00002{end}" for i, key in enumerate(STATE)}
    folder(path, {name: {key: STATE[key]} for key, name in names.items()})
    (path / (index or f"{NAME}{end}.index.json")).write_text(json.dumps({"weight_map": names}))
    return path


@pytest.mark.parametrize("end", [".safetensors", ".bin"])
@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards_are_joined(end: str, given: str, tmp_path: Path) -> None:
    path = sharded(tmp_path / "m", end)
    read = read_checkpoint(path if given == "folder" else path / f"{NAME}{end}.index.json")
    assert same(read.state, STATE)
    assert sorted(read.files) == [f"{NAME}-0000{i}-of-00002{end}" for i in (1, 2)]
    assert read.config == {"in_channels": 4}


def test_shards_of_a_variant_are_joined(tmp_path: Path) -> None:
    assert same(read_checkpoint(sharded(tmp_path / "m", index=f"{NAME}.safetensors.index.fp16.json")).state, STATE)


def test_one_shard_of_one_is_the_whole(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model-00001-of-00001.safetensors")
    assert same(read_checkpoint(tmp_path / "model-00001-of-00001.safetensors").state, STATE)


INDEX = f"{NAME}.safetensors.index.json"


# File of the folder, its new content (None: gone), and what is said.
BROKEN: list[tuple[str, str | bytes | dict[str, Tensor] | None, str]] = [
    (f"{NAME}-00002-of-00002.safetensors", None, "lists .*-00002-of-00002.safetensors, not in its folder"),
    (INDEX, '{"weight_map": {"a": "../b.safetensors"}}', r"names \.\./b\.safetensors, which is not a file of its"),
    (INDEX, '{"weight_map": {"a": "/etc/b.safetensors"}}', "names /etc/b.safetensors, which is not a file of its"),
    (INDEX, '{"weight_map": {"a": "x\\\\b.bin"}}', "which is not a file of its folder"),
    (INDEX, '{"weight_map": []}', "lists nothing: its weight_map"),
    (INDEX, '{"weight_map": {"a": 3}}', "lists nothing: its weight_map"),
    (INDEX, "{}", "lists nothing"),
    (INDEX, "{", "is not valid JSON"),
    (INDEX, POINTER, r"index.json is a Git LFS pointer of a file of 134,217,728 bytes"),
    (f"{NAME}-00001-of-00002.safetensors", STATE, "has a.bias in two of its files"),
    (
        f"{NAME}-00001-of-00002.safetensors",
        {"c": torch.ones(2), "a.weight": STATE["a.weight"]},
        "3 tensors in its shards, its index lists 2",
    ),
]


@pytest.mark.parametrize(("name", "content", "reason"), BROKEN)
def test_shards_that_are_not_whole(
    name: str, content: str | bytes | dict[str, Tensor] | None, reason: str, tmp_path: Path
) -> None:
    path = sharded(tmp_path / "m")
    (path / name).unlink()
    if isinstance(content, dict):
        save_file(content, path / name)
    elif content is not None:
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=reason):
        read_checkpoint(path)


def test_a_part_or_a_configuration_is_no_checkpoint(tmp_path: Path) -> None:
    path = sharded(tmp_path / "m")
    with pytest.raises(ValueError, match=f"part 2 of 2 of the weights; give its folder {path}"):
        read_checkpoint(path / f"{NAME}-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=f"is a configuration, no weights; give its folder {path}"):
        read_checkpoint(path / "config.json")
    with pytest.raises(ValueError, match=r"no model folder.*\(it has net.pth, net_ema.pth\)"):
        read_checkpoint(folder(tmp_path / "run", {"net.pth": STATE, "net_ema.pth": STATE}, config=None))


# --- what is no file of weights ---

WRONG = {
    "pointer": (POINTER, r"is a Git LFS pointer of a file of 134,217,728 bytes.*git lfs pull"),
    "page": (PAGE, "is a web page, not the file itself; download it again"),
    "gzip": (gzip.compress(b"x" * 999), "is compressed by gzip; unpack it first"),
    "empty": (b"", "is empty; copy or download it again"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.bin", "a.ckpt", "a.pth.tar"])
def test_files_that_are_something_else(kind: str, name: str, tmp_path: Path) -> None:
    content, reason = WRONG[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_checkpoint(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} is ")


@pytest.mark.parametrize(
    "text", ["Entry not found", "Access to model x/y is restricted.", "Invalid username or password."]
)
def test_a_text_in_place_of_weights_is_quoted(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text(text)
    with pytest.raises(ValueError, match=rf"it is a text \('{text}'\), not weights"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_container_under_another_name_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.safetensors")
    save_file(STATE, tmp_path / "b.pt")
    for name, advice in (("a.safetensors", "a.pt"), ("b.pt", "b.safetensors")):
        with pytest.raises(ValueError, match=f"by its content.*rename it to {advice}"):
            read_checkpoint(tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"c-{advice}")
        assert same(read_checkpoint(tmp_path / f"c-{advice}").state, STATE)  # the advice


def test_an_archive_and_a_dangling_link_are_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "a.pt", "a.pt")
    with pytest.raises(ValueError, match=r"all.tar is a tar archive, not a checkpoint; unpack it"):
        read_checkpoint(tmp_path / "all.tar")
    (tmp_path / "b.pt").symlink_to("blobs/0123")
    with pytest.raises(FileNotFoundError, match=r"b.pt is a link to blobs/0123, which is not there"):
        read_checkpoint(tmp_path / "b.pt")
    (tmp_path / "c.pt").symlink_to("a.pt")
    assert same(read_checkpoint(tmp_path / "c.pt").state, STATE)


# --- the other readers ---


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.2)
    network = BACKBONES["dit"].preset("tiny", num_classes=10, in_channels=4)
    Pipeline(network, "vp-discrete", "epsilon", vae=vae).save_pretrained(tmp_path / "p")
    return tmp_path / "p"


FILES = (
    "model_index.json", "backbone/config.json", f"backbone/{NAME}.safetensors", "vae/config.json",
    f"vae/{NAME}.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_pointers_in_a_pipeline_are_named(name: str, pipeline: Path) -> None:
    (pipeline / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer .*git lfs pull"):
        Pipeline.from_pretrained(pipeline)
    if "vae" in name:
        with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer .*git lfs pull"):
            open_autoencoder(pipeline)


def test_pointers_in_a_folder_of_diffusers_and_for_convert(pipeline: Path, tmp_path: Path) -> None:
    source = folder(tmp_path / "m", {f"{NAME}.safetensors": STATE})
    (source / f"{NAME}.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match="is a Git LFS pointer"):
        convert(source, tmp_path / "out")
    save_file(STATE, source / f"{NAME}.safetensors")
    (source / "config.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"config.json is a Git LFS pointer"):
        convert(source, tmp_path / "out")
    torch.save(Reference(GOLDEN / "dit_sigma.safetensors").state, tmp_path / "a.pt")
    (pipeline / "vae" / f"{NAME}.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"gave no AutoencoderKL: .* is a Git LFS pointer"):
        convert(tmp_path / "a.pt", tmp_path / "out", vae=pipeline, options={"num_heads": 4})


def test_pointers_in_data(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"a.npz is a Git LFS pointer"):
        NpzImages(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a.npz is a Git LFS pointer"):
        load_reference(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    assert len(NpzImages(tmp_path / "b.npz")) == 2


@pytest.mark.parametrize("parts", [("backbone",), ("vae",), ("backbone", "vae")])
@pytest.mark.parametrize("both", [False, True])
def test_a_pipeline_with_half_precision_only_opens(parts: tuple[str, ...], both: bool, pipeline: Path) -> None:
    """Where the usual weights are there too, those are taken, unless the variant is given."""
    whole = Pipeline.from_pretrained(pipeline)
    for part in parts:
        file = pipeline / part / f"{NAME}.safetensors"
        save_file(half(load_file(file)), file.with_name(f"{NAME}.fp16.safetensors"))
        if not both:
            file.unlink()
    opened = Pipeline.from_pretrained(pipeline, **({"variant": "fp16"} if both else {}))
    for part in ("backbone", "vae"):
        own, now = getattr(whole, part).state_dict(), getattr(opened, part).state_dict()
        expected = half(own) if part in parts else own
        assert all(torch.equal(now[key].float(), expected[key].float()) for key in own)
    if both:
        usual = Pipeline.from_pretrained(pipeline)
        assert all(
            torch.equal(one, usual.backbone.state_dict()[key]) for key, one in whole.backbone.state_dict().items()
        )
    elif "vae" in parts:
        assert open_autoencoder(pipeline / "vae").config.latent_channels == 4


def test_variants_that_are_not_there_or_several_are_named(pipeline: Path) -> None:
    file = pipeline / "vae" / f"{NAME}.safetensors"
    for name in ("fp16", "bf16"):
        save_file(load_file(file), file.with_name(f"{NAME}.{name}.safetensors"))
    file.unlink()
    with pytest.raises(ValueError, match=r"variants bf16, fp16: choose one, variant='bf16'"):
        Pipeline.from_pretrained(pipeline)
    assert Pipeline.from_pretrained(pipeline, variant="bf16").vae is not None
    with pytest.raises(ValueError, match="no weights of the variant 'fp8', it has the usual one"):
        Pipeline.from_pretrained(pipeline, variant="fp8")
