"""Representation alignment (REPA): a block's features follow those of a frozen encoder of the clean image.

Yu et al. 2024, "Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think",
arXiv:2410.06940.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.diffusion.process import positive
from dinit.models.base import Backbone
from dinit.training.regularizers.encoders import Encoder
from dinit.training.regularizers.routing import Route, token_stages


def find_block(backbone: Backbone, block: int | str) -> nn.Module:
    """The block of that number among the blocks on tokens, from 0, or of that name, as 'encoder_2.1'.

    ValueError for one that is not there.
    """
    if isinstance(block, str):
        try:
            return backbone.get_submodule(block)
        except AttributeError as error:
            raise ValueError(f"{type(backbone).__name__} has no block {block!r}: {error}") from error
    blocks = [one for stage in token_stages(backbone) for one in stage]
    if not 0 <= block < len(blocks):
        numbered = f"its blocks on tokens are 0 to {len(blocks) - 1}" if blocks else "its blocks have names only"
        raise ValueError(
            f"{type(backbone).__name__} has no block {block}: {numbered}; a name such as 'bottom.0' will do"
        )
    return blocks[block]


class Probe:
    """A `block_hook` that keeps the output of a block, and applies a route, if there is one.

    features: the block's tokens (B, n, D), those alone that the route lets it see, or its map (B, D, H, W); None
    before it ran.
    """

    def __init__(self, block: nn.Module, adds: bool = False, route: Route | None = None) -> None:
        self.block, self.adds, self.route = block, adds, route
        self.features: Tensor | None = None

    @property
    def kept(self) -> Tensor | None:
        """(B, n): the places of the tokens in `features`; None where they are all."""
        return self.route.kept if self.route is not None and self.route.routes(self.block) else None

    def __call__(self, run: Callable[..., Tensor], block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """run(x, *args), routed. Arguments: as `Backbone.block_hook`."""

        def watched(x: Tensor, *args: Any) -> Tensor:
            out = run(x, *args)
            if block is self.block:
                self.features = x + out if self.adds else out
            return out

        return watched(x, *args) if self.route is None else self.route(watched, block, x, *args)


class Alignment(nn.Module):
    """weight (1 - cos) of the angle between projected features of a block and the encoder's, a mean over places.

    Yu et al. 2024, whose similarity is that less 1. The projection is a 3-layer MLP with SiLU, trained with the
    network and left out of its pipeline. The encoder's map is resized to the grid of the block.

    backbone: on a real device, it runs once; on 'meta' the projection is left out. block: as `find_block`. weight:
    positive, 0.5 as published. hidden: width of the projection, 2048 as published.
    ValueError for a block or an encoder that does not fit.
    """

    def __init__(
        self, backbone: Backbone, encoder: Encoder, block: int | str, weight: float = 0.5, hidden: int = 2048
    ) -> None:
        super().__init__()
        positive("alignment", weight=weight)
        self.encoder, self.block, self.weight = encoder, block, weight
        if isinstance(encoder, nn.Module):
            encoder.requires_grad_(False).eval()
        find_block(backbone, block)
        size = backbone.image_size
        target = self._encode(torch.zeros(1, backbone.in_channels, size, size, device="cpu"))
        if backbone.device.type == "meta":
            return
        features = self._look(backbone)
        self.prefix = backbone.prefix if features.ndim == 3 else 0
        self.grid = _grid(features[:, self.prefix :], (size, size))
        width = features.shape[-1] if features.ndim == 3 else features.shape[1]
        self.projection = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, target.shape[1]),
        )

    def train(self, mode: bool = True) -> Alignment:
        """As every module's, but the encoder's statistics stay frozen."""
        super().train(mode)
        if isinstance(self.encoder, nn.Module):
            self.encoder.eval()
        return self

    def probe(self, backbone: Backbone, route: Route | None = None) -> Probe:
        """The hook of one forward pass."""
        return Probe(find_block(backbone, self.block), backbone.adds_blocks, route)

    def forward(self, probe: Probe, images: Tensor) -> Tensor:
        """(B,) float32, for the clean images (B, C, H, W) in [-1, 1] of the network's last batch."""
        features = probe.features
        assert features is not None, "the block has run"
        tokens = features[:, self.prefix :] if features.ndim == 3 else features.flatten(2).transpose(1, 2)
        target = self._encode(images)
        target = _resized(target, self.grid).flatten(2).transpose(1, 2)  # (B, N, F)
        if probe.kept is not None:
            kept = probe.kept[:, self.prefix :] - self.prefix
            target = target.gather(1, kept[:, :, None].expand(-1, -1, target.shape[2]))
        similarity = F.cosine_similarity(self.projection(tokens).float(), target, dim=-1)
        return self.weight * (1 - similarity).mean(1)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """(B, F, h, w) float32."""
        features = self.encoder(images)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4) or len(features) != len(images):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"an encoder gives (B, F, h, w) or (B, n, F) for images (B, C, H, W), got {got}")
        return _as_map(features.float())

    def _look(self, backbone: Backbone) -> Tensor:
        """The block's output for one black image."""
        device, size = backbone.device, backbone.image_size
        probe, names = self.probe(backbone), []
        blocks = {module: name for name, module in backbone.named_modules()}

        def hook(run: Callable[..., Tensor], block: nn.Module, x: Tensor, *args: Any) -> Tensor:
            names.append(blocks.get(block, "?"))
            return probe(run, block, x, *args)

        backbone.block_hook = hook
        try:
            with torch.random.fork_rng(), torch.no_grad():  # dropout must not use the run's generators
                x = torch.zeros(1, backbone.in_channels, size, size, device=device)
                cond = backbone.embed(torch.zeros(1, dtype=torch.int64, device=device))
                backbone(x, torch.full((1,), 0.5, device=device), cond)
        finally:
            backbone.block_hook = None
        if probe.features is None:
            raise ValueError(f"{self.block!r} is not run as a block; these are: {', '.join(names)}")
        return probe.features


def _grid(features: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the places of tokens (B, N, F) or a map (B, F, h, w) of images of that size.

    N tokens may be half as many in a row as in a column, which is a backbone's that takes runs of a row for tokens.
    ValueError where no grid of them divides the image.
    """
    if features.ndim == 4:
        grids = [(features.shape[2], features.shape[3])]
    else:
        count = features.shape[1]
        grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        grids = [(rows, columns) for rows, columns in grids if rows >= columns]
    for rows, columns in grids:
        if size[0] % rows == 0 and size[1] % columns == 0:
            return rows, columns
    raise ValueError(f"features of shape {tuple(features.shape)} are no grid over images of {size[0]}×{size[1]}")


def _resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map (B, F, h, w) on another grid: means of what falls together, or bilinear where it gets finer."""
    if features.shape[2] >= grid[0] and features.shape[3] >= grid[1]:
        return F.adaptive_avg_pool2d(features, grid)
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


def _as_map(features: Tensor) -> Tensor:
    """(B, F, h, w) of tokens (B, n, F), or a map as it is. ValueError where the tokens are no square."""
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1])
    if side * side != features.shape[1]:
        raise ValueError(
            f"an encoder's tokens are those of a square of patches, got {features.shape[1]} of them; leave out "
            "class tokens, or give a map (B, F, h, w)"
        )
    return features.transpose(1, 2).unflatten(2, (side, side))
