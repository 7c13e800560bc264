"""Token routing (TREAD): in training, a fraction of the tokens skips some blocks.

Krause et al. 2025, "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training", arXiv:2501.04765.
A step costs less, and the deeper blocks get the early features of the routed tokens, which speeds up training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinit.devices import upload
from dinit.models.base import BACKBONES, Backbone
from dinit.training import randomness


def token_stages(backbone: Backbone) -> list[list[nn.Module]]:
    """Its blocks that work on tokens, in the order they run: a list for each run of the same tokens."""
    found: list[list[nn.Module]] = []
    for name in backbone.token_stages:
        blocks = list(getattr(backbone, name))
        nested = all(isinstance(block, nn.ModuleList) for block in blocks)
        found += [list(stage) for stage in blocks] if nested else [blocks]
    return found


@dataclass(frozen=True)
class Routing:
    """The route: a fraction `ratio` of the tokens skips the blocks start .. end - 1.

    ratio: in [0, 1); 0 is the plain network. Blocks are counted from 0 in the order they run, a negative end from
    the last one; the paper's routes are 2 to 8 of DiT-B's 12 blocks and 2 to 24 of DiT-XL's 28. A sample's tokens
    are drawn afresh at every step; of blocks that work on the image's grid (LiT, LaMamba), whole rows are. At least
    one token or row stays. ValueError for a ratio out of range.
    """

    ratio: float = 0.5
    start: int = 2
    end: int = -4

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is the share of tokens that pass by, in [0, 1), got {self.ratio}")

    def blocks(self, backbone: Backbone) -> list[nn.Module]:
        """The skipped blocks. ValueError for a backbone without tokens, or blocks that it does not have."""
        stages = token_stages(backbone)
        if not stages:
            known = [name for name in BACKBONES.names() if BACKBONES[name].token_stages]
            raise ValueError(
                f"routing needs blocks that work on tokens, and those of {type(backbone).__name__} work on feature "
                f"maps; leave it out, or choose a backbone that has them: {', '.join(known)}"
            )
        count = sum(map(len, stages))
        start, end = (place + count if place < 0 else place for place in (self.start, self.end))
        firsts = [sum(map(len, stages[:i])) for i in range(len(stages))]
        for first, stage in zip(firsts, stages, strict=True):
            if first <= start < end <= first + len(stage):
                return stage[start - first : end - first]
        spans = ", ".join(f"{a} to {a + len(stage)}" for a, stage in zip(firsts, stages, strict=True))
        raise ValueError(
            f"start = {self.start} and end = {self.end} of {count} blocks are {start} to {end}; they must be in "
            f"order and lie in one of {spans}, where {type(backbone).__name__} keeps the same tokens"
        )

    def route(self, backbone: Backbone, seed: int, position: int) -> Route:
        """The hook of one forward pass; position: of its first row in the run of that seed."""

        def drawn(batch: int, count: int) -> Tensor:
            kept = max(count - round(self.ratio * count), 1)
            scores = randomness.token_scores(seed, position, (batch, count))
            return scores.argsort(dim=1)[:, :kept].sort(dim=1).values  # in order, which scans and positions need

        return Route(self.blocks(backbone), drawn, backbone.prefix, backbone.adds_blocks)


class Route:
    """A `block_hook` that runs some blocks on a part of the tokens and puts them back among the others after.

    blocks: consecutive ones. drawn: (B, N) -> (B, k) int64, the places that stay, rising, on the CPU. prefix:
    tokens that always stay. adds: whether blocks return what is added to the tokens; skipped tokens get 0.
    """

    def __init__(
        self, blocks: list[nn.Module], drawn: Callable[[int, int], Tensor], prefix: int = 0, adds: bool = False
    ) -> None:
        self.blocks, self.drawn, self.prefix, self.adds = blocks, drawn, prefix, adds
        self.kept: Tensor | None = None
        """(B, k): the places of the tokens that the routed blocks see; None before the first of them."""
        self._rows = 0
        self._whole: Tensor | None = None

    def routes(self, block: nn.Module) -> bool:
        """Whether it is one of the skipped blocks."""
        return any(block is routed for routed in self.blocks)

    def __call__(self, run: Callable[..., Tensor], block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """run(x, *args), or of x (B, N, D) the tokens that stay. Arguments: as `Backbone.block_hook`."""
        if not self.routes(block):
            return run(x, *args)
        if block is self.blocks[0]:
            self.kept, self._rows = self._draw(x, args)
            self._whole = None if self.adds else x
        assert self.kept is not None, "the first routed block has run"
        if self.adds:
            out = run(_gathered(x, self.kept), *self._args(args))
            return _scattered(torch.zeros_like(x), self.kept, out)
        x = _gathered(x, self.kept) if block is self.blocks[0] else x
        x = run(x, *self._args(args))
        if block is not self.blocks[-1]:
            return x
        assert self._whole is not None, "set at the first routed block"
        return _scattered(self._whole, self.kept, x)

    def _draw(self, x: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, int]:
        """(B, k) places of the tokens that stay, and how many rows of the grid they are (0 where there is none)."""
        if _on_grid(args):
            rows, columns = args[1:]
            kept_rows = self.drawn(len(x), rows)
            kept = (kept_rows[:, :, None] * columns + torch.arange(columns)).flatten(1)
            return upload(kept, x.device), kept_rows.shape[1]
        kept = self.drawn(len(x), x.shape[1] - self.prefix) + self.prefix
        first = torch.arange(self.prefix).expand(len(x), -1)
        return upload(torch.cat([first, kept], dim=1), x.device), 0

    def _args(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """(), (c,), (c, rotary angles) or (c, rows, columns) of all tokens, for those that stay."""
        if _on_grid(args):
            return (args[0], self._rows, args[2])
        if len(args) < 2 or args[1] is None:
            return args
        assert self.kept is not None, "the first routed block has run"
        return (args[0], args[1][self.kept][:, None])  # (B, 1, k, d): each sample's own, for all heads


def _on_grid(args: tuple[Any, ...]) -> bool:
    return len(args) == 3 and isinstance(args[1], int)


def _gathered(x: Tensor, kept: Tensor) -> Tensor:
    return x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))


def _scattered(whole: Tensor, kept: Tensor, part: Tensor) -> Tensor:
    """whole (B, N, D) with `part` (B, k, D) at the places kept."""
    dtype = torch.promote_types(whole.dtype, part.dtype)  # under autocast a block's output may be wider
    index = kept[:, :, None].expand(-1, -1, whole.shape[2])
    return whole.to(dtype).scatter(1, index, part.to(dtype))
