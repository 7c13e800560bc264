"""Every field of every backbone away from the tiny preset: it changes the network, and its config keeps it.

A new field needs another value in OTHER, or the test that compares the table with the backbones fails.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone

COMMON = {
    "image_size": 16,
    "in_channels": 2,
    "num_classes": 4,
    "null_class": ({"num_classes": 4}, False),
    "learn_sigma": True,
    "dropout": 0.5,
}
STAGES = BACKBONES["dimr"].presets["tiny"]["stages"]
# field -> another value than the preset's; a pair has first what is changed beside it in both networks
OTHER: dict[str, dict[str, Any]] = {
    "adm": {
        "channels": 64,
        "channel_mult": (1, 2),
        "blocks_per_level": 2,
        "attention_factors": (1,),
        "num_heads": 4,
        "decoder_heads": 4,
        "head_dim": 8,
        "attention_order": "qkv-first",
        "resampling": "conv",
        "scale_shift": False,
    },
    "ddpm": {
        "channels": 32,
        "channel_mult": (2, 2),
        "blocks_per_level": 2,
        "attention_levels": (0,),
        "num_groups": 2,
    },
    "dic": {
        "hidden_size": 32,
        "depth": (1, 1, 1, 1, 1),
        "channel_mult": (1, 2, 2, 2, 1),
        "skip_stride": ({"depth": (4, 1, 1, 1, 4)}, 2),
    },
    "dico": {"hidden_size": 32, "depth": (2, 1, 1, 1, 1), "mlp_ratio": 3.0},
    "diffit": {"patch_size": 4, "hidden_size": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0},
    "diffit-unet": {
        "channels": 32,
        "channel_mult": (2, 2),
        "blocks_per_level": 2,
        "window": 2,
        "num_heads": 4,
        "num_groups": 2,
        "mlp_ratio": 2.0,
    },
    "diffussm": {"patch_size": 2, "hidden_size": 16, "depth": 3, "ratio": 4, "state_size": 4},
    "dimr": {
        "stages": ({**STAGES[0], "depth": 5}, STAGES[1]),
        "num_heads": 2,
        "coarse_heads": True,
    },
    "dis": {
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 4,
        "states": 8,
        "expand": 3,
        "conv_width": 3,
        "dt_rank": 5,
    },
    "dit": {
        "patch_size": 4,
        "hidden_size": 16,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "freq_shift": 1.0,
        "mlp_norm_eps": 1e-2,
    },
    "lamamba": {
        "patch_size": 1,
        "hidden_size": 32,
        "depth": (2, 1),
        "channel_mult": (1, 1),
        "bottom_depth": 2,
        "num_heads": 4,
        "window": 4,
        "states": 2,
    },
    "lightningdit": {
        "patch_size": 4,
        "hidden_size": 16,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "use_qknorm": True,
        "use_swiglu": False,
        "use_rope": False,
        "use_rmsnorm": False,
        "wo_shift": True,
    },
    "lit": {"patch_size": 4, "hidden_size": 16, "depth": 3, "num_heads": 4, "kernel_size": 3, "mlp_ratio": 2.0},
    "ncsnpp": {
        "channels": 32,
        "channel_mult": (2, 2),
        "blocks_per_level": 2,
        "attention_levels": (0,),
        "fir": False,
        "input_pyramid": "none",
        "output_pyramid": "none",
        "embedding": "fourier",
        "scale_by_sigma": True,
        "centered": False,
        "sigma_min": ({"scale_by_sigma": True}, 0.1),
        "sigma_max": ({"scale_by_sigma": True}, 20.0),
        "num_scales": ({"scale_by_sigma": True}, 2000),
    },
    "sit": {
        "patch_size": 4,
        "hidden_size": 16,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "freq_shift": 1.0,
        "mlp_norm_eps": 1e-2,
        "spare_half": True,
    },
    "unet": {
        "image_size": ({"attention_resolutions": (8,)}, 16),
        "channels": 32,
        "channel_mult": (2, 2),
        "blocks_per_level": 2,
        "attention_resolutions": (8,),
        "num_groups": 2,
        "num_heads": 4,
    },
}
ROWS = [(name, field) for name, options in OTHER.items() for field in {**COMMON, **options}]


def test_every_field_has_another_value() -> None:
    kinds: Any = {name: BACKBONES[name] for name in BACKBONES}
    known = [(name, field.name) for name, kind in kinds.items() for field in fields(kind)]
    assert sorted(known) == sorted(ROWS)


def built(name: str, **options: Any) -> Backbone:
    """The tiny preset with random weights, the same for networks of the same shapes."""
    model = BACKBONES[name].preset("tiny", **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def output(model: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = model.image_size
    x = torch.randn(2, model.in_channels, size, size, generator=generator)
    torch.manual_seed(2)  # of dropout
    return model(x, torch.tensor([3.0, 700.0]), model.embed(torch.tensor([0, 1])))


@pytest.mark.parametrize(("name", "field"), ROWS)
def test_a_field_changes_the_network_and_its_config_keeps_it(name: str, field: str) -> None:
    value = {**COMMON, **OTHER[name]}[field]
    beside, value = (
        value if isinstance(value, tuple) and isinstance(value[0], dict) and field != "stages" else ({}, value)
    )
    plain, changed = built(name, **beside), built(name, **beside, **{field: value})
    assert json.loads(changed.to_json_string())[field] == json.loads(json.dumps(value))
    again: Any = type(changed).from_config(changed.config)
    again.load_state_dict(changed.state_dict())
    again.eval()
    assert torch.equal(output(again), output(changed))
    if field == "dropout":
        plain, changed, again = plain.train(), changed.train(), again.train()
        assert torch.equal(output(again), output(changed))
        layers = {part: layer.p for part, layer in changed.named_modules() if isinstance(layer, nn.Dropout)}
        # Convolutional networks have none in their attention, as published.
        assert {rate for part, rate in layers.items() if rate or "attention" not in part} == {value}
    if field == "null_class":  # the table has no row for it
        assert plain.state_dict().keys() == changed.state_dict().keys()
        with pytest.raises(IndexError):
            changed.embed(torch.tensor([changed.num_classes]))
        return
    one, other = output(plain), output(changed)
    assert one.shape != other.shape or float((one - other).abs().max()) > 1e-4
