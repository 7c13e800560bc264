"""The problems of benchmarks/solvers.py: a denoiser, the states that runs start from, and where they should end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dinit.diffusion import Denoiser, Process
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.multistep.adams import ExponentialAB

F64 = torch.float64
PATHS: dict[str, Process] = {
    "vp_linear": VPDiscrete("linear"),
    "edm80": EDM(0.002, 80.0),
    "flow_linear": LinearFlow(),
}


@dataclass(frozen=True)
class Problem:
    """start: (64, C, H, W), the states at t = 1. exact: (64, C, H, W), where their exact solutions end.

    model: with the labels of these 64. any_class, classes: the same for labels that a search draws, if it may.
    """

    name: str
    model: Denoiser
    start: Tensor
    exact: Tensor
    any_class: Denoiser | None = None
    classes: int = 0

    @property
    def noise(self) -> Tensor:
        """The standard normal noise that start is made of."""
        process = self.model.process
        return self.start / float(process.prior_std(process.scales(1.0)))


def mixture(process: Process) -> MixtureDenoiser:
    """Five components in (2, 4, 4), in two classes."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    means, variances = 0.5 * draw(5, 2, 4, 4), 0.02 + 0.1 * draw(5, 2, 4, 4).square()
    weights = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=F64)
    return MixtureDenoiser(process, means, variances, weights, torch.tensor([0, 1, 0, 1, 1]))


def start_of(process: Process, shape: Sequence[int], seed: int) -> Tensor:
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return noise * float(process.prior_std(process.scales(1.0)))


def mixture_problem(path: str) -> Problem:
    model, labels = mixture(PATHS[path]), torch.arange(64) % 2
    start = start_of(PATHS[path], (64, 2, 4, 4), 3)
    return Problem(f"mixture_{path}", model.given(labels), start, exact_end(model, start, labels), model, 2)


def given_problem(file: Path, name: str, path: str) -> Problem:
    data = load_file(file)
    prior = [data[f"gmm.{name}.{part}"] for part in ("means", "var", "weights")]
    model = MixtureDenoiser(PATHS[path], prior[0], prior[1], prior[2])
    start = data["in.z"] * float(model.process.prior_std(model.process.scales(1.0)))
    return Problem(f"{name}_{path}", model, start, data[f"out.{name}.{path}"], model, 1)


def mixtures(file: Path | None) -> Iterator[Problem]:
    """The mixture on three paths, or the problems of a file."""
    names = sorted({key.split(".")[1] for key in load_file(file) if key.startswith("gmm.")}) if file else [None]
    for name in names:
        for path in PATHS:
            yield given_problem(file, name, path) if file and name else mixture_problem(path)


def digits_problem(name: str, count: int = 64) -> Problem:
    """`count` digits of a shipped model in float32, and where 1,000 steps lead."""
    from dinit.pipelines import Pipeline

    pipeline = Pipeline.from_pretrained(name)
    backbone = pipeline.backbone.eval()
    denoiser = pipeline.denoiser([i % 10 for i in range(count)])
    size = backbone.config.image_size
    start = start_of(pipeline.process, (count, backbone.in_channels, size, size), 3).float()
    grid = Uniform() if isinstance(pipeline.process, LinearFlow) else LogSNR()
    exact = ExponentialAB(3, "velocity").sample(denoiser, start, 1000, grid=grid, initial_state=start)
    return Problem(name, denoiser, start, exact)


def exact_end(model: MixtureDenoiser, x: Tensor, labels: Tensor) -> Tensor:
    """The ODE's end from x at t = 1: DOP853 on the straight path, onto which every path is scaled."""
    from scipy.integrate import solve_ivp

    straight = MixtureDenoiser(LinearFlow(), model.means, model.variances, model.weights, model.component_class)
    cond, k = straight.condition(labels, len(x)), model.process.scales(1.0)
    scale = float(k.alpha + k.sigma)
    shape, begin, end = x.shape, float(k.sigma) / scale, 1e-6

    def slope(t: float, y: Any) -> Any:
        return straight(torch.as_tensor(y).reshape(shape), t, cond).velocity.flatten().numpy()

    found = solve_ivp(slope, (begin, end), (x / scale).flatten().numpy(), "DOP853", rtol=1e-9, atol=1e-9)
    return straight(torch.as_tensor(found.y[:, -1]).reshape(shape), end, cond).x0
