"""Contact sheets: images side by side, enlarged. The sample grids of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

_SIDE, _GAP = 64, 4  # pixels


def sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """One image of square pictures of the same mode and size, row by row, each at least 64 pixels wide.

    Pixels are repeated, so nothing is interpolated.
    """
    side = pictures[0].width * math.ceil(_SIDE / pictures[0].width)
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (side + _GAP) + _GAP, rows * (side + _GAP) + _GAP)
    result = Image.new(pictures[0].mode, size, 128 if pictures[0].mode == "L" else (128, 128, 128))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        corner = (_GAP + column * (side + _GAP), _GAP + row * (side + _GAP))
        result.paste(picture.resize((side, side), Image.Resampling.NEAREST), corner)
    return result
