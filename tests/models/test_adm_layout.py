"""What guided-diffusion's tensors tell of the model that they are of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinit.checkpoints.layouts.adm import ADMClassifierLayout, ADMLayout, ADMSuperResLayout
from dinit.models.adm import ADM
from dinit.models.adm_classifier import ADMClassifier
from dinit.models.adm_superres import ADMSuperRes
from dinit.pipelines.weights.convert import convert

LAYOUT_OF: dict[Any, Any] = {
    ADM: ADMLayout(),
    ADMSuperRes: ADMSuperResLayout(),
    ADMClassifier: ADMClassifierLayout(),
}
SMALL: dict[str, Any] = {
    "image_size": 8,
    "channels": 32,
    "channel_mult": (1, 1),
    "blocks_per_level": 1,
    "attention_factors": (2,),
    "num_classes": 10,
}

# Our names to guided-diffusion's, written apart from the layout's rules. <part> is looked up in PARTS.
FOREIGN = {
    r"pool\.positions": "out.2.positional_embedding",
    r"pool\.qkv\.(\w+)": r"out.2.qkv_proj.\1",
    r"pool\.proj\.(\w+)": r"out.2.c_proj.\1",
    r"(?:head\.)?norm\.(\w+)": r"out.0.\1",
    r"head\.conv\.(\w+)": r"out.2.\1",
    r"label_embedding\.(\w+)": r"label_emb.\1",
    r"time_embedding\.mlp\.(\d)\.(\w+)": r"time_embed.\1.\2",
    r"encoder\.0\.conv\.(\w+)": r"input_blocks.0.0.\1",
    r"encoder\.(\d+)\.conv\.(\w+)": r"input_blocks.\1.0.op.\2",
    r"encoder\.(\d+)\.res\.(\w+)\.(\w+)": r"input_blocks.\1.0.<\2>.\3",
    r"encoder\.(\d+)\.attention\.(\w+)\.(\w+)": r"input_blocks.\1.1.<\2>.\3",
    r"decoder\.(\d+)\.res\.(\w+)\.(\w+)": r"output_blocks.\1.0.<\2>.\3",
    r"decoder\.(\d+)\.attention\.(\w+)\.(\w+)": r"output_blocks.\1.1.<\2>.\3",
    r"decoder\.(\d+)\.up\.conv\.(\w+)": r"output_blocks.\1.2.conv.\2",
    r"decoder\.(\d+)\.up\.(\w+)\.(\w+)": r"output_blocks.\1.2.<\2>.\3",
    r"middle\.0\.res\.(\w+)\.(\w+)": r"middle_block.0.<\1>.\2",
    r"middle\.0\.attention\.(\w+)\.(\w+)": r"middle_block.1.<\1>.\2",
    r"middle\.1\.res\.(\w+)\.(\w+)": r"middle_block.2.<\1>.\2",
}
PARTS = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "condition": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
    "proj": "proj_out",
}


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in LAYOUT_OF for name in cls.presets if name != "tiny"]
)
def test_published_sizes_are_told_from_their_tensors(cls: Any, name: str) -> None:
    """Names and shapes of a published checkpoint give back every argument of its preset."""
    layout = LAYOUT_OF[cls]
    with torch.device("meta"):
        shapes = published_shapes(cls.preset(name))
    assert layout.recognises(shapes)
    told = layout.options(shapes)
    preset = dict(cls.presets[name])
    assert {key: told[key] for key in preset} == preset
    assert None not in [value for key, value in told.items() if key != "head_dim"]
    assert (told["resampling"], told["scale_shift"]) == ("block", True)
    # Told apart from the other two.
    assert not any(other.recognises(shapes) for other in LAYOUT_OF.values() if other is not layout)


def published_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model's tensors as guided-diffusion has them."""
    shapes = {}
    for key, tensor in model.state_dict().items():
        pattern, name = next(item for item in FOREIGN.items() if re.fullmatch(item[0], key))
        shape = tuple(tensor.shape)
        if key == "pool.positions":
            shape = shape[::-1]
        elif key.endswith("weight") and re.search(r"\.(qkv|proj)\.", key):
            shape = (*shape, 1)  # convolutions there
        part = key.split(".")[-2]
        shapes[re.sub(pattern, name, key).replace(f"<{part}>", PARTS.get(part, part))] = shape
    return shapes


def published_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under guided-diffusion's names."""
    state = {}
    for (key, tensor), (name, shape) in zip(
        model.state_dict().items(), published_shapes(model).items(), strict=True
    ):
        state[name] = (tensor.t() if key == "pool.positions" else tensor).reshape(shape).contiguous()
    return state


@torch.no_grad()
def test_an_upsampler_and_a_classifier_become_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([10.0, 500.0])
    for cls in (ADMSuperRes, ADMClassifier):
        model = cls(**{**SMALL, "in_channels": 3, "attention_order": "qkv-first", "head_dim": 16}).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        torch.save(published_state(model), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match="cannot be inferred from the tensors"):
            convert(tmp_path / "weights.pt", tmp_path / cls.__name__)
        options = {"head_dim": 16, "attention_order": "qkv-first", "image_size": 8}
        if cls is ADMSuperRes:
            options |= {"num_heads": 1, "null_class": True, "num_classes": 10}
        made = convert(tmp_path / "weights.pt", tmp_path / cls.__name__, options=options)
        assert made.backbone == cls.__name__
        assert "from_pretrained" in made.notes[-1]
        loaded = cls.from_pretrained(tmp_path / cls.__name__)
        if cls is ADMSuperRes:
            cond, small = model.embed(torch.tensor([3, 4])), x[:, :, ::4, ::4]
            ours, theirs = loaded(x, t, cond, small), model(x, t, cond, small)
        else:
            ours, theirs = loaded(x, t), model(x, t)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_the_64_pixel_model_was_trained_on_the_cosine_schedule() -> None:
    for name, preset in ADM.presets.items():
        process, parameterization = ADMLayout().trained_on(preset)
        assert process == {"name": "vp-discrete", "schedule": "cosine" if name == "64" else "linear"}
        assert parameterization == {"name": "epsilon"}


@torch.no_grad()
@pytest.mark.parametrize("resampling", ["block", "conv", "plain"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_every_resampling_is_told_from_its_tensors(resampling: str, blocks: int) -> None:
    options = {**SMALL, "channel_mult": (1, 2, 3), "blocks_per_level": blocks, "attention_factors": (2, 4)}
    model = ADM(**options, resampling=resampling, null_class=False)
    told = ADMLayout().options(published_shapes(model))
    for name in ("channel_mult", "blocks_per_level", "attention_factors", "num_classes"):
        assert told[name] == options[name], name
    assert (told["resampling"], told["in_channels"], told["null_class"]) == (resampling, 3, False)
    assert told["head_dim"] is told["attention_order"] is None  # no such size was published
    x = torch.randn(2, 3, 12, 8)
    assert model(x, torch.tensor([7.0]), model.embed(torch.tensor([1, 2]))).shape == x.shape


@torch.no_grad()
def test_classifier_whose_levels_cannot_be_told_says_so() -> None:
    model = ADMClassifier(**{**SMALL, "attention_factors": ()}, head_dim=8)  # 3 blocks, or 1 and a halving
    told = ADMClassifierLayout().options(published_shapes(model))
    assert told["blocks_per_level"] is told["channel_mult"] is told["attention_factors"] is None
    assert (told["channels"], told["num_classes"]) == (32, 10)
