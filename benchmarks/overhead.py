"""Time of the sampling loop around a network that costs nothing, against diffusers, k-diffusion and azula.

`python benchmarks/overhead.py` writes results/overhead.md in about two minutes; --quick prints a few rows. A run is
50 steps on 4 images of 3×32×32, float32, one thread. Each library runs its own loop, from initial noise to the end,
with all that it computes before the loop (`set_timesteps`, lists of sigmas, coefficients). "First" is a run with
nothing kept from an earlier one; making the scheduler or the process counts as loading the network, for every
library. Runs take turns, and a ratio is that of two neighbours in time.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pairs import ratio, times
from peers_azula import INSTALLED as AZULA_INSTALLED
from peers_kdiffusion import K
from torch import Tensor

import dinit.models  # noqa: F401  (makes diffusers importable with a torchvision whose operators do not load)
from dinit.diffusion import PROCESSES, BackboneDenoiser, Process
from dinit.diffusion.parameterization import PARAMETERIZATIONS
from dinit.samplers import SAMPLERS
from dinit.samplers.noise import NoiseSource
from dinit.samplers.rehearsal import forget

STEPS, SHAPE, LARGE = 50, (4, 3, 32, 32), (64, 4, 32, 32)
OUT = Path(__file__).parent / "results" / "overhead.md"
Loop = Callable[[], Tensor]


class Nothing:
    """A network of one multiplication."""

    num_classes, in_channels, out_channels = 10, 3, 3

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        return 0.1 * x


@dataclass(frozen=True)
class Case:
    """A method: our sampler, and what peers call it. diffusers: class and options; kdiffusion, azula: names.

    steps: Of ours; half of the peer's, where the peer counts evaluations and we steps of two.
    """

    sampler: str
    options: dict[str, Any] = field(default_factory=dict)
    diffusers: tuple[str, dict[str, Any]] | None = None
    kdiffusion: str = ""
    azula: tuple[str, dict[str, Any]] | None = None
    process: str = "vp-discrete"
    steps: int = STEPS


def multistep(**options: Any) -> tuple[str, dict[str, Any]]:
    return "DPMSolverMultistepScheduler", options


SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES = (
    Case("ddim", diffusers=("DDIMScheduler", {"clip_sample": False}), azula=("DDIMSampler", {})),
    Case("ddpm", diffusers=("DDPMScheduler", {"clip_sample": False}), azula=("DDPMSampler", {})),
    Case("edm-euler", diffusers=("EulerDiscreteScheduler", {}), kdiffusion="euler", azula=("EulerSampler", {})),
    Case("edm-heun", diffusers=("HeunDiscreteScheduler", {}), kdiffusion="heun", azula=("HeunSampler", {})),
    Case("ancestral", diffusers=("EulerAncestralDiscreteScheduler", {}), kdiffusion="euler_ancestral"),
    Case("dpm-2", diffusers=("KDPM2DiscreteScheduler", {}), kdiffusion="dpm_2"),
    Case(
        "ancestral",
        {"solver": "dpm-2"},
        diffusers=("KDPM2AncestralDiscreteScheduler", {}),
        kdiffusion="dpm_2_ancestral",
    ),
    Case("ancestral", {"solver": "dpmpp-2s"}, kdiffusion="dpmpp_2s_ancestral"),
    Case("lms", diffusers=("LMSDiscreteScheduler", {}), kdiffusion="lms"),
    Case("dpmpp-2m", diffusers=multistep(), kdiffusion="dpmpp_2m"),
    Case("dpmpp-3m", diffusers=multistep(solver_order=3)),
    Case(
        "dpm-solver-2",
        diffusers=("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
        steps=STEPS // 2 + 1,
    ),
    Case(
        "dpmpp-2s",
        diffusers=("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
        steps=STEPS // 2 + 1,
    ),
    Case("unipc", diffusers=("UniPCMultistepScheduler", {})),
    Case("deis", diffusers=("DEISMultistepScheduler", {"solver_order": 3})),
    Case("ipndm", diffusers=("IPNDMScheduler", {})),
    Case("pndm", diffusers=("PNDMScheduler", {"skip_prk_steps": True})),
    Case("dpmpp-sde", kdiffusion="dpmpp_sde"),
    Case("dpmpp-2m-sde", diffusers=multistep(**SDE), kdiffusion="dpmpp_2m_sde"),
    Case("dpmpp-3m-sde", diffusers=multistep(solver_order=3, **SDE), kdiffusion="dpmpp_3m_sde"),
    Case("sa-solver", diffusers=("SASolverScheduler", {})),
    Case("ab", {"prediction": "eps"}, azula=("zABSampler", {"order": 3})),
    Case("eab", azula=("xEABSampler", {"order": 3})),
    Case("flow-euler", diffusers=("FlowMatchEulerDiscreteScheduler", {}), process="flow"),
    Case("flow-heun", diffusers=("FlowMatchHeunDiscreteScheduler", {}), process="flow"),
    Case("rk4"),
    Case("heun"),
)
QUICK = ("ddim", "ddpm", "edm-heun", "dpmpp-2m", "unipc")


def denoiser(process: str) -> BackboneDenoiser:
    made: Process = PROCESSES.create(process)
    return BackboneDenoiser(
        Nothing(), made, PARAMETERIZATIONS.create("velocity" if process == "flow" else "epsilon")
    )


def ours(case: Case, noise: Tensor) -> Loop:
    """A run of our sampler."""
    model, sampler = denoiser(case.process), SAMPLERS.create({"name": case.sampler, **case.options})
    return lambda: sampler.sample(model, noise, case.steps)


def in_diffusers(name: str, options: dict[str, Any], noise: Tensor) -> Loop:
    """The loop of a diffusers pipeline."""
    import diffusers

    network, cond = Nothing(), torch.zeros(len(noise), 1)
    scheduler = getattr(diffusers, name)(**options)

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(scaled, t.expand(len(x)), cond), t, x, return_dict=False)[0]
        return x

    return run


def in_kdiffusion(name: str, noise: Tensor) -> Loop:
    """k-diffusion's sampler of this name on its wrapper of an eps network."""
    sample, network, cond = getattr(K, f"sample_{name}"), Nothing(), torch.zeros(len(noise), 1)
    # Its own noise samplers need torchsde; randn is the least that any draw costs.
    own_noise = {"noise_sampler": lambda sigma, after: torch.randn_like(noise)} if "sde" in name else {}

    def denoised(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        factor = (sigma[:, None, None, None] ** 2 + 1).rsqrt()
        return x - network(x * factor, sigma.log(), cond) * sigma[:, None, None, None]

    def run() -> Tensor:
        sigmas = K.get_sigmas_karras(STEPS, 0.01, 157.0)
        return sample(denoised, noise * sigmas[0], sigmas, disable=True, **own_noise)

    return run


def in_azula(name: str, options: dict[str, Any], noise: Tensor) -> Loop:
    """azula's sampler of this name on its own denoiser around a network."""
    import azula.denoise
    import azula.noise
    import azula.sample

    network, cond = Nothing(), torch.zeros(len(noise), 1)

    class Backbone(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return network(x, t, cond)

    schedule = azula.noise.VPSchedule()
    model = azula.denoise.SimpleDenoiser(Backbone(), schedule)

    def run() -> Tensor:
        sampler = getattr(azula.sample, name)(model, steps=STEPS, silent=True, **options)
        return sampler(noise)

    return run


def loops(case: Case, noise: Tensor) -> Iterator[tuple[str, Loop]]:
    """The runs of a method, ours first."""
    yield "dinit", ours(case, noise)
    if case.diffusers:
        yield "diffusers", in_diffusers(*case.diffusers, noise)
    if case.kdiffusion and K is not None:
        yield "k-diffusion", in_kdiffusion(case.kdiffusion, noise)
    if case.azula and AZULA_INSTALLED:
        yield "azula", in_azula(*case.azula, noise)


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}"


def overheads(names: tuple[str, ...], rounds: int) -> Iterator[str]:
    """Rows of the first table."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    yield "| method | dinit, ms | its first run, ms | peer | peer, ms | peer / dinit | peer / first run |"
    yield "|---|---|---|---|---|---|---|"
    for case in CASES:
        if names and case.sampler not in names:
            continue
        runs = dict(loops(case, noise))
        peers = [name for name in runs if name != "dinit"]
        warm = times(runs, rounds)
        cold = times({"dinit": runs["dinit"]}, rounds, before=forget)["dinit"]
        label = " ".join([case.sampler, *map(str, case.options.values())])
        for peer in peers or [""]:
            mine = f"| {label} | {median(warm['dinit'])} | {median(cold)} |"
            if not peer:
                yield f"{mine} | | | |"
                continue
            first = ratio(warm[peer], cold)
            yield f"{mine} {peer} | {median(warm[peer])} | {ratio(warm[peer], warm['dinit'])} | {first} |"


def planning(rounds: int, steps: int = 250) -> Iterator[str]:
    """Rows of the second table: time before the loop, of a first run, and of the loop."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    yield f"| solver | before the loop, ms | loop of {steps} steps, ms | share |"
    yield "|---|---|---|---|"
    for name in SAMPLERS:
        if SAMPLERS.create(name).claims().cost_depends_on == "state" or SAMPLERS.special_case_of(name):
            continue
        sampler = SAMPLERS.create(name)
        run = (denoiser("vp-discrete"), noise, None if sampler.own_grid else steps)
        parts = {"plan": functools.partial(sampler.iterate, *run), "run": functools.partial(sampler.sample, *run)}
        try:
            found = times(parts, rounds, before=forget)
        except ValueError as error:
            yield f"| {name} | {str(error)[:60]} | | |"
            continue
        loop = [run - plan for run, plan in zip(found["run"], found["plan"], strict=True)]
        yield f"| {name} | {median(found['plan'])} | {median(loop)} | {ratio(found['plan'], loop)} |"


def draws(rounds: int) -> Iterator[str]:
    """Rows of the third table: the noise of a step; a large one by the clock, shared by all cores."""
    cores = os.cpu_count() or 1
    yield "| draw | threads | keyed, ms | `torch.randn`, ms | keyed / randn |"
    yield "|---|---|---|---|---|"
    for shape, threads, clock in ((SHAPE, 1, time.process_time), (LARGE, cores, time.perf_counter)):
        torch.set_num_threads(threads)
        noise = torch.empty(shape)
        source = NoiseSource.from_seed(0, len(noise))
        runs: dict[str, Loop] = {
            "keyed": functools.partial(source.normal, "step", 0, noise),
            "randn": functools.partial(torch.randn, shape),
        }
        found = times(runs, 10 * rounds, clock=clock)
        row = f"| {shape} | {threads} | {median(found['keyed'])} | {median(found['randn'])} "
        yield f"{row}| {ratio(found['keyed'], found['randn'])} |"
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few methods, few rounds, no file")
    parser.add_argument("--only", nargs="*", default=(), help="samplers of the first table")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    names = tuple(args.only) or (QUICK if args.quick else ())
    rows = [*overheads(names, args.rounds)]
    print("\n".join(rows), flush=True)
    if args.quick or args.only:
        return
    plans = [*planning(max(3, args.rounds // 6))]
    print("\n".join(plans), flush=True)
    noise = [*draws(args.rounds)]
    print("\n".join(noise), flush=True)
    head = [
        "# Overhead of the sampling loop",
        "",
        f"`python benchmarks/overhead.py`, {args.rounds} rounds, one thread, {platform.machine()}, torch "
        f"{torch.__version__}. Time of the processor for {STEPS} steps on {SHAPE[0]} images of 3×32×32 around a "
        'network of one product; median and quartiles of neighbouring runs, above 1 dinit is faster. "First run": '
        "nothing kept from earlier runs.",
        "",
        "Stochastic methods pay for noise that is a function of seed, image and step, the same on every machine: "
        "NumPy's generator needs two to three times as long for it as `torch.randn` for a stream (last table), "
        "and that is most of their time here. Threads share draws of 65,536 numbers and more.",
        "",
    ]
    OUT.write_text(
        "\n".join([*head, *rows, "", "## Before the loop", "", *plans, "", "## Noise", "", *noise]) + "\n"
    )


if __name__ == "__main__":
    main()
