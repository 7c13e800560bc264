"""Recorded likelihoods: score_sde, SiT, flow_matching, k-diffusion; guided-diffusion's variational bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import Golden, LearnedRange, Pairs, covers

from dinit.diffusion import Process
from dinit.diffusion.continuous import EDM, VE, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.likelihood.bound import variational_bound
from dinit.likelihood.ode import Exact, Flow, Hutchinson, gaussian_log_prob, log_likelihood
from dinit.samplers import RecordedNoise
from dinit.samplers.grids.respacing import Respaced
from dinit.samplers.multistep.ode_variables import TIME

F64 = torch.float64


@covers("sde_lik_*", tolerance=1e-7)
def score_sde(golden: Golden) -> Pairs:
    """Our ODE and divergence under scipy's adaptive solver with their tolerances, which couples the batch."""
    solve = pytest.importorskip("scipy.integrate").solve_ivp
    given, x = golden.kwargs, golden["in.x0"]
    processes: dict[str, Process] = {"vp": VP(), "subvp": SubVP(), "ve": VE()}
    process = processes[given["sde"]]
    model, draws = golden.mixture(process), RecordedNoise(probe=[golden["in.hutchinson_probe"]])
    probe = Hutchinson("gaussian" if given["hutchinson_type"] == "Gaussian" else "rademacher")
    flow = Flow(model, model.condition(golden["in.labels"], len(x)), TIME, probe, draws)

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        slope, divergence = flow.slope(torch.from_numpy(state[: x.numel()]).reshape(x.shape), process.scales(t), 0)
        return torch.cat([slope.flatten(), divergence]).numpy()

    start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
    found = solve(
        rate, (given["eps"], 1.0), start, method=given["method"], rtol=given["rtol"], atol=given["atol"]
    ).y[:, -1]
    latent = torch.from_numpy(found[: x.numel()]).reshape(x.shape)
    log_prob = gaussian_log_prob(latent, process.prior_std(process.scales(1.0))) + torch.from_numpy(
        found[x.numel() :]
    )
    bits = -log_prob / (x[0].numel() * math.log(2)) + 7
    return [(latent, golden["out.final"]), (bits, golden["out.bpd"])]


def fixed_step_likelihood(golden: Golden) -> Pairs:
    """SiT and flow_matching: fixed steps in t on the linear path, from clean data."""
    given = golden.kwargs
    x = (
        golden["in.x0"]
        if "in.x0" in golden.tensors
        else golden["in.x1"].reshape(-1, *golden["gmm.means"].shape[1:])
    )
    count = given["num_steps"] if "num_steps" in given else round(1 / given["step_size"]) + 1
    if "in.hutchinson_probes" in golden.tensors:
        probes, trace = golden["in.hutchinson_probes"], Hutchinson(fresh=True)
    else:
        probes = [golden["in.hutchinson_probe"].reshape(x.shape)]
        trace = Exact() if given["exact_divergence"] else Hutchinson()
    found = log_likelihood(
        golden.mixture(LinearFlow()),
        x,
        labels=golden["in.labels"],
        grid=torch.linspace(1, 0, count, dtype=F64),
        trace=trace,
        method=given.get("sampling_method") or given["method"],
        variable=TIME,
        noise_source=RecordedNoise(probe=probes),
    )
    if "out.x_source" in golden.tensors:
        return [(found.latent.flatten(1), golden["out.x_source"]), (found.log_prob, golden["out.log_p"])]
    return [(found.latent, golden["out.final"]), (found.log_prob, golden["out.logp"])]


def k_diffusion(golden: Golden) -> Pairs:
    """Their run at tolerance 1e-8 against many fixed steps of ours."""
    given = golden.kwargs
    process = EDM(given["sigma_min"], given["sigma_max"])
    found = log_likelihood(
        golden.mixture(process),
        golden["in.x0"],
        300,
        labels=golden["in.labels"],
        prior="standard",
        noise_source=RecordedNoise(probe=[golden["in.hutchinson_probe"]]),
    )
    return [(found.log_prob, golden["out.ll_tight"])]


RUNS = {"sit": fixed_step_likelihood, "fm": fixed_step_likelihood, "k": k_diffusion}


# k-diffusion's own error at tolerance 1e-8, which it sets for a whole batch, is 2e-6 nats.
@covers("k_loglik", tolerance=1e-6)
@covers("sit_lik_*", "fm_lik_*", tolerance=1e-10)
def likelihood(golden: Golden) -> Pairs:
    return RUNS[golden.name.split("_")[0]](golden)


@covers("gd_bpd_*", tolerance=1e-9)
def guided_diffusion_bound(golden: Golden) -> Pairs:
    given = golden.kwargs
    process = VPDiscrete(given["schedule"], given["T"])
    grid = Respaced(given["respacing"])
    found = variational_bound(
        LearnedRange(golden.mixture(process)),
        golden["in.x0"],
        grid=grid.times(process, grid.length or 0, process.t_min, 1.0),
        labels=golden["in.labels"],
        variance=given["model_var_type"].lower().replace("_", "-"),
        noise_source=RecordedNoise(step=golden["in.noise"]),
    )
    return [
        (found.terms, golden["out.vb"]),
        (found.prior, golden["out.prior_bpd"]),
        (found.total, golden["out.total_bpd"]),
        (found.x0_mse, golden["out.xstart_mse"]),
        (found.eps_mse, golden["out.mse"]),
    ]
