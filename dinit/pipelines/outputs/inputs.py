"""What a call was given, next to the picture that it made: FILE.input.png and FILE.input.safetensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from dinit.data.pixels import from_uint8, to_uint8
from dinit.files import write_atomically
from dinit.pipelines.outputs.sheets import to_pil
from dinit.pipelines.plain import digests, tensor_sha256


def input_files(picture: Path) -> tuple[Path, Path]:
    """The files of a picture's inputs: a PNG of its image, and the other tensors.

    Args:
        picture: A PNG; or a folder of them, which has all inputs in the second file, input.safetensors.
    """
    if picture.is_dir():
        return picture / "input.png", picture / "input.safetensors"
    return picture.with_suffix(".input.png"), picture.with_suffix(".input.safetensors")


def write_inputs(picture: Path, tensors: Mapping[str, Tensor]) -> list[Path]:
    """Write what a call was given.

    The first picture of whole bytes becomes the PNG, the rest goes into the other file.

    Args:
        picture: Of the call, or their folder.
        tensors: By digest, as `Given.tensors` has them.

    Returns:
        The files.
    """
    as_png, as_tensors = input_files(picture)
    rest = {digest: values.detach().cpu().clone().contiguous() for digest, values in tensors.items()}
    shown = None if picture.is_dir() else next((key for key, one in rest.items() if _is_picture(one)), None)
    written = []
    if shown is not None:
        buffer = io.BytesIO()
        to_pil(rest.pop(shown))[0].save(buffer, "PNG")
        write_atomically(as_png, buffer.getvalue())
        written.append(as_png)
    if rest:
        write_atomically(as_tensors, safetensors.torch.save(rest))
        written.append(as_tensors)
    return written


def read_inputs(picture: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a call was given.

    Args:
        picture: Of the call, or their folder.
        record: Of the call, and of what else names tensors.

    Returns:
        The tensors by digest; none where the call was given nothing.

    Raises:
        FileNotFoundError: A file of them is missing.
        ValueError: One has changed, or is damaged.
    """
    wanted = {one["sha256"]: one for one in digests(dict(record))}
    if not wanted:
        return {}
    as_png, as_tensors = input_files(picture)
    found: dict[str, Tensor] = {}
    try:
        if as_png.is_file():
            with Image.open(as_png) as image:
                pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
            read = from_uint8(pixels.permute(2, 0, 1)[None])
            found |= {tensor_sha256(one): one for one in (read, read.double())}
        if as_tensors.is_file():
            read_tensors = safetensors.torch.load(as_tensors.read_bytes())
            found |= {tensor_sha256(one): one for one in read_tensors.values()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"an input of {picture} cannot be read: {error}") from error
    if not (as_png.is_file() or as_tensors.is_file()):
        raise FileNotFoundError(
            f"{picture} was made from an input, and there is neither {as_png.name} nor {as_tensors.name} next to "
            "it: copy it there too"
        )
    for digest, one in wanted.items():
        if digest not in found:
            files = " or ".join(file.name for file in (as_png, as_tensors) if file.is_file())
            raise ValueError(
                f"the input of {picture} has changed or is missing: {files} next to it has no tensor of shape "
                f"{one.get('shape')} with the recorded digest {digest[:12]}…"
            )
    return {digest: found[digest] for digest in wanted}


def _is_picture(values: Tensor) -> bool:
    """Whether a PNG holds it exactly."""
    shaped = values.ndim == 4 and len(values) == 1 and values.shape[1] in (1, 3) and values.dtype == torch.float32
    return shaped and torch.equal(from_uint8(to_uint8(values)), values)
