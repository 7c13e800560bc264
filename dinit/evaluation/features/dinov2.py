"""DINOv2: its vision transformer as a feature extractor, for the Fréchet distance FDD. Oquab et al. 2023."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dinit.evaluation.features.base import EXTRACTORS, Extracted
from dinit.evaluation.features.inception_network import resize_clean
from dinit.evaluation.features.published import DINOV2, PublishedFile
from dinit.evaluation.metrics.embedding_distances import OnDisk

_SIDE, _HEAD = 224, 64  # pixels, and channels of an attention head
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as the encoder was trained


@EXTRACTORS.register("dinov2-vit-l-14")
@dataclass(frozen=True)
class DinoV2(OnDisk):
    """DINOv2's class token after its last norm; published scores are of ViT-L/14, the size is that of the file.

    Args:
        weights: the file; by default that of the variable DINIT_DINOV2_WEIGHTS.
    """

    resize: ClassVar[str] = "bicubic to 224×224 with antialiasing, in float, grey repeated to RGB"
    published: ClassVar[PublishedFile] = DINOV2

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        weights = read_weights(self.weights_path(), device)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))

        def run(images: Tensor) -> Extracted:
            x = resize_clean(images, _SIDE) / 255
            return Extracted(class_token(weights, (x - mean) / std))

        return run


def read_weights(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Tensors of the file, float32. ValueError for one that is not of a DINOv2 ViT, or holds more than tensors."""
    try:
        found = torch.load(path, map_location=device, weights_only=True)
        tensors = {name: tensor.float() for name, tensor in found.items()}
        size, missing = tensors["pos_embed"].shape[-1], [n for n in _names(tensors) if n not in tensors]
    except Exception as error:  # garbage makes torch's reader raise anything
        raise ValueError(f"{path} holds no weights of DINOv2; wanted: {DINOV2.name}") from error
    if missing or size % _HEAD:
        raise ValueError(f"{path} lacks {', '.join(missing[:3])} of DINOv2's ViT; wanted: {DINOV2.name}")
    return tensors


def _names(weights: Mapping[str, Tensor]) -> list[str]:
    layers = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    inner = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")] + ["ls1.gamma", "ls2.gamma"]
    outer = ["cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"]
    return outer + [f"blocks.{k}.{part}" for k in range(_depth(weights)) for part in inner]


def _depth(weights: Mapping[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))


def class_token(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Class token (B, D) of standardised images (B, 3, S, S), S a multiple of the patch size."""
    return tokens(weights, images)[:, 0]


def tokens(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Class token, then those of the patches row by row, after the last norm, (B, 1 + N, D)."""
    patches, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = F.conv2d(images, patches, bias, stride=patches.shape[-1])
    side = x.shape[-1]
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + resized_positions(weights["pos_embed"], side)
    for k in range(_depth(weights)):
        own = f"blocks.{k}."
        x = _block({name.removeprefix(own): v for name, v in weights.items() if name.startswith(own)}, x)
    return _norm(x, weights["norm.weight"], weights["norm.bias"])


def resized_positions(table: Tensor, side: int) -> Tensor:
    """Position table (1, 1 + M², D) for side² patches, resized bicubically where M is another number.

    The factor is 0.1 patches more than the ratio of the sides, as in the published code.
    """
    own = round((table.shape[1] - 1) ** 0.5)
    if own == side:
        return table
    grid = table[:, 1:].transpose(1, 2).reshape(1, -1, own, own)
    factor = (side + 0.1) / own
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _block(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Block on x (B, N, D): attention, then MLP, each after a norm and scaled by channel."""
    batch, count, width = x.shape
    qkv = F.linear(_norm(x, w["norm1.weight"], w["norm1.bias"]), w["attn.qkv.weight"], w["attn.qkv.bias"])
    q, k, v = qkv.view(batch, count, 3, width // _HEAD, _HEAD).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
    x = x + w["ls1.gamma"] * F.linear(mixed, w["attn.proj.weight"], w["attn.proj.bias"])
    inner = F.gelu(F.linear(_norm(x, w["norm2.weight"], w["norm2.bias"]), w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + w["ls2.gamma"] * F.linear(inner, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps=1e-6)
