"""DINOv2's network against golden numbers, and weights that are not what they should be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import case, featured, pictures
from torch import Tensor

from dinit.evaluation import EXTRACTORS
from dinit.evaluation.features.dinov2 import DinoV2, class_token, resized_positions
from dinit.evaluation.metrics.base import METRICS

# Of timm 1.0.31: VisionTransformer(img_size=28, patch_size=14, embed_dim=128, depth=2, num_heads=2, init_values=1)
# with the weights and images below.
GOLDEN = [[-0.392691, -0.091343, 0.599558, -0.154602, -0.247184, 0.339975], [-0.390485, -0.096059, 0.602749]]


def wave(shape: tuple[int, ...], k: int) -> Tensor:
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(steps * (k + 1) * 0.7 + k) * 0.3).float().view(shape)


def small_weights() -> dict[str, Tensor]:
    d = 128
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 5, d), "norm.weight": (d,), "norm.bias": (d,)}
    shapes |= {"patch_embed.proj.weight": (d, 3, 14, 14), "patch_embed.proj.bias": (d,)}
    for k in range(2):
        layers = {"norm1": (d,), "norm2": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d)}
        for name, shape in (layers | {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}).items():
            shapes[f"blocks.{k}.{name}.weight"], shapes[f"blocks.{k}.{name}.bias"] = shape, shape[:1]
        shapes |= {f"blocks.{k}.ls1.gamma": (d,), f"blocks.{k}.ls2.gamma": (d,)}
    return {name: wave(shape, k) for k, (name, shape) in enumerate(sorted(shapes.items()))}


def test_the_class_token_is_timms() -> None:
    found = class_token(small_weights(), wave((2, 3, 28, 28), 99))
    torch.testing.assert_close(found[0, :6], torch.tensor(GOLDEN[0]), atol=2e-5, rtol=0)
    torch.testing.assert_close(found[1, :3], torch.tensor(GOLDEN[1]), atol=2e-5, rtol=0)


def test_positions_between_those_of_the_table() -> None:
    ramp = torch.arange(37.0).expand(37, 37).reshape(1, -1, 1)
    table = torch.cat([torch.full((1, 1, 1), -7.0), ramp], dim=1)
    assert resized_positions(table, 37) is table
    found = resized_positions(table, 16)
    assert found.shape == (1, 257, 1)
    assert found[0, 0, 0] == -7
    # the factor is 16.1 / 37: patch j lies at (j + 1/2) 37 / 16.1 - 1/2
    exact = (torch.arange(2, 14) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[0, 1:].view(16, 16)[5, 2:14], exact, atol=0.06, rtol=0)  # a cubic is no line


def test_fdd_is_the_frechet_distance_of_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({**small_weights(), "mask_token": torch.zeros(1, 128)}, tmp_path / "small.pth")
    monkeypatch.setenv("DINIT_DINOV2_WEIGHTS", str(tmp_path / "small.pth"))
    sets = [featured(np.zeros((8, 1)), images=pictures(8, side=16, channels=3, seed=k)) for k in range(2)]
    assert METRICS["fdd"](case(sets[0], sets[0]))["fdd"] == pytest.approx(0, abs=1e-6)
    both = case(sets[0], sets[1], cuda=False)
    assert METRICS["fdd"](both)["fdd"] > 0
    assert both.shared["fdd"].startswith("fdd: dinov2-vit-l-14 (")
    grey = DinoV2().prepare(pictures(2))
    assert grey.shape[1] == 3


def test_files_that_are_not_dinov2_are_refused(tmp_path: Path) -> None:
    weights = small_weights()
    del weights["blocks.1.ls2.gamma"]
    torch.save(weights, tmp_path / "less.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, message in (("less", r"lacks blocks\.1\.ls2"), ("other", "holds no weights"), ("text", "holds no")):
        with pytest.raises(ValueError, match=message):
            DinoV2(weights=tmp_path / f"{name}.pth").network("cpu")
    for name in ("dinov2-vit-l-14", "clip-vit-l-14-336px"):
        with pytest.raises(ValueError, match="downloads nothing"):
            EXTRACTORS.create({"name": name, "weights": str(tmp_path / "none")}).weights_path()
        with pytest.raises(ValueError, match="got 2 channels"):
            EXTRACTORS[name]().prepare(pictures(1, channels=2))
