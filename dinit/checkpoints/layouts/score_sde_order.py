"""Module order of a score_sde network: its flat list `all_modules`, and the options inferred from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dinit.checkpoints.layouts.base import Shapes

Module = Mapping[str, tuple[int, ...]]  # of one number: what follows it in the keys, and the shapes


def _modules(shapes: Shapes) -> list[Module]:
    """The numbered modules in order. ValueError where a number is missing."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"all_modules\.(\d+)\.(.+)", key):
            found.setdefault(int(match[1]), {})[match[2]] = tuple(shape)
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise ValueError(
            f"a score_sde state has tensors for every all_modules.N, N = 0 .. {max(found, default=0)}; "
            f"there are none for N = {missing[:5]} ({len(missing)} in all); the file is truncated or another one's"
        )
    return [found[number] for number in range(len(found))]


def _is_block(module: Module) -> bool:
    return "Conv_1.weight" in module


def _is_attention(module: Module) -> bool:
    return "NIN_3.W" in module


def _is_resampling(module: Module) -> bool:
    """Of DDPM: a lone convolution. Of NCSN++: a block with a 1x1 convolution though its width stays the same."""
    if not _is_block(module):
        return set(module) == {"Conv_0.weight", "Conv_0.bias"} and module["Conv_0.weight"][2:] == (3, 3)
    return "Conv_2.weight" in module and module["Conv_2.weight"][0] == module["Conv_2.weight"][1]


@dataclass(frozen=True)
class Structure:
    """What decides the numbering. widths: of the resolutions. join: the module that joins the input pyramid."""

    fourier: bool
    channels: int
    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[int, ...]
    join: Module | None
    output_pyramid: bool

    @classmethod
    def of(cls, shapes: Shapes, resampling_blocks: bool) -> Structure:
        """Read off the tensors. resampling_blocks: NCSN++'s; DDPM has convolutions instead.

        ValueError for modules that are in no such order.
        """
        modules = _modules(shapes)
        fourier = "W" in modules[0]
        start = 4 if fourier else 3  # after the time embedding and the stem
        try:
            changes = [m for m in modules if _is_resampling(m) and _is_block(m) == resampling_blocks]
            levels = len(changes) // 2 + 1
            blocks = sum(map(_is_block, modules)) - len(changes) * resampling_blocks
            count = (blocks - 2 - levels) // (2 * levels)
            widths, attention, join = cls._walk_down(modules[start:], levels, count)
            stem = modules[start - 1]["weight"]
            return cls(
                fourier=fourier,
                channels=stem[0],
                in_channels=stem[1],
                out_channels=modules[-1]["weight"][0],
                widths=widths,
                blocks_per_level=count,
                attention_levels=attention,
                join=join,
                output_pyramid=sum(len(m.get("weight", ())) == 4 for m in modules) > 2,
            )
        except (KeyError, IndexError, StopIteration) as error:
            raise ValueError(
                f"the {len(modules)} modules of this state are not in the order of a score_sde network"
            ) from error

    @staticmethod
    def _walk_down(
        modules: Sequence[Module], levels: int, count: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], Module | None]:
        """Widths of the resolutions, those with attention, and the module after the first change of resolution."""
        rest, widths, attention = iter(modules), [], []
        join: Module | None = None
        module = next(rest)
        for level in range(levels):
            for _ in range(count):
                width = module["Conv_1.weight"][0]
                module = next(rest)
                if _is_attention(module):
                    attention.append(level)
                    module = next(rest)
            widths.append(width)
            if level < levels - 1:
                module = next(rest)  # past the change of resolution
                if not _is_block(module):
                    join = module if level == 0 else join
                    module = next(rest)
        return tuple(widths), tuple(sorted(set(attention))), join

    @property
    def input_pyramid(self) -> str:
        """Ours: "skip" through a 1x1 convolution of the image, "residual" through a 3x3 one of what went before."""
        if self.join is None:
            return "none"
        return "skip" if self.join.get("Conv_0.weight", ())[2:] == (1, 1) else "residual"

    def order(self) -> Iterator[str]:
        """The names of our modules, each of which has one number there, in the order of the numbers."""
        if self.fourier:
            yield "time_embedding"
        yield from ("time_embedding.mlp.0" if self.fourier else "time_embedding.sinusoid", "time_embedding.mlp.2")
        yield "stem"
        last = len(self.widths) - 1
        for level in range(last + 1):
            for index in range(self.blocks_per_level):
                yield f"encoder.{level}.{index}"
                if level in self.attention_levels:
                    yield f"encoder.{level}.{index}.attention"
            if level < last:
                yield f"downs.{level}"
                if self.join is not None:
                    yield f"pyramid.{level}" + (".down" if self.input_pyramid == "residual" else "")
        yield from ("middle.0", "middle.0.attention", "middle.1")
        for step in range(last + 1):
            yield from (f"decoder.{step}.{index}" for index in range(self.blocks_per_level + 1))
            if last - step in self.attention_levels:
                yield f"decoder.{step}.{self.blocks_per_level}.attention"
            if step < last:
                if self.output_pyramid:
                    yield from (f"coarse_heads.{step}.norm", f"coarse_heads.{step}.conv")
                yield f"ups.{step}"
        yield from ("head.norm", "head.conv")
