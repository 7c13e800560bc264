"""DiffFit and LoRA: they start as the network they are added to, fold in exactly, and no layer passes them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone
from dinit.models.layers.modulation import Modulation
from dinit.training.finetune.adapters import (
    LowRank,
    ScaledGates,
    adapt_difffit,
    adapt_lora,
    label_tables,
    merged,
    save_adapter,
)

GATED = ["dic", "dico", "diffussm", "dit", "lamamba", "lightningdit", "lit", "sit"]


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = BACKBONES[name].preset("tiny")
    return shaken(backbone)


def shaken(network: Any) -> Any:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def output(backbone: Backbone) -> Tensor:
    size, channels = backbone.image_size, backbone.in_channels
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    return backbone(x, torch.tensor([0.2, 0.7]), backbone.embed(torch.tensor([1, 0])))


def test_low_rank_by_hand() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 3), torch.randn(2, 5)
    layer = shaken(LowRank(linear, rank=2, alpha=3.0))
    expected = F.linear(x, linear.weight + 1.5 * layer.lora_B.weight @ layer.lora_A.weight, linear.bias)
    torch.testing.assert_close(layer(x), expected)
    conv, image = nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 8, 8)
    layer = shaken(LowRank(conv, rank=2, alpha=1.0))
    product = torch.einsum("or,rikl->oikl", layer.lora_B.weight[:, :, 0, 0], layer.lora_A.weight)
    expected = F.conv2d(image, conv.weight + 0.5 * product, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(image), expected)
    torch.testing.assert_close(layer.merged()(image), expected)


def test_gamma_is_on_the_gates() -> None:
    torch.manual_seed(0)
    for chunks, gates in ((3, (2,)), (4, (1, 3)), (6, (2, 5)), (9, (2, 5, 8)), (2, ())):
        assert Modulation(4, 4, chunks).gates == gates
    inner = shaken(Modulation(5, 4, chunks=6))
    scaled = ScaledGates(inner)
    with torch.no_grad():
        scaled.gamma.copy_(torch.tensor([[2.0] * 4, [3.0] * 4]))
    c = torch.randn(2, 5)
    for x in (torch.zeros(2, 7, 4), torch.zeros(2, 4, 3, 3)):
        before = [vector.clone() for vector in inner(c, x)]
        factors = (1, 1, 2, 1, 1, 3)
        for ours, theirs, factor in zip(scaled(c, x), before, factors, strict=True):
            torch.testing.assert_close(ours, factor * theirs)


@pytest.mark.parametrize(
    ("mode", "name"),
    [*(("lora", name) for name in BACKBONES.names()), *(("difffit", name) for name in (*GATED, "unet"))],
)
def test_added_folded_in_and_none_passed_by(mode: str, name: str) -> None:
    """At first it changes nothing; trained, every part of it matters, and the merged network computes the same."""
    backbone = backbone_of(name)
    names = set(backbone.state_dict())
    with torch.no_grad():
        before = output(backbone)
    adapt_lora(backbone, 2, 4.0) if mode == "lora" else adapt_difffit(backbone)
    # The added part is exactly 0, but layers that have one take other kernels than those without: up to 2.8e-6.
    torch.testing.assert_close(output(backbone).detach(), before, rtol=2e-6, atol=1.5e-5)
    shaken(backbone)
    after = output(backbone)
    after.square().sum().backward()
    added = [m for m in backbone.modules() if isinstance(m, (LowRank, ScaledGates))]
    assert len(added) > 0 or (mode == "difffit" and name not in GATED)
    for module in added:
        for parameter in module.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                assert float(parameter.grad.abs().max()) > 0
    plain = merged(backbone)
    assert set(plain.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(output(plain), after.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output(backbone).detach(), after.detach())  # itself untouched


def test_difffit_trains_its_few() -> None:
    backbone = backbone_of("lightningdit")
    adapt_difffit(backbone)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    for name in trained:
        assert name.endswith((".bias", ".gamma", "label_embedding.table.weight")) or ".norm" in name, name
    assert "blocks.0.norm_1.weight" in trained
    assert "blocks.0.modulation.inner.linear.bias" in trained
    assert "label_embedding.table.weight" in trained
    assert not [name for name in trained if name.endswith(".weight") and "norm" not in name and "table" not in name]


def test_lora_goes_where_it_is_told() -> None:
    backbone = backbone_of("dit")
    adapt_lora(backbone, 2, 2.0, ["qkv", "mlp.fc1"])
    names = {name for name, module in backbone.named_modules() if isinstance(module, LowRank)}
    assert names == {f"blocks.{i}.{leaf}" for i in range(2) for leaf in ("attention.qkv", "mlp.fc1")}
    with pytest.raises(ValueError, match=r"no layer of DiT is called 'qvk'; did you mean 'qkv'"):
        adapt_lora(backbone_of("dit"), 2, 2.0, ["qvk"])


def test_adapter_s_file_is_all_that_was_trained(tmp_path: Path) -> None:
    """With the pretrained network and peft's own formula it gives the merged weights."""
    backbone = backbone_of("dit")
    pretrained = {name: value.clone() for name, value in backbone.state_dict().items()}
    adapt_lora(backbone, 2, 4.0)
    shaken(backbone)
    assert save_adapter(backbone, tmp_path)
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    for name, value in merged(backbone).state_dict().items():
        key, module = f"base_model.model.{name}", f"base_model.model.{name.rpartition('.')[0]}"
        expected = adapter[key] if key in adapter else pretrained[name]
        if f"{module}.lora_A.weight" in adapter and name.endswith(".weight"):
            expected = expected + 2.0 * adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
        torch.testing.assert_close(value, expected)
    assert not save_adapter(merged(backbone), tmp_path / "none")


def test_peft_opens_the_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted, plain = backbone_of("dico"), backbone_of("dico")
    adapt_lora(adapted, 2, 4.0)
    shaken(adapted)
    save_adapter(adapted, tmp_path)
    with torch.no_grad():
        expected = output(adapted)
        theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path))
        torch.testing.assert_close(output(theirs.base_model.model), expected, rtol=1e-4, atol=1e-5)


def test_label_tables_are_found() -> None:
    assert set(label_tables(backbone_of("dico"))) == {f"label_embeddings.{i}.table" for i in range(3)}
    assert len(label_tables(backbone_of("adm"))) == 1
