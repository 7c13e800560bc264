"""Measurements of pictures in files, for `dinit restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dinit.data.images import read_whole, seen_size
from dinit.data.pixels import from_uint8
from dinit.files import user_path
from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.base import OPERATORS, Operator
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.pictures import open_picture, read_pictures
from dinit.samplers import NoiseSource

Input = Literal["auto", "measurement", "image"]


def read_measurement(
    pipe: Pipeline, file: Path, operator: str | Operator, noise_std: float, kind: Input = "auto", seed: int = 0
) -> tuple[Measurement, Tensor | None]:
    """The measurement that a picture is, or that is made of it.

    Args:
        pipe: What restores it.
        file: The picture.
        operator: A, an Operator or its name with options.
        noise_std: Of the measurement, at least 0, where black is -1 and white 1.
        kind: 'measurement' for a picture that is y; 'image' for one that is measured here, with noise; 'auto' for
            'measurement' where it has the size of one, else 'image' where it has the size of an image.
        seed: Of the noise that is added.

    Returns:
        The measurement of one row, and the image (1, C, H, W) in [-1, 1] that it was made of, if it was.

    Raises:
        ValueError: An operator that does not fit the pipeline's images, a picture of neither size.
    """
    made = OPERATORS.create(operator)
    shape = pipe.decoded_shape
    expected = made.output_shape(shape)
    width, height = seen_size(open_picture(file))
    is_picture = len(expected) == 3 and expected[0] in (1, 3)
    if kind == "measurement" and not is_picture:
        raise ValueError(
            f"this operator gives {expected}, which is no picture: {file} can only be an image, --input image"
        )
    fits = is_picture and (height, width) == tuple(expected[1:])
    if kind == "measurement" and not fits:
        raise ValueError(
            f"{file} is of {width} x {height} pixels, and a measurement by this operator of "
            f"{expected[2]} x {expected[1]}"
        )
    if kind == "auto" and not fits and (height, width) != shape[1:]:
        smaller = is_picture and tuple(expected[1:]) != tuple(shape[1:])
        sizes = f"{expected[2]} x {expected[1]} pixels, as a measurement, or " if smaller else ""
        either = " or a measurement" if is_picture and not smaller else ""
        raise ValueError(
            f"{file} is of {width} x {height} pixels, and must be of {sizes}{shape[2]} x {shape[1]}, as an image "
            f"to measure{either}; --input image scales and crops it"
        )
    if kind != "image" and fits:
        y = from_uint8(torch.from_numpy(read_whole(user_path(file), expected[0])))[None]
        return Measurement(made, made.clean(y, shape), noise_std), None
    image = read_pictures(file, shape[1], shape[2], shape[0])
    with torch.no_grad():
        y = made.apply(image)
    if noise_std:
        y = made.clean(y + noise_std * NoiseSource(((seed, 0),)).normal("measurement", 0, y), shape)
    return Measurement(made, y, noise_std), image


def read_truth(pipe: Pipeline, file: Path) -> Tensor:
    """The true image of a file, (1, C, H, W) in [-1, 1], scaled and cropped to the pipeline's size."""
    channels, height, width = pipe.decoded_shape
    return read_pictures(file, height, width, channels, "the truth")
