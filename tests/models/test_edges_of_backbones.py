"""Edges of every backbone: dropout on each branch, arguments that win over those of a preset."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinit.models.adm_classifier import ADMClassifier
from dinit.models.adm_superres import ADMSuperRes
from dinit.models.base import BACKBONES, Network
from dinit.models.codec import align

# Dropout in a forward pass of the tiny preset: 3 times a block of a transformer (attention, and twice in the MLP)
# and of DiCo, once a mixer or a convolutional residual block, also in the middle and where the resolution changes.
DROPOUTS = {
    "adm": 10,
    "ddpm": 8,
    "dic": 7,
    "dico": 15,
    "diffit": 6,
    "diffit-unet": 9,
    "diffussm": 2,
    "dimr": 9,
    "dis": 3,
    "dit": 6,
    "lamamba": 21,
    "lightningdit": 6,
    "lit": 6,
    "ncsnpp": 10,
    "sit": 6,
    "unet": 8,
}


def test_every_backbone_has_a_row() -> None:
    assert sorted(DROPOUTS) == BACKBONES.names()


@pytest.mark.parametrize("name", BACKBONES.names())
def test_dropout_works_on_every_branch(name: str) -> None:
    model = BACKBONES[name].preset("tiny", dropout=0.5).train()
    shares: list[float] = []

    def watch(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        shares.append(float(module.p))  # pyright: ignore[reportArgumentType]

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(watch)
    with torch.no_grad():
        x = torch.zeros(1, model.in_channels, model.image_size, model.image_size)
        model(x, torch.zeros(1), model.embed(torch.zeros(1, dtype=torch.int64)))
    assert shares.count(0.5) == DROPOUTS[name]
    assert set(shares) <= {0.0, 0.5}  # 0 in attention over pixels, which has none


CHANGED = {"image_size": 16, "in_channels": 2, "num_classes": 3, "dropout": 0.25, "learn_sigma": True}
OTHERS: list[type[Network]] = [ADMClassifier, ADMSuperRes]


@pytest.mark.parametrize(
    "kind", [*(BACKBONES[name] for name in BACKBONES.names()), *OTHERS], ids=lambda k: k.__name__
)
def test_an_argument_wins_over_the_presets(kind: type[Network]) -> None:
    name = "tiny" if "tiny" in kind.presets else next(iter(kind.presets))
    own: dict[str, Any] = dict(kind.presets[name])
    given = {key: value for key, value in CHANGED.items() if key in kind.__dataclass_fields__}  # pyright: ignore
    if name != "tiny":
        given["image_size"] = 2 * own["image_size"]
    if "attention_resolutions" in own:  # by the side of an image, which is another here
        given["attention_resolutions"] = (8,)
    with torch.device("meta"):
        made = kind.preset(name, **given)
    config: Any = made.config
    expected = {**own, **given}
    assert {key: _plain(config[key]) for key in expected} == {key: _plain(value) for key, value in expected.items()}


def test_an_argument_wins_over_a_published_name() -> None:
    made = BACKBONES.create("DiT-S/2", depth=1, num_classes=5)
    assert (made.config["depth"], made.config["num_classes"], made.config["hidden_size"]) == (1, 5, 384)


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["dit", "dico", "unet"])
def test_blocks_are_recomputed_wherever_there_are_gradients(name: str, training: bool) -> None:
    model: Any = BACKBONES[name].preset("tiny").train(training)
    model.enable_gradient_checkpointing()
    plain, calls = model._gradient_checkpointing_func, []

    def watched(block: nn.Module, *arguments: Any) -> Any:
        calls.append(block)
        return plain(block, *arguments)

    model._gradient_checkpointing_func = watched
    x = torch.zeros(1, model.in_channels, 8, 8)
    model(x, torch.zeros(1), model.embed(torch.tensor([0])))
    assert len(calls) == len(set(map(id, calls))) >= 2
    calls.clear()
    with torch.no_grad():
        model(x, torch.zeros(1), model.embed(torch.tensor([0])))
    assert calls == []


@pytest.mark.parametrize("name", BACKBONES.names())
def test_a_condition_has_the_networks_own_type(name: str) -> None:
    for num_classes in (0, 3):
        model = BACKBONES[name].preset("tiny", num_classes=num_classes).to(torch.bfloat16)
        cond = model.embed(torch.zeros(2, dtype=torch.int64))
        assert (len(cond), cond.dtype) == (2, torch.bfloat16)


@pytest.mark.parametrize("offset", [0, 4, 16, 32, 48, 64])
def test_parts_are_moved_to_64_bytes(offset: int) -> None:
    store = torch.arange(300, dtype=torch.uint8)
    start = -store.data_ptr() % 64 + offset
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = store[start : start + 16].view(torch.float32).reshape(1, 4)
    before = layer.weight.detach().clone()
    align([layer])
    assert layer.weight.data_ptr() % 64 == 0
    assert torch.equal(layer.weight.view(torch.uint8), before.view(torch.uint8))
