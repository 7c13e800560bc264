"""The recorded posterior problem: priors, operators, measurements and exact posteriors of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dinit.models import GaussianMixture

PER_MEASUREMENT = 256


@dataclass(frozen=True)
class Case:
    """One operator and noise of a problem, with PER_MEASUREMENT samples wanted for each of its first measurements.

    Attributes:
        prior: p(x).
        a: A, (m, n).
        y: (n_y, m).
        noise_std: sigma_y.
        posteriors: p(x | y), n_y mixtures.
        rows: The measurement of every sample, (n_y PER_MEASUREMENT,), one block after the other.
    """

    prior: GaussianMixture
    a: Tensor
    y: Tensor
    noise_std: float
    posteriors: GaussianMixture
    rows: Tensor


@cache
def tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the file, and its metadata."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def problems(path: Path) -> list[str]:
    """Names of the problems in a file."""
    return sorted({key.split("/")[0] for key in tensors(path)[0]})


def operators(path: Path, problem: str, noise: float) -> list[str]:
    """Names of the operators with measurements of this noise."""
    found = [key.split("/") for key in tensors(path)[0] if key.startswith(f"{problem}/y/")]
    return [name for _, _, name, std in found if float(std) == noise]


@cache
def case(path: Path, problem: str, operator: str, noise: float) -> Case:
    """A case of the file."""
    t, metadata = tensors(path)
    shape = tuple(json.loads(metadata[f"{problem}/shape"]))
    parts = (t[f"{problem}/prior/{key}"] for key in ("weights", "means", "diag", "factors"))
    prior = GaussianMixture.low_rank(*parts, shape=shape)
    a = t[f"{problem}/operator/{operator}"]
    key = next(k for k in t if k.startswith(f"{problem}/y/{operator}/") and float(k.split("/")[-1]) == noise)
    y = t[key][: int(metadata[f"{problem}/n_y"])]
    rows = torch.arange(len(y)).repeat_interleave(PER_MEASUREMENT)
    return Case(prior, a, y, noise, prior.posterior(a, y, noise), rows)
