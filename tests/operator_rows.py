"""Options of every operator of the registry, with the shape of one image and that of its measurement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Options = dict[str, Any]


def some(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COLOR, GREY = (3, 8, 12), (1, 4, 6)
Rows = list[tuple[Options, tuple[int, ...], tuple[int, ...]]]
KERNEL = [[0.0, 0.3, -0.1], [0.2, 0.5, 0.1], [0.1, 0.0, 0.4]]
LINEAR: dict[str, Rows] = {
    "identity": [({}, COLOR, COLOR)],
    "mask": [
        ({"box": [1, 2, 4, 7]}, COLOR, COLOR),
        ({"random": 0.4, "seed": 3}, COLOR, COLOR),
        ({"hidden": some(4, 6) > 0}, GREY, GREY),
        ({"hidden": some(*COLOR) > 0}, COLOR, COLOR),
    ],
    "downscale": [
        ({"factor": 2}, COLOR, (3, 4, 6)),
        ({"factor": 4, "kind": "bicubic"}, COLOR, (3, 2, 3)),
        ({"factor": 3, "kind": "bicubic"}, (2, 3, 9), (2, 1, 3)),
        ({"factor": 1}, GREY, GREY),
    ],
    "blur": [
        ({"std": 0.7}, COLOR, COLOR),
        ({"std": 0.7, "padding": "circular"}, COLOR, COLOR),
        ({"std": 0.6, "padding": "circular"}, (2, 3, 5), (2, 3, 5)),  # odd sides
        ({"std": 2.0}, (1, 1, 4), (1, 1, 4)),  # a kernel much larger than the image
        ({"length": 3, "angle": 30}, COLOR, COLOR),
        ({"length": 4.5, "angle": -100, "padding": "circular"}, GREY, GREY),
        ({"kernel": KERNEL}, GREY, GREY),
        ({"kernel": torch.tensor([[1.0, 1.0, 0.0]]), "padding": "circular"}, COLOR, COLOR),  # 0 at the highest
    ],
    "grey": [({}, COLOR, (1, 8, 12)), ({"weights": [1.0, 0.0, -2.0]}, COLOR, (1, 8, 12))],
    "color-rotation": [({}, COLOR, (1, 8, 12)), ({"channels": [2, 0]}, (4, 3, 3), (2, 3, 3))],
    "random-projection": [({"rows": 7}, COLOR, (7,)), ({"rows": 24, "seed": 2}, GREY, (24,))],
    "hadamard": [({"rows": 7}, COLOR, (7,)), ({"rows": 24, "seed": 2}, GREY, (24,))],
    "matrix": [({"A": some(5, 24)}, GREY, (5,)), ({"A": some(30, 4) @ some(4, 24)}, GREY, (30,))],
    "compose": [
        ({"operators": ["blur:std=0.7", {"name": "downscale", "factor": 2}, "grey"]}, COLOR, (1, 4, 6)),
        ({"operators": ["grey", {"name": "blur", "kernel": KERNEL}, "hadamard:rows=5"]}, COLOR, (5,)),
        ({"operators": ["downscale:factor=2", {"name": "mask", "box": [0, 1, 2, 3]}]}, GREY, (1, 2, 3)),
    ],
    "stack": [
        ({"operators": ["grey", {"name": "mask", "box": [0, 0, 5, 9]}]}, COLOR, (96 + 288,)),
        ({"operators": ["downscale:factor=2"]}, GREY, (6,)),
    ],
}
NONLINEAR: dict[str, Rows] = {
    "jpeg": [
        ({"rounding": "smooth"}, COLOR, COLOR),
        ({"quality": 90, "subsampling": "4:4:4"}, COLOR, COLOR),
        ({"quality": 20}, GREY, GREY),
    ],
    "saturate": [({}, COLOR, COLOR), ({"gain": -3.0, "low": 0.0}, GREY, GREY)],
    "codec": [({"function": lambda x: x.square().mean(1), "bits": 8}, COLOR, (8, 12))],
}
