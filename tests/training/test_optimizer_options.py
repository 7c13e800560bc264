"""Every option of every optimiser, average and encoder away from its default changes what it gives.

A new option needs a row, or a reason in NONE.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dinit.evaluation.features.digits_classifier import SHIPPED as DIGITS
from dinit.evaluation.features.glyphs_classifier import SHIPPED as GLYPHS
from dinit.training.averaging.ema import EMA
from dinit.training.averaging.power_ema import PowerEMA
from dinit.training.optimizer import make_optimizer
from dinit.training.recipe.model import OptimizerSection
from dinit.training.regularizers.encoders import ENCODERS

KINDS = get_args(OptimizerSection.model_fields["kind"].annotation)
OTHER: dict[str, Any] = {
    "lr": 0.02,
    "weight_decay": 0.3,
    "eps": 0.1,
    "betas, first": (0.5, 0.99),
    "betas, second": (0.9, 0.5),
}
NONE = {("lion", "eps"): "its rule has none"}
MATRICES_ALONE = {("muon", "eps"), ("muon", "betas, second")}  # of AdamW, which moves the others


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 3))


def trained(**options: Any) -> dict[str, Tensor]:
    """The weights after three steps on made gradients of changing sign and size."""
    model, generator = network(), torch.Generator().manual_seed(1)
    optimizer = make_optimizer(model, OptimizerSection(**options))
    for size in (1.0, 0.1, 3.0):
        for parameter in model.parameters():
            parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_option_of_an_optimizer_has_another_value() -> None:
    assert {"kind", *(name.split(",")[0] for name in OTHER)} == set(OptimizerSection.model_fields)


@pytest.mark.parametrize("option", sorted(OTHER))
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_changes_the_weights(kind: str, option: str) -> None:
    changed = trained(kind=kind, **{option.split(",")[0]: OTHER[option]})
    plain = trained(kind=kind)
    different = {name for name in plain if not torch.equal(plain[name], changed[name])}
    matrices = {name for name, value in plain.items() if value.ndim > 1}
    if (kind, option) in NONE:
        assert not different
    elif (kind, option) in MATRICES_ALONE:
        assert different == plain.keys() - matrices
    elif kind == "lion" and option == "betas, first":  # signs alone, which change here and there
        assert matrices <= different
    else:
        assert different == plain.keys()


def test_kinds_differ() -> None:
    weights = [trained(kind=kind)["3.weight"] for kind in KINDS]
    assert all(not torch.equal(one, other) for k, one in enumerate(weights) for other in weights[:k])


def averaged(kind: Any, **options: Any) -> Tensor:
    model = network()
    average = kind(model, **options)
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += step
        average.update(step)
    state = average.averages if kind is PowerEMA else average.state()
    return state["3.weight"] - network().state_dict()["3.weight"]


def test_every_option_of_an_average_changes_it() -> None:
    """After 1, 3 and 6 are added: with decays 2/11, 3/12 and 4/13, or 0.75 each, or a power of the step."""
    assert set(inspect.signature(EMA).parameters) == {"network", "decay", "warmup", "sharded"}
    assert set(inspect.signature(PowerEMA).parameters) == {"network", "sigma_rel"}

    def mean(decays: list[float]) -> float:
        value = 0.0
        for decay, added in zip(decays, (1, 3, 6), strict=True):
            value = decay * value + (1 - decay) * added
        return value

    for kind, options, decays in (
        (EMA, {}, [2 / 11, 3 / 12, 4 / 13]),
        (EMA, {"decay": 0.2}, [2 / 11, 0.2, 0.2]),
        (EMA, {"decay": 0.75, "warmup": False}, [0.75] * 3),
        (EMA, {"sharded": True}, [2 / 11, 3 / 12, 4 / 13]),  # the same numbers, without a network
        (PowerEMA, {"sigma_rel": 0.2}, None),
        (PowerEMA, {"sigma_rel": 0.1}, None),
    ):
        if decays is None:  # (1 - 1 / step)^(gamma + 1), with gamma from (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
            wanted, gamma = options["sigma_rel"] ** 2, 0.0
            while (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > wanted:
                gamma += 1e-4
            decays = [(1 - 1 / step) ** (gamma + 1) for step in (1, 2, 3)]
        found = averaged(kind, **options)
        torch.testing.assert_close(found, torch.full_like(found, mean(decays)), rtol=1e-4, atol=1e-5)


ENCODER_OPTIONS = {
    ("digits-classifier", "folder"),
    ("glyphs-classifier", "folder"),
    ("glyphs-classifier", "layer"),
    ("dinov2", "weights"),  # of a published file, which is not here: test_alignment.py makes one
    ("dinov2", "side"),
}


def test_every_option_of_an_encoder_is_known() -> None:
    known = {(name, option) for name in ENCODERS for option in inspect.signature(ENCODERS[name]).parameters}
    assert known == ENCODER_OPTIONS


SHIPPED = {"digits-classifier": (DIGITS, 1, 8), "glyphs-classifier": (GLYPHS, 3, 32)}


@pytest.mark.parametrize("name", SHIPPED)
@torch.no_grad()
def test_an_encoder_is_read_from_its_folder(name: str, tmp_path: Path) -> None:
    shipped, channels, side = SHIPPED[name]
    shutil.copytree(shipped, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    changed = {key: value + 0.1 if value.is_floating_point() else value for key, value in tensors.items()}
    save_file(changed, tmp_path / "other" / "model.safetensors")
    images = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = ENCODERS.create({"name": name})(images)
    other = ENCODERS.create({"name": name, "folder": str(tmp_path / "other")})(images)
    assert plain.shape == other.shape
    assert not torch.allclose(plain, other)


@torch.no_grad()
def test_a_layer_of_the_glyphs_classifier_is_counted_from_0() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sides = [ENCODERS.create({"name": "glyphs-classifier", "layer": layer})(images).shape[-1] for layer in range(5)]
    assert sides == [16, 16, 8, 8, 4]
    default, third = (ENCODERS.create({"name": "glyphs-classifier", **more})(images) for more in ({}, {"layer": 3}))
    assert torch.equal(default, third)
    assert not torch.equal(third, ENCODERS.create({"name": "glyphs-classifier", "layer": 2})(images))
