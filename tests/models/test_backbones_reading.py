"""What the golden suite of backbones reads of a file: other names, sizes and batches; what it lacks is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import GOLDEN, Reference, all_references, references, relative_error
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinit.models.base import BACKBONES

# A state of ours under the names of facebookresearch/DiT.
PUBLISHED = [
    (r"stem\.proj\.(.+)", r"x_embedder.proj.\1"),
    (r"time_embedding\.mlp\.(.+)", r"t_embedder.mlp.\1"),
    (r"label_embedding\.table\.weight", "y_embedder.embedding_table.weight"),
    (r"blocks\.(\d+)\.modulation\.linear\.(.+)", r"blocks.\1.adaLN_modulation.1.\2"),
    (r"blocks\.(\d+)\.attention\.(.+)", r"blocks.\1.attn.\2"),
    (r"blocks\.(\d+)\.mlp\.(.+)", r"blocks.\1.mlp.\2"),
    (r"head\.modulation\.linear\.(.+)", r"final_layer.adaLN_modulation.1.\1"),
    (r"head\.linear\.(.+)", r"final_layer.linear.\1"),
]
DIT = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "depth": 2, "num_heads": 3}
DIT |= {"num_classes": 5, "learn_sigma": True}
ADM_OF_VOLUMES = json.dumps(
    {"image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "dims": 3}
)


def read(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def written(folder: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Reference:
    path = folder / "0f3a.safetensors"  # no name that tells anything
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return Reference(path)


@torch.no_grad()
def error_of(file: Reference) -> float:
    given = file.tensors
    model, theirs = file.build(), given["out.sample"]
    labels = given["in.y"] if "in.y" in given else torch.full((len(theirs),), model.num_classes)
    return relative_error(model(given["in.x"], given["in.t"], model.embed(labels))[:, : theirs.shape[1]], theirs)


@pytest.mark.parametrize("name", ["dit_nosigma_p4", "sit", "lightningdit_xl1flags", "dis_uncond", "dico", "dic_h"])
def test_other_batches_under_another_name(name: str, tmp_path: Path) -> None:
    metadata, tensors = read(name)
    batch = {key: t[[1]] if key in ("in.x", "in.t", "in.y", "out.sample") else t for key, t in tensors.items()}
    file = written(tmp_path, metadata, batch)
    assert references(tmp_path) == [file]
    assert error_of(file) <= file.tolerance


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 5},
        {"in_channels": 1},  # with the variance, an output of two channels
        {"learn_sigma": False, "in_channels": 2},
        {"patch_size": 1, "input_size": 5},
        {"num_heads": 2, "hidden_size": 40, "mlp_ratio": 2.0},
        {"class_dropout_prob": 0.0},
        {"num_classes": 1, "class_dropout_prob": 0.3},
    ],
    ids=str,
)
def test_other_arguments(changes: dict[str, Any], tmp_path: Path) -> None:
    file = golden_of(tmp_path, {**DIT, **changes})
    given = file.arguments
    assert file.uncovered == ""
    assert file.tensors["out.sample"].shape[1] == given["in_channels"] * (1 + given["learn_sigma"])
    assert error_of(file) <= file.tolerance


@pytest.mark.parametrize("left_out", ["mlp_ratio", "learn_sigma"])
def test_an_argument_that_only_the_tensors_show(left_out: str, tmp_path: Path) -> None:
    file = golden_of(tmp_path, {**DIT, "mlp_ratio": 2.0, "learn_sigma": False}, left_out)
    assert left_out not in file.arguments
    assert error_of(file) <= file.tolerance


@torch.no_grad()
def golden_of(folder: Path, given: dict[str, Any], left_out: str = "") -> Reference:
    """A file of a network of ours with random weights, run in float64, under the published names."""
    ours = {"input_size": "image_size", "class_dropout_prob": ""}
    arguments = {ours.get(name, name): value for name, value in given.items() if ours.get(name, name)}
    null_class = given.get("class_dropout_prob", 0.1) > 0
    torch.manual_seed(0)
    model = BACKBONES["dit"](**arguments, null_class=null_class).double().eval()
    for parameter in model.parameters():
        parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).float())
    state = {"state.pos_embed": model.positions.table[None].float()}
    for key, tensor in model.state_dict().items():
        pattern, target = next(row for row in PUBLISHED if re.fullmatch(row[0], key))
        state["state." + re.sub(pattern, target, key)] = tensor.float()
    x, t = torch.randn(3, given["in_channels"], given["input_size"], given["input_size"]), torch.rand(3) * 999
    labels = torch.arange(3) % (given["num_classes"] + null_class)
    out = model(x.double(), t.double(), model.embed(labels)).float()
    tensors = {**state, "in.x": x, "in.t": t, "in.y": labels, "out.sample": out}
    metadata = {
        "class": "DiT",
        "repo": "facebookresearch/DiT",
        "kwargs": json.dumps({name: value for name, value in given.items() if name != left_out}),
        "suggested_rel_tol": "2e-5",
    }
    return written(folder, metadata, tensors)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dit_sigma", {"num_heads": 2}),
        ("dit_sigma", {"depth": 2}),
        ("lightningdit_qknorm_woshift", {"wo_shift": False}),
        ("lightningdit_xl1flags", {"use_rope": False}),
        ("adm_cond_neworder", {"use_new_attention_order": False}),
        ("dis_cond", {"depth": 6}),
    ],
)
def test_an_argument_that_is_not_the_networks_is_noticed(name: str, changes: dict, tmp_path: Path) -> None:
    metadata, tensors = read(name)
    metadata["kwargs"] = json.dumps({**json.loads(metadata["kwargs"]), **changes})
    file = written(tmp_path, metadata, tensors)
    try:
        assert error_of(file) > 10 * file.tolerance
    except ValueError as error:
        assert "does not fit this" in str(error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class": "JiT", "repo": "LTH14/JiT", "family": "JiT"}, "dinit does not have this class"),
        ({"repo": "feizc/DiT-MoE", "family": "DiT-MoE"}, "dinit does not have this class"),
        ({"class": "UNetModel", "kwargs": ADM_OF_VOLUMES}, "UNetModel with dims = 3 is not covered"),
    ],
)
def test_a_network_that_dinit_does_not_have_is_listed_by_what_it_is(
    changes: dict[str, str], reason: str, tmp_path: Path
) -> None:
    metadata, tensors = read("dit_sigma")
    if changes.get("class") == "UNetModel":
        changes = {**changes, "repo": "openai/guided-diffusion"}
    file = written(tmp_path, {**metadata, **changes}, tensors)
    assert references(tmp_path) == []
    assert all_references(tmp_path) == [file]
    assert reason in file.uncovered
    said = file.metadata
    assert file.description == f"{said['family']}: {said['class']} of {said['repo']} {said['kwargs']}"


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("tensors", "in.x"),
        ("tensors", "in.t"),
        ("tensors", "out.sample"),
        ("metadata", "class"),
        ("metadata", "kwargs"),
    ],
)
def test_what_a_file_lacks_is_named(part: str, key: str, tmp_path: Path) -> None:
    metadata, tensors = read("dit_sigma")
    for mapping in (metadata, tensors):
        mapping.pop(key, None)
    file = written(tmp_path, metadata, tensors)
    assert all_references(tmp_path) == [file]
    with pytest.raises(ValueError, match=rf"0f3a\.safetensors: its {part} have no '{key}'; there are: "):
        assert file.uncovered == error_of(file)


def test_a_lost_weight_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    metadata, tensors = read("dit_sigma")
    lost = {key: t for key, t in tensors.items() if key != "state.blocks.1.attn.qkv.bias"}
    with pytest.raises(ValueError, match=r"missing \['blocks\.1\.attention\.qkv\.bias'\]"):
        written(tmp_path, metadata, lost).build()
    file = written(tmp_path, metadata, tensors)
    file.path.write_bytes(file.path.read_bytes()[:5000])
    again = Reference(file.path)
    assert all_references(tmp_path) == [again]
    with pytest.raises(ValueError, match=r"0f3a\.safetensors is damaged, or no safetensors file"):
        _ = again.uncovered
