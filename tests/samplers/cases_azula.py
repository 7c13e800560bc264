"""Recorded runs of azula, on the levels that the files hold."""

from __future__ import annotations

import math

import torch
from golden import Golden, Levels, NotCoveredError, Pairs, covers, like_states
from torch import Tensor

from dinit.diffusion.continuous import EDM
from dinit.samplers import Sampler
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.multistep.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Heun
from dinit.samplers.sde.ddpm import DDPM
from dinit.samplers.sde.euler_maruyama import EulerMaruyama
from dinit.samplers.sde.predictor_corrector import PredictorCorrector, renoised


def levels_of(golden: Golden) -> Levels:
    return Levels(golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"])


def guided(golden: Golden) -> CFG | None:
    """Their scale is added to 1; their guided model has no null class among its labels: they wrap round."""
    scale = golden.kwargs.get("guidance")
    if not scale:
        return None
    golden.tensors["in.labels"] = golden["in.labels"] % golden.mixture(levels_of(golden)).num_classes
    return CFG(1 + scale)


def pairs_of(golden: Golden, sampler: Sampler) -> Pairs:
    """Of some samplers only the ends are recorded."""
    guidance, path = guided(golden), levels_of(golden)
    ours, theirs = golden.run(sampler, path, path.t, guidance=guidance, end="state"), golden.trajectory
    return [(ours[[0, -1]] if len(theirs) == 2 else ours, theirs)]


def first_order(golden: Golden) -> Sampler:
    """Their eta scales the variance of the noise, that of the paper its standard deviation."""
    given, function = golden.kwargs, golden.said("function")
    if function == "DDPMSampler":
        return DDPM()
    if function == "ItoSampler":
        if given.get("temperature", 1.0) != 1.0:
            raise NotCoveredError("a temperature of the noise other than 1")
        return EulerMaruyama("noise-level", given["eta"])
    return DDIM(math.sqrt(given.get("eta") or 0.0))


@covers("azula", "DDIMSampler", "DDPMSampler", "EulerSampler", "ItoSampler", tolerance=1e-9)
def one_step(golden: Golden) -> Pairs:
    return pairs_of(golden, first_order(golden))


@covers("azula", "vABSampler", "zABSampler", "xEABSampler", "zEABSampler", tolerance=1e-9)
def multistep(golden: Golden) -> Pairs:
    order, function = golden.kwargs["order"], golden.said("function")
    samplers: dict[str, Sampler] = {
        "vABSampler": AdamsBashforth(order, "velocity", "lower-order"),
        "zABSampler": AdamsBashforth(order, "eps", "lower-order"),
        "xEABSampler": ExponentialAB(order, "x0", "lower-order", math.inf),
        "zEABSampler": ExponentialAB(order, "eps", "lower-order", math.inf),
    }
    return pairs_of(golden, samplers[function])


@covers("azula", "REABSampler")
def rescaled(golden: Golden) -> Pairs:
    raise NotCoveredError("its integral is scaled wrongly, which makes every order first order")


@covers("azula", "HeunSampler", tolerance=1e-9)
def heun(golden: Golden) -> Pairs:
    """Their Heun steps x / alpha in sigma / alpha, which is ours on EDM's process."""
    guidance, alpha = guided(golden), golden["sched.alpha"]
    level = golden["sched.sigma"] / alpha
    process = EDM(1e-6, float(level[0]))
    start = golden["in.x_init"] / alpha[0]
    ours = golden.run(Heun(), process, level / level[0], guidance=guidance, initial_state=start, end="state")
    return [(ours * like_states(alpha, ours), golden.trajectory)]


@covers("azula", "PCSampler", tolerance=1e-9)
def corrector(golden: Golden) -> Pairs:
    """They correct before a step of DDIM, we after it: the first corrections, and the last step, are done here."""
    guidance = guided(golden)
    given, theirs, noise = golden.kwargs, golden.trajectory, golden["in.noise"]
    path = levels_of(golden)
    model, count, snr = (
        apply_guidance(golden.mixture(path), guidance),
        given["corrections"],
        math.sqrt(given["delta"]) / 2,
    )
    cond = model.condition(golden.labels, len(theirs[0]))

    def corrected(x: Tensor, i: int) -> Tensor:
        t = path.scales(path.t[i])
        for z in noise[count * i : count * (i + 1)]:
            x = renoised(model(x, t, cond), z, t, snr)
        return x

    start = corrected(theirs[0], 0)
    sampler = PredictorCorrector(DDIM(), "renoising", snr, count)
    ours = golden.run(sampler, model, path.t[:-1], initial_state=start, noise=noise[count:], end="state")
    last = golden.run(DDIM(), model, path.t[-2:], initial_state=ours[-1], end="state")[-1]
    return [(ours, torch.stack([corrected(x, i) for i, x in enumerate(theirs[:-1])])), (last, theirs[-1])]
