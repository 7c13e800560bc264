"""ADM's plan: from its arguments to the layers of each level, on the way down and up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from torch import nn

from dinit.models.layers.adm_blocks import (
    GROUPS,
    HEAD_ORDERS,
    RESAMPLINGS,
    ADMBlock,
    ADMStem,
    Double,
    Halve,
    HeadOrder,
    Resampling,
    ResBlock,
    SpatialAttention,
)
from dinit.models.layers.checks import check_divides

if TYPE_CHECKING:
    from dinit.models.base import Network

# Levels of the published networks, by the size of the images.
LEVELS = {
    "64": {"channel_mult": (1, 2, 3, 4), "attention_factors": (2, 4, 8)},
    "128": {"channel_mult": (1, 1, 2, 3, 4), "attention_factors": (4, 8, 16)},
    "256": {"channel_mult": (1, 1, 2, 2, 4, 4), "attention_factors": (8, 16, 32)},
    "512": {"channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "attention_factors": (16, 32, 64)},
}


@dataclass(frozen=True)
class ADMPlan:
    """Arguments that ADM and its classifier share (see ADMNetwork), and the stages made from them.

    name: of the class, for messages. ValueError for arguments that do not fit together.
    """

    name: str
    channels: int
    channel_mult: Sequence[float]
    blocks_per_level: int
    attention_factors: Sequence[int]
    num_heads: int
    head_dim: int | None
    attention_order: HeadOrder
    resampling: Resampling
    scale_shift: bool
    dropout: float

    @classmethod
    def of(cls, network: Network, num_heads: int) -> ADMPlan:
        """Plan of a network that has these arguments as its fields."""
        shared = {f.name: getattr(network, f.name) for f in fields(cls) if f.name not in ("name", "num_heads")}
        return cls(name=type(network).__name__, num_heads=num_heads, **shared)

    def __post_init__(self) -> None:
        if not self.channel_mult:
            raise ValueError(f"{self.name}: channel_mult must have an entry a level, got none")
        for width in self.widths:
            if width < 1:
                raise ValueError(f"{self.name}: channels * channel_mult must be positive widths, got {self.widths}")
            check_divides(self.name, "the number of groups", GROUPS, "every level's width", width)
        factors = [2**level for level in range(self.levels)]
        unknown = sorted(set(self.attention_factors) - set(factors))
        if unknown:
            raise ValueError(
                f"{self.name}: attention_factors must be among the levels' down-scale factors {factors}, "
                f"got {unknown}"
            )
        for argument, value, known in (
            ("attention_order", self.attention_order, HEAD_ORDERS),
            ("resampling", self.resampling, RESAMPLINGS),
        ):
            if value not in known:
                raise ValueError(f"{self.name}: {argument} must be one of {', '.join(known)}; got {value!r}")

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.channel_mult)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [round(self.channels * multiple) for multiple in self.channel_mult]

    @property
    def cond_dim(self) -> int:
        """Features of the condition."""
        return 4 * self.channels

    def encoder(self, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
        """Stem and way down, and the width of each entry's output, which are the skips of the way up."""
        entries = nn.ModuleList([ADMStem(in_channels, self.widths[0])])
        left = [self.widths[0]]
        for level, width in enumerate(self.widths):
            for _ in range(self.blocks_per_level):
                entries.append(ADMBlock(self._res(left[-1], width), self._attention(level, self.num_heads)))
                left.append(width)
            if level < self.levels - 1:
                entries.append(self._halve(width))
                left.append(width)
        return entries, left

    def middle(self) -> nn.ModuleList:
        """Two blocks at the lowest resolution with attention between them."""
        width = self.widths[-1]
        first = ADMBlock(self._res(width, width), self._attend(width, self.num_heads))
        return nn.ModuleList([first, ADMBlock(self._res(width, width))])

    def decoder(self, left: list[int], num_heads: int) -> nn.ModuleList:
        """Way up: blocks_per_level + 1 blocks a level, each on the output from below and the newest skip.

        left: widths of the encoder's entries. num_heads: of the way up.
        """
        entries, below, left = nn.ModuleList(), self.widths[-1], list(left)
        for level in reversed(range(self.levels)):
            width = self.widths[level]
            for index in range(self.blocks_per_level + 1):
                last = index == self.blocks_per_level and level > 0
                entries.append(
                    ADMBlock(
                        self._res(below + left.pop(), width),
                        self._attention(level, num_heads),
                        self._double(width) if last else None,
                    )
                )
                below = width
        return entries

    def _res(self, in_width: int, width: int, resample: Halve | Double | None = None) -> ResBlock:
        return ResBlock(in_width, width, self.cond_dim, self.scale_shift, self.dropout, resample)

    def _attention(self, level: int, num_heads: int) -> SpatialAttention | None:
        return self._attend(self.widths[level], num_heads) if 2**level in self.attention_factors else None

    def _attend(self, width: int, num_heads: int) -> SpatialAttention:
        """Attention at a width; head_dim, where given, sets the number of heads."""
        if self.head_dim is not None:
            check_divides(self.name, "head_dim", self.head_dim, "the width of every level with attention", width)
            num_heads = width // self.head_dim
        check_divides(self.name, "the number of heads", num_heads, "the width of every level with attention", width)
        return SpatialAttention(width, num_heads, self.attention_order)

    def _halve(self, width: int) -> ADMBlock | Halve:
        if self.resampling == "block":
            return ADMBlock(self._res(width, width, Halve(width, with_conv=False)))
        return Halve(width, with_conv=self.resampling == "conv")

    def _double(self, width: int) -> ResBlock | Double:
        if self.resampling == "block":
            return self._res(width, width, Double(width, with_conv=False))
        return Double(width, with_conv=self.resampling == "conv")
