"""Recorded runs of score_sde: predictor-corrector loops, the probability-flow ODE, likelihoods."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from golden import Golden, Levels, NotCoveredError, Pairs, covers, known, options
from score_sde_loop import ScoreSDE
from torch import Tensor

from dinit.diffusion.continuous import VE, VP, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.likelihood.ode import Flow, Hutchinson, gaussian_log_prob
from dinit.samplers import RecordedNoise
from dinit.samplers.multistep.ode_variables import TIME
from dinit.samplers.ode.rk45 import RK45
from dinit.samplers.sde.ddpm import DDPM

PROCESSES = {"vp": VP, "subvp": SubVP, "ve": VE}
ENDS = {"vp": ("beta_min", "beta_max"), "subvp": ("beta_min", "beta_max"), "ve": ("sigma_min", "sigma_max")}


def process_of(golden: Golden) -> Any:
    """The SDE with the range in the settings, or else in the recorded table, or the program's default."""
    given, kind = golden.kwargs, golden.kwargs["sde"]
    make = known(PROCESSES, kind, "SDE")
    ends = {**_recorded_ends(golden), **options(given, ENDS[kind])}
    process = make(**ends)
    for t, alpha, sigma in _recorded_levels(golden):
        k, where = process.scales(t), f"{golden.name}: {process} is not the recorded SDE"
        torch.testing.assert_close(k.alpha, alpha, rtol=1e-8, atol=1e-12, msg=where)
        torch.testing.assert_close(k.sigma, sigma, rtol=1e-8, atol=1e-12, msg=where)
    return process


def _recorded_ends(golden: Golden) -> dict[str, float]:
    """The ends of the discrete table of N betas or noise levels."""
    for key, names, factor in (
        ("sched.discrete_betas", ENDS["vp"], golden.kwargs.get("N", 1)),
        ("sched.discrete_sigmas", ENDS["ve"], 1),
    ):
        if key in golden.tensors:
            ends = golden[key][[0, -1]] * factor
            return {name: float(f"{end:.12g}") for name, end in zip(names, ends.tolist(), strict=True)}
    return {}


def _recorded_levels(golden: Golden) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(times, alpha, sigma) as far as the file has them."""
    found = []
    if "sched.alpha" in golden.tensors:
        found.append((golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"]))
    if "sched.alpha_sigma_start_end" in golden.tensors:
        found.append((golden["sched.t_span"], *golden["sched.alpha_sigma_start_end"].reshape(2, 2).T))
    return found


def chain_of(golden: Golden, process: Any) -> Levels:
    """The discrete levels at the times of the loop, where the network is one of a discrete chain."""
    n, times = golden.kwargs["N"], golden["sched.t"]
    if isinstance(process, VE):
        labels = ((1 - times) * (n - 1)).round().long()
        sigma = golden["sched.discrete_sigmas"][n - 1 - labels]
        return Levels(times, torch.ones_like(sigma), sigma)
    alpha_bar = (1 - golden["sched.discrete_betas"]).cumprod(0)[(times * (n - 1)).long()]
    return Levels(times, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


@covers("score_sde_pytorch", "get_pc_sampler*")
def predictor_corrector(golden: Golden) -> Pairs:
    given, process = golden.kwargs, process_of(golden)
    kinds = {}
    for kind in ("predictor", "corrector"):
        found = re.search(rf"{kind}=(\w+)", golden.said("function"))
        kinds[kind] = (found[1] if found else given[kind]).removesuffix("_sampling").replace("_", "-")
    kinds["corrector"] = {"ald": "annealed"}.get(kinds["corrector"], kinds["corrector"])
    discrete = not given.get("continuous", True) and not isinstance(process, SubVP)
    chain = chain_of(golden, process) if discrete else None
    sampler = ScoreSDE(
        process,
        num_scales=given["N"],
        snr=given["snr"],
        corrector_steps=given["n_steps"],
        denoise=given["denoise"],
        probability_flow=given["probability_flow"],
        chain=chain,
        **kinds,
    )
    times = sampler.times(given["eps"])
    prior = golden["in.prior_noise"] * process.prior_std(process.scales(1.0))
    ours = golden.run(sampler, chain or process, times, initial_state=prior, end="state")
    # Their trajectory leaves out the start, and its last state is the noisy one even where the mean is returned.
    theirs = golden["out.trajectory"]
    pairs = [(ours[1:-1], theirs[:-1]), (ours[-1], golden["out.final"])]
    if chain is not None and isinstance(process, VP) and kinds == {"predictor": "ancestral", "corrector": "none"}:
        ours, mean = chain_as_ddpm(golden, process), golden["out.last_mean"]
        pairs += [(ours[1:-1], theirs[:-1]), (ours[-1], mean)]
    return pairs


def chain_as_ddpm(golden: Golden, process: VP) -> Tensor:
    """With labels of the discrete chain, their ancestral loop is DDPM on it."""
    n = golden.kwargs["N"]
    chain = VPDiscrete("linear", n, beta_start=process.beta_min / n, beta_end=process.beta_max / n)
    times = torch.arange(n, 0, -1, dtype=torch.float64) / n
    return golden.run(DDPM("fixed-large"), chain, times, initial_state=golden["in.prior_noise"])


@covers("score_sde_pytorch", "get_ode_sampler", tolerance=lambda golden: 10 * golden.kwargs["rtol"])
def probability_flow(golden: Golden) -> Pairs:
    """RK45's states belong to a controller; its end is held to the exact solution."""
    given, process = golden.kwargs, process_of(golden)
    if "out.exact_at_eps" not in golden.tensors:
        raise NotCoveredError("an adaptive run without the exact solution, out.exact_at_eps")
    times = torch.tensor([1.0, given["eps"]], dtype=torch.float64)
    ours = golden.run(RK45(given["rtol"], given["atol"]), process, times, end="state")
    return [(ours[-1], golden["out.exact_at_eps"])]


def offset_of(text: str) -> float:
    """log2 of what a pixel's 256 values are spread over: 7 for data in [-1, 1], 8 for [0, 1]."""
    ends = {"(x+1)/2": 7.0, "(x+1.)/2.": 7.0, "x": 8.0}
    return known(ends, text.replace(" ", ""), "inverse_scaler")


@covers("score_sde_pytorch", "get_likelihood_fn", tolerance=1e-7)
def likelihood(golden: Golden) -> Pairs:
    """Our ODE and divergence under scipy's adaptive solver with their tolerances, which couples the batch."""
    solve = pytest.importorskip("scipy.integrate").solve_ivp
    given, x, process = golden.kwargs, golden["in.x0"], process_of(golden)
    kinds = {"gaussian": "gaussian", "rademacher": "rademacher"}
    probe = Hutchinson(known(kinds, given["hutchinson_type"].lower(), "probe"))
    model, draws = golden.mixture(process), RecordedNoise(probe=[golden["in.hutchinson_probe"]])
    flow = Flow(model, model.condition(golden.labels, len(x)), TIME, probe, draws)

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        slope, divergence = flow.slope(torch.from_numpy(state[: x.numel()]).reshape(x.shape), process.scales(t), 0)
        return torch.cat([slope.flatten(), divergence]).numpy()

    start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
    span = (given["eps"], 1.0)
    found = solve(rate, span, start, method=given["method"].split()[0], rtol=given["rtol"], atol=given["atol"])
    end = torch.from_numpy(found.y[:, -1])
    latent, divergence = end[: x.numel()].reshape(x.shape), end[x.numel() :]
    log_prob = gaussian_log_prob(latent, process.prior_std(process.scales(1.0))) + divergence
    bits = -log_prob / (x[0].numel() * math.log(2)) + offset_of(given["inverse_scaler"])
    return [(latent, golden["out.final"]), (bits, golden["out.bpd"])]
