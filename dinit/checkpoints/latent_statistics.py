"""Statistics of the latents that a network was trained on, in the folder of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dinit.checkpoints.claims import flag, number
from dinit.checkpoints.reading import read_file
from dinit.checkpoints.stored import RunArguments

FILE = "latents_stats.pt"
_ABSENT = (
    "its program normalises latents by the mean and deviation of each channel, which are not in the weights: put "
    f"its {FILE} into their folder before converting, or images are decoded wrongly"
)


def latent_statistics(
    checkpoint: Path, run: RunArguments, channels: int
) -> tuple[dict[str, list[float]] | None, list[str]]:
    """Mean and deviation of each channel of the latents that LightningDiT's program normalises, and notes.

    Args:
        checkpoint: The file of the weights; `latents_stats.pt` in its folder has the statistics.
        run: The run's arguments: latent_norm, latent_multiplier.
        channels: Of the latents.

    Returns:
        {"mean": [C], "std": [C]}, or None without them.

    Raises:
        ValueError: the file is damaged, or of other latents.
    """
    if flag(run.get("latent_norm", groups=("data",))) is False:
        return None, []
    file = checkpoint.parent / FILE
    if not file.is_file():
        return None, [_ABSENT]
    content = read_file(file)
    mean, std = (_channels(file, content, name, channels) for name in ("mean", "std"))
    if not bool((std > 0).all()):
        raise ValueError(f"{file} has a std that is not positive; copy it again")
    multiplier = run.get("latent_multiplier", groups=("data",))
    scale = 1.0 if multiplier is None else number(multiplier)
    return {"mean": mean.tolist(), "std": (std / scale).tolist()}, []


def _channels(file: Path, content: object, name: str, channels: int) -> Tensor:
    """One number for each channel, (C,) float64."""
    values = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(values, Tensor) or values.numel() != channels or not bool(values.isfinite().all()):
        raise ValueError(f"{file} has no {name} of {channels} finite numbers, one for each channel of the latents")
    return values.double().flatten()
