"""Comparison of samplers from one noise: their images, and a labelled grid of pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dinit.diffusion import Denoiser
from dinit.diffusion.condition import SupportsNormal
from dinit.samplers.base import SAMPLERS, Sampler, SamplerSpec
from dinit.samplers.points import End, GridLike

if TYPE_CHECKING:  # a heavy import, needed for drawing alone
    from PIL import Image


_GAP, _LINE, _FONT_SIZE, _TILE = 4, 14, 12, 48  # pixels


@dataclass(frozen=True)
class Comparison:
    """Images of several samplers from the same noise, as `compare` returns them. A notebook shows the grid.

    Attributes:
        names: The sampler's label, for each sampler.
        images: (B, C, H, W) each.
        nfe: Network evaluations per image.
        stochastic: Whether the sampler adds noise.
        pictures: The images as they are drawn, (B, 1 or 3, H, W) each, around [-1, 1].
    """

    names: tuple[str, ...]
    images: tuple[Tensor, ...]
    nfe: tuple[int, ...]
    stochastic: tuple[bool, ...]
    pictures: tuple[Tensor, ...]

    def __getitem__(self, name: str) -> Tensor:
        """The images of one sampler, (B, C, H, W). KeyError for an unknown name."""
        try:
            return self.images[self.names.index(name)]
        except ValueError:
            raise KeyError(f"no sampler {name!r} in this comparison of {', '.join(self.names)}") from None

    def __repr__(self) -> str:
        rows = (f"{name}: {count} NFE" for name, count in zip(self.names, self.nfe, strict=True))
        return f"Comparison({', '.join(rows)})"

    def rms_to(self, reference: str | Tensor) -> dict[str, float]:
        """Root mean square distance of each sampler's images to a reference.

        Args:
            reference: The name of one of the samplers, or images (B, C, H, W).

        Returns:
            A distance by name, in units of x.
        """
        exact = self[reference] if isinstance(reference, str) else reference
        return {
            name: float((found - exact).double().square().mean().sqrt())
            for name, found in zip(self.names, self.images, strict=True)
        }

    def figure(self) -> Image.Image:
        """The grid as a PIL image: one row a sampler, its name, kind and NFE at the left."""
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(_FONT_SIZE)
        kinds = ["stochastic" if noisy else "deterministic" for noisy in self.stochastic]
        labels = [
            (name, f"{kind}, {count} NFE") for name, kind, count in zip(self.names, kinds, self.nfe, strict=True)
        ]
        left = 2 * _GAP + math.ceil(max(font.getlength(text) for pair in labels for text in pair))
        strips = [_strip(images) for images in self.pictures]
        pitch = max(strips[0].height, 2 * _LINE) + _GAP
        sheet = Image.new(strips[0].mode, (left + strips[0].width + _GAP, pitch * len(strips) + _GAP), "white")
        pen = ImageDraw.Draw(sheet)
        for row, (label, strip) in enumerate(zip(labels, strips, strict=True)):
            y = _GAP + row * pitch
            for line, text in enumerate(label):
                pen.text((_GAP, y + (pitch - _GAP) // 2 + (line - 1) * _LINE), text, fill="black", font=font)
            sheet.paste(strip, (left, y))
        return sheet

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().save(buffer, "PNG")
        return buffer.getvalue()


@torch.no_grad()
def compare(
    denoiser: Denoiser,
    noise: Tensor,
    labels: Tensor | Sequence[int] | None,
    samplers: Sequence[SamplerSpec] | Mapping[str, SamplerSpec],
    steps: int | None = None,
    *,
    nfe: int | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    grid: GridLike | None = None,
    initial_state: Tensor | None = None,
    noise_source: SupportsNormal | None = None,
    seed: int | Sequence[int] = 0,
    end: End | None = None,
) -> Comparison:
    """Images of several samplers from the same noise, labels and seed.

    Args:
        denoiser: A network read as a posterior mean, or a guidance around one.
        noise: (B, C, H, W) standard normal.
        labels: (B,) class labels; None for the denoiser's own, or null.
        samplers: Samplers, names or mappings with options, or {label: one of these}.
        steps: Sampling steps of each; None where the grid fixes their number.
        nfe: In place of steps, network evaluations per image, at least 1. Each sampler takes as many steps as they
            pay for by its claims; an adaptive one, or Restart, may take more evaluations (see
            `Claims.cost_depends_on`), which the result's nfe shows.
        decode: From samples to images around [-1, 1] that can be drawn, for latents; None draws the samples.
        grid: As in `Sampler.iterate`, for all; a sampler that has a grid of its own runs on that.
        initial_state: (B, C, H, W), a state at the first time, in place of noise.
        noise_source: Of the noise that stochastic steps add; None for `NoiseSource.from_seed(seed)`.
        seed: Of the noise source, where none is given: one seed, or one an image.
        end: As in `Sampler.iterate`.

    Returns:
        A Comparison. A notebook shows it as a grid of pictures.

    Raises:
        ValueError: Both or neither of steps and nfe; no samplers; a label twice; and as `Sampler.iterate`.
    """
    if (steps is None) == (nfe is None) and (steps is not None or grid is None):
        raise ValueError("give either steps (sampling steps) or nfe (evaluations per image)")
    entrants = _named(samplers)
    images, counts = [], []
    for sampler in entrants.values():
        *_, last = sampler.iterate(
            denoiser,
            noise,
            steps if nfe is None else _steps_for(sampler, nfe),
            labels=labels,
            grid=sampler.own_grid or grid,
            initial_state=initial_state,
            noise_source=noise_source,
            seed=seed,
            end=end,
        )
        images.append(last.x_s)
        counts.append(last.nfe)
    pictures = images if decode is None else [decode(one) for one in images]
    noisy = tuple(sampler.stochastic for sampler in entrants.values())
    return Comparison(tuple(entrants), tuple(images), tuple(counts), noisy, tuple(pictures))


def _named(samplers: Sequence[SamplerSpec] | Mapping[str, SamplerSpec]) -> dict[str, Sampler]:
    """Samplers by the label of their row."""
    if isinstance(samplers, str) or not samplers:
        raise ValueError(f"samplers must be a list of names or samplers, or a mapping of them, got {samplers!r}")
    if isinstance(samplers, Mapping):
        return {label: SAMPLERS.create(one) for label, one in samplers.items()}
    named: dict[str, Sampler] = {}
    for one in samplers:
        sampler = SAMPLERS.create(one)
        label = one if isinstance(one, str) else repr(sampler)
        if label in named:
            raise ValueError(f"{label} is given twice; tell them apart with a mapping {{label: sampler}}")
        named[label] = sampler
    return named


def _steps_for(sampler: Sampler, nfe: int) -> int:
    """The largest number of steps that takes at most `nfe` evaluations, at least 1."""
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1, got {nfe}")
    steps = 1
    while steps < nfe and sampler.nfe(steps + 1) <= nfe:
        steps += 1
    return steps


def _strip(images: Tensor) -> Image.Image:
    """A batch (B, 1 or 3, H, W) around [-1, 1] as one row of tiles. ValueError for other channels, NaN or inf."""
    from PIL import Image

    channels, height, width = images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(
            f"a picture has 1 or 3 channels, got {channels}: pass compare(..., decode=) to make images"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinity; the model or a sampler that made them diverged")
    scale = max(1, round(_TILE / height))
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    tile = (width * scale, height * scale)
    strip = Image.new("L" if channels == 1 else "RGB", (len(pixels) * (tile[0] + _GAP) - _GAP, tile[1]), "white")
    for column, one in enumerate(pixels):
        picture = Image.fromarray(one[..., 0] if channels == 1 else one)
        strip.paste(picture.resize(tile, Image.Resampling.NEAREST), (column * (tile[0] + _GAP), 0))
    return strip
