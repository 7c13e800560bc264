"""Round trips between images and noise: DDIM's error against the solvers that invert exactly.

The denoiser is the exact one of a two-class Gaussian mixture. Image: x -> noise -> x from clean images. Sample:
noise -> x -> noise -> x, the last against the first. Figures are the largest deviation of any pixel of 64 images.
Run: python benchmarks/inversion.py; it prints the table and writes results/inversion.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Process
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import Sampler
from dinit.samplers.inversion.bdia import BDIADDIM, BDIAEDM
from dinit.samplers.inversion.edict import EDICT
from dinit.samplers.inversion.invert import DDIMInverse, invert
from dinit.samplers.ode.euler import Heun

SAMPLERS: dict[str, Sampler] = {
    "ddim": DDIMInverse(),
    "heun": Heun(),
    "ddim-inverse, 20 iterations": DDIMInverse(iterations=20),
    "edict": EDICT(),
    "bdia-ddim": BDIADDIM(),
    "bdia-edm": BDIAEDM(),
}
STEPS = (20, 100)
OUTPUT = Path(__file__).parent / "results" / "inversion.md"


def mixture(process: Process) -> MixtureDenoiser:
    generator = torch.Generator().manual_seed(0)
    means = 0.6 * torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return MixtureDenoiser(process, means, torch.full_like(means, 0.04), None, torch.tensor([0, 0, 1, 1]))


def image_round_trip(sampler: Sampler, process: Process, x: Tensor, labels: Tensor, steps: int) -> float:
    """The largest deviation of x -> noise -> x."""
    model = mixture(process)
    start = invert(sampler, model, x, steps, labels=labels)
    again = sampler.sample(model, x, steps, labels=labels, initial_state=start.x, state=start.state, end="state")
    return float((again - x).abs().max())


def sample_round_trip(sampler: Sampler, process: Process, noise: Tensor, labels: Tensor, steps: int) -> float:
    """The largest deviation of the second sample of noise -> x -> noise -> x from the first."""
    model = mixture(process)
    last = list(sampler.iterate(model, noise, steps, labels=labels, end="state"))[-1]
    start = invert(sampler, model, last.x_s, steps, labels=labels, state=last.state)
    again = sampler.sample(
        model, noise, steps, labels=labels, initial_state=start.x, state=start.state, end="state"
    )
    return float((again - last.x_s).abs().max())


def rows() -> list[str]:
    labels = torch.arange(64) % 3
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(64, 3, 8, 8, generator=generator, dtype=torch.float64)
    lines = []
    for name in ("vp", "sub-vp", "ve", "edm", "flow", "gvp"):
        process = PROCESSES.create(name)
        images = mixture(process).sample(labels, generator)
        for sampler_name, sampler in SAMPLERS.items():
            cells = []
            for steps in STEPS:
                for dtype in (torch.float32, torch.float64):
                    cells.append(image_round_trip(sampler, process, images.to(dtype), labels, steps))
                    cells.append(sample_round_trip(sampler, process, noise.to(dtype), labels, steps))
            lines.append(f"| {name} | {sampler_name} | " + " | ".join(f"{cell:.0e}" for cell in cells) + " |")
    return lines


def main() -> None:
    heads = [
        f"{what}, {steps}, {bits}" for steps in STEPS for bits in ("f32", "f64") for what in ("image", "sample")
    ]
    table = [f"| process | sampler | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads), *rows()]
    text = "# Round trips through the noise\n\n" + (__doc__ or "").split("\n", 2)[2].rsplit("\n", 2)[0]
    text += "\nColumns: what is compared, number of sampling steps, precision of the state.\n\n"
    OUTPUT.write_text(text + "\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
