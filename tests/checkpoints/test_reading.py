"""Opening foreign files: every container gives its state, and what cannot be trusted is refused with the reason."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinit.checkpoints.reading import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


def scaled(factor: float) -> dict[str, Tensor]:
    return {key: factor * tensor for key, tensor in STATE.items()}


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PT"])
@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state(tmp_path: Path, suffix: str, zipped: bool) -> None:
    torch.save(OrderedDict(STATE), tmp_path / f"a{suffix}", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / f"a{suffix}")
    assert same(read.state, STATE)
    assert read.entry == ""


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors").state, STATE)


def test_training_checkpoint_gives_its_ema_unless_asked_otherwise(tmp_path: Path) -> None:
    args = argparse.Namespace(model="SiT-XL/2", num_classes=1000)
    path = saved(tmp_path / "a.pt", {"model": STATE, "ema": scaled(2.0), "opt": {"state": {}}, "args": args})
    read = read_checkpoint(path)
    assert same(read.state, scaled(2.0))
    assert read.entry == "ema"
    assert read.args == {"model": "SiT-XL/2", "num_classes": 1000}
    assert same(read_checkpoint(path, "model").state, STATE)
    assert read_checkpoint(path, "model").entry == "model"


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoint_without_an_ema(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "a.ckpt", {key: STATE, "epoch": 3})
    assert same(read_checkpoint(path).state, STATE)
    with pytest.raises(ValueError, match=f"has no ema weights, it has {key}"):
        read_checkpoint(path, "ema")


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefixes: str) -> None:
    path = saved(tmp_path / "a.pt", {"ema": {prefixes + key: tensor for key, tensor in STATE.items()}})
    assert same(read_checkpoint(path).state, STATE)


def test_a_prefix_that_would_make_two_names_one_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(2), "a": torch.zeros(2)}
    assert same(read_checkpoint(saved(tmp_path / "a.pt", state)).state, state)


def test_averaged_parameters_in_a_list(tmp_path: Path) -> None:
    state = {f"module.{key}": tensor for key, tensor in {**STATE, "sigmas": torch.ones(3)}.items()}
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": list(scaled(3.0).values())}
    path = saved(tmp_path / "a.pth", {"optimizer": {}, "model": state, "ema": ema, "step": 5})
    assert same(read_checkpoint(path).state, {**scaled(3.0), "sigmas": torch.ones(3)})
    assert same(read_checkpoint(path, "model").state, {**STATE, "sigmas": torch.ones(3)})


def folder(path: Path, shards: bool = False, suffix: str = ".safetensors") -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"in_channels": 4}')
    write = save_file if suffix == ".safetensors" else torch.save
    stem = path / "diffusion_pytorch_model"
    if not shards:
        write(STATE, f"{stem}{suffix}")
        return path
    names = {key: f"{stem.name}-{i}{suffix}" for i, key in enumerate(STATE)}
    for key, name in names.items():
        write({key: STATE[key]}, str(path / name))
    Path(f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": names}))
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("shards", [False, True])
def test_folders_of_diffusers(tmp_path: Path, shards: bool, suffix: str) -> None:
    (tmp_path / "pipe" / "scheduler").mkdir(parents=True)
    folder(tmp_path / "pipe" / "transformer", shards, suffix)
    (tmp_path / "pipe" / "model_index.json").write_text('{"id2label": {"0": "tench"}}')
    (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    read = read_checkpoint(tmp_path / "pipe")
    assert same(read.state, STATE)
    assert (read.config, read.scheduler) == ({"in_channels": 4}, {"beta_schedule": "linear"})
    assert read.index == {"id2label": {"0": "tench"}}
    assert same(read_checkpoint(tmp_path / "pipe" / "transformer").state, STATE)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model folder: it has no config.json"):
        read_checkpoint(tmp_path)
    path = folder(tmp_path / "m", shards=True)
    (path / "diffusion_pytorch_model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lists diffusion_pytorch_model-1.safetensors, not in its folder"):
        read_checkpoint(path)
    (path / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="has no diffusion_pytorch_model"):
        read_checkpoint(path)


class Payload:
    """What a malicious file would do when it is opened carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "torch legacy", "pickle"])
@pytest.mark.parametrize("place", ["alone", "args", "beside"])
def test_code_in_a_file_is_named_and_never_run(tmp_path: Path, how: str, place: str) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "a.pt"
    evil = Payload(mark)
    content = {"alone": evil, "args": {"model": STATE, "args": evil}, "beside": {**STATE, "b": evil}}[place]
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"was not opened|damaged or no checkpoint"):
        read_checkpoint(path)
    assert not mark.exists()
    if how != "pickle":
        with pytest.raises(ValueError, match=r"names \w+\.mkdir, and opening that could run code"):
            read_checkpoint(path)


@pytest.mark.parametrize("where", [0.5, 0.9])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(tmp_path: Path, where: float, zipped: bool) -> None:
    torch.save({"a": torch.randn(1000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(where * len(whole))])
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """By the sums in the archive, which torch.load does not look at."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(bytes(2000)) + 1000] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*data/0"):
        read_checkpoint(tmp_path / "a.pt")


def test_an_archive_without_sums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_checkpoint(tmp_path / "a.pt").state, STATE)


def test_damaged_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for cut in (4, len(content) - 4):
        (tmp_path / "a.safetensors").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x00" * 100, b"PK\x03\x04 not a zip", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_something_else(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"damaged or no (checkpoint|safetensors file)|web page|file of torch.save"
    ):
        read_checkpoint(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.ones(1)], "holds a list, not a state"),
        (torch.ones(3), "holds a Tensor, not a state"),
        ({}, "no state of named tensors"),
        ({"epoch": 3}, "it has: epoch"),
        ({"model": {}}, "it has: model"),
        ({**STATE, "epoch": 3, "sigma_data": 0.5, "a.scale": 2.0}, r"mixes .* things \(sigma_data, a.scale\)"),
        ({"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor(float("inf"))}, "not numbers in a, b;"),
    ],
)
def test_contents_that_are_no_state(tmp_path: Path, content: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_checkpoint(saved(tmp_path / "a.pt", content))


def test_files_that_are_not_there_or_empty_or_misnamed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there; give a checkpoint"):
        read_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.pt").touch()
    with pytest.raises(ValueError, match="is empty"):
        read_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"no checkpoint by its name; those end in \.pt"):
        read_checkpoint(tmp_path / "a.txt")


def test_checksum_is_compared_before_opening(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", STATE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for given in (digest, digest.upper(), f"sha256:{digest}"):
        assert read_checkpoint(path, sha256=given).files == {"a.pt": digest}
    with pytest.raises(ValueError, match=f"was not opened: its SHA-256 is {digest}"):
        read_checkpoint(path, sha256="0" * 64)
    with pytest.raises(ValueError, match="64 hexadecimal digits, got 'abc'"):
        read_checkpoint(path, sha256="abc")
    with pytest.raises(ValueError, match="2 files"):
        read_checkpoint(folder(tmp_path / "m", shards=True), sha256=digest)


def test_weights_that_the_source_does_not_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bare state"):
        read_checkpoint(saved(tmp_path / "a.pt", STATE), "ema")
    with pytest.raises(ValueError, match="folder of one set of weights"):
        read_checkpoint(folder(tmp_path / "m"), "model")
    with pytest.raises(ValueError, match="bare state with one set of weights: leave weights"):
        read_checkpoint(tmp_path / "a.pt", "emma")
