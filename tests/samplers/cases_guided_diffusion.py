"""Recorded runs of guided-diffusion and DiT (which is built on it), their tables, and CADS on its DDIM."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import torch
from golden import Golden, LearnedRange, Levels, NotCoveredError, Pairs, covers, known, options
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales, WrappedDenoiser
from dinit.diffusion.discrete import VPDiscrete
from dinit.likelihood.bound import variational_bound
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import RecordedNoise, Sampler
from dinit.samplers.grids.respacing import Respaced
from dinit.samplers.guidance import Guidance, apply_guidance
from dinit.samplers.guidance.cads import CADS, anneal, noised
from dinit.samplers.guidance.cfg import CFG, extrapolate
from dinit.samplers.guidance.classifier import Classifier
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.inversion.invert import DDIMInverse, ascend
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.sde.ddpm import DDPM, ancestral_transition

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "squaredcos_cap_v2": "squared-cosine",
    "quad": "scaled-linear",
}
VARIANCES = {
    "FIXED_SMALL": "fixed-small",
    "FIXED_LARGE": "fixed-large",
    "LEARNED_RANGE": "learned-range",
    "LEARNED": "learned",
}
GUIDED_CHANNELS = 3  # by DiT's forward_with_cfg, whatever the number of channels


def schedule_of(golden: Golden) -> str:
    return golden.kwargs.get("schedule") or golden.kwargs.get("noise_schedule") or "linear"


def chain_of(golden: Golden) -> VPDiscrete:
    given = golden.kwargs
    steps = given.get("T") or given.get("diffusion_steps") or 1000
    ends = options(given, ("beta_start", "beta_end"))
    return VPDiscrete(known(SCHEDULES, schedule_of(golden), "noise schedule"), steps, **ends)


def tolerance(golden: Golden) -> float:
    """The first step of a cosine chain, whose last beta is 0.999, is ill-conditioned."""
    return 1e-10 if schedule_of(golden) == "linear" else 1e-9


def times_of(golden: Golden, process: VPDiscrete) -> Tensor:
    """The times of the respaced process, checked against the recorded timesteps and betas."""
    sections = golden.kwargs["respacing"]
    if isinstance(sections, list):
        sections = ",".join(str(count) for count in sections)
    grid = Respaced(str(sections)) if sections else Respaced(str(process.num_steps))  # '' is all timesteps
    times = grid.times(process, grid.length or 0, process.t_min, 1.0)
    levels = (times.flip(0) * process.num_steps).round().long() - 1
    assert torch.equal(levels, golden["sched.timestep_map"]), "another respacing"
    alpha_bar = process.scales(times.flip(0)).alpha ** 2
    torch.testing.assert_close(alpha_bar, golden["sched.alphas_cumprod"], rtol=1e-9, atol=1e-15)
    return times


class ExactClassifier:
    """The mixture's class posterior p(class | x_t), as a classifier of noisy images."""

    def __init__(self, mixture: MixtureDenoiser) -> None:
        self.mixture = mixture

    def __call__(self, x: Tensor, noise_label: Tensor) -> Tensor:
        process = self.mixture.process
        assert isinstance(process, VPDiscrete)
        t = (noise_label.double()[0] + 1) / process.num_steps
        joint = [self._log_joint(x, process.scales(t), y) for y in range(self.mixture.num_classes)]
        return torch.stack(joint, dim=1)

    def _log_joint(self, x: Tensor, k: Scales, y: int) -> Tensor:
        weight = self.mixture.weights[self.mixture.component_class == y].sum().log()
        cond = self.mixture.encode(torch.full((len(x),), y))
        return self.mixture.log_prob(x, k, cond) + weight


def guidance_of(golden: Golden, mixture: MixtureDenoiser, form: str) -> list[Guidance]:
    """Clipping, which acts first, and the classifier that `cond_fn` describes."""
    given = golden.kwargs
    guidance: list[Guidance] = [ClipX0()] if given.get("clip_denoised") else []
    text = given.get("cond_fn")
    if text:
        found = re.fullmatch(r"([\d.]+)\s*\*\s*\(score\(x\|y\)\s*-\s*score\(x\)\)(, model unconditional)?", text)
        if found is None:
            raise NotCoveredError(f"a cond_fn that no case reads: {text!r}")
        scale, unconditional = float(found[1]), found[2] is not None
        guidance.append(Classifier(scale, ExactClassifier(mixture), form, unconditional))  # type: ignore[arg-type]
    return guidance


def with_variance(golden: Golden, mixture: MixtureDenoiser) -> tuple[Denoiser, DDPM]:
    """The mixture with the recorded variance channels, where there are any, and the sampler that reads them."""
    given = golden.kwargs
    scale = 1000 / mixture.process.num_steps if given.get("rescale_timesteps") else 1.0
    kind = known(VARIANCES, given["model_var_type"], "variance")
    return LearnedRange.of(golden, mixture, scale) if "learned" in kind else mixture, DDPM(kind)


@covers("guided-diffusion", "*.ddim_sample_loop*", tolerance=tolerance)
def ddim(golden: Golden) -> Pairs:
    process = chain_of(golden)
    mixture = golden.mixture(process)
    guidance = guidance_of(golden, mixture, "score")
    times = times_of(golden, process)
    ours = golden.run(DDIM(golden.kwargs.get("eta", 0.0)), mixture, times, guidance=guidance)
    return [(ours, golden.trajectory)]


@covers("guided-diffusion", "*.p_sample_loop*", tolerance=tolerance)
def ddpm(golden: Golden) -> Pairs:
    process = chain_of(golden)
    mixture = golden.mixture(process)
    denoiser, sampler = with_variance(golden, mixture)
    guidance, times = guidance_of(golden, mixture, "mean"), times_of(golden, process)
    ours, theirs = golden.run(sampler, denoiser, times, guidance=guidance), golden.trajectory
    if golden.kwargs.get("cond_fn"):
        # Their last sample has the gradient times a variance that the chain's last step does not have.
        return [(ours[:-1], theirs[:-1]), (ours[-1], golden["out.pred_xstart"][-1])]
    return [(ours, theirs)]


def climb(golden: Golden, sampler: Sampler, denoiser: Denoiser, grid: Tensor) -> Tensor:
    """Our states from the grid's last time to its first, the data first."""
    steps = list(ascend(sampler, denoiser, golden["in.x_init"], grid=grid, labels=golden.labels))
    return torch.stack([steps[0].x_t, *(step.x_s for step in steps)])


@covers("guided-diffusion", "*.ddim_reverse_sample*", tolerance=tolerance)
def reverse(golden: Golden) -> Pairs:
    """Their last step goes to alpha = 0, which lies outside the chain: it leaves the noise that was found last."""
    process = chain_of(golden)
    times, theirs = times_of(golden, process), golden.trajectory
    mixture = golden.mixture(process)
    model = apply_guidance(mixture, guidance_of(golden, mixture, "score"))
    pairs = [(climb(golden, sampler, model, times), theirs[:-1]) for sampler in (DDIMInverse(), DDIM())]
    noise = model(theirs[-2], times[0], model.condition(golden.labels, len(theirs[-2]))).eps
    return [*pairs, (noise, theirs[-1])]


@covers("guided-diffusion", "*.calc_bpd_loop", tolerance=1e-9)
def bound(golden: Golden) -> Pairs:
    process = chain_of(golden)
    denoiser, sampler = with_variance(golden, golden.mixture(process))
    found = variational_bound(
        apply_guidance(denoiser, ClipX0() if golden.kwargs.get("clip_denoised") else None),
        golden["in.x0"],
        grid=times_of(golden, process),
        labels=golden.labels,
        variance=sampler.variance,
        noise_source=RecordedNoise(step=golden["in.noise"]),
    )
    return [
        (found.terms, golden["out.vb"]),
        (found.prior, golden["out.prior_bpd"]),
        (found.total, golden["out.total_bpd"]),
        (found.x0_mse, golden["out.xstart_mse"]),
        (found.eps_mse, golden["out.mse"]),
    ]


# --- DiT ---------------------------------------------------------------------------------------------------------


@covers("dit", "*forward_with_cfg + *sample_loop*", tolerance=tolerance)
def dit(golden: Golden) -> Pairs:
    given, process = golden.kwargs, chain_of(golden)
    mixture = golden.mixture(process)
    learned = given.get("learn_sigma", True)
    denoiser = LearnedRange.of(golden, mixture) if learned else mixture
    ancestral = "p_sample_loop" in golden.said("function")
    sampler = DDPM("learned-range" if learned else "fixed-large") if ancestral else DDIM(given.get("eta", 0.0))
    guidance: list[Guidance] = [CFG(given["cfg_scale"], channels=GUIDED_CHANNELS)]
    if given.get("clip_denoised"):
        guidance.append(ClipX0())
    # Each half of their doubled batch draws its own noise; that of the second is never seen by the network.
    noise = golden["in.noise"][:, : len(golden["in.x_init"])] if "in.noise" in golden.tensors else None
    times = times_of(golden, process)
    return [(golden.run(sampler, denoiser, times, guidance=guidance, noise=noise), golden.trajectory)]


@covers("dit", "*.forward_with_cfg")
def combination(golden: Golden) -> Pairs:
    """Of recorded outputs: the guided channels; those of the variance stay each half's own."""
    out, n = golden["in.model_output"], len(golden["in.x"]) // 2
    ours = extrapolate(out[:n], out[n:], golden.kwargs["cfg_scale"], channels=GUIDED_CHANNELS)
    return [(ours, golden["out.final"][:n])]


# --- tables ------------------------------------------------------------------------------------------------------


def betas_of(process: VPDiscrete) -> Tensor:
    alpha_bar = process.alphas**2
    return 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])


@covers("guided-diffusion", "*space_timesteps*")
def tables(golden: Golden) -> Pairs:
    """Keys are `space_timesteps/T<timesteps>/<sections>`, `betas/<schedule>/T<...>`, `respaced/<schedule>/...`."""
    pairs = []
    for key, theirs in golden.under("sched.space_timesteps/").items():
        total, sections = key.split("/")
        grid = Respaced(sections)
        pairs.append((torch.tensor(grid.timesteps(int(total[1:]), grid.length or 0)), theirs))
    for key, theirs in golden.under("sched.betas/").items():
        schedule, total = key.split("/")
        process = VPDiscrete(known(SCHEDULES, schedule, "noise schedule"), int(total[1:]))
        pairs.append((betas_of(process), theirs))
    respaced = golden.under("sched.respaced/")
    for prefix in sorted({key.rpartition("/")[0] for key in respaced}):
        theirs = {k.rpartition("/")[2]: v for k, v in respaced.items() if k.rpartition("/")[0] == prefix}
        schedule, *total, sections = prefix.split("/")
        steps = int(total[0][1:]) if total else 1000
        process = VPDiscrete(known(SCHEDULES, schedule, "noise schedule"), steps)
        pairs += respaced_tables(process, sections, theirs)
    return pairs


def respaced_tables(process: VPDiscrete, sections: str, theirs: dict[str, Tensor]) -> Pairs:
    """The posterior's coefficients, read off our step from (x_t, x0) = (0, 1) and (1, 0)."""
    grid = Respaced(sections)
    times = grid.times(process, grid.length or 0, process.t_min, 1.0)
    levels = process.scales(torch.cat([times, torch.zeros(1)])).unbind()
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    rows = []
    for t, s in itertools.pairwise(levels):
        coef1, std = ancestral_transition(Denoised(zero, one, t), t, s, "fixed-small")
        coef2, large = ancestral_transition(Denoised(one, zero, t), t, s, "fixed-large")
        rows.append(torch.tensor([t.alpha**2, large**2, coef1, coef2, std**2], dtype=torch.float64))
    ours = torch.stack(rows).flip(0).T
    names = ("alphas_cumprod", "betas", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance")
    return [(row, theirs[name]) for row, name in zip(ours, names, strict=True) if name in theirs]


@covers("dit", "*get_beta_schedule*", "*get_named_beta_schedule*")
def dit_betas(golden: Golden) -> Pairs:
    """Those of the schedules that dinit has; warm-up, constant and harmonic betas it has not."""
    given, pairs = golden.kwargs, []
    for schedule, theirs in golden.under("sched.betas/").items():
        if schedule in SCHEDULES:
            ends = {} if schedule == "squaredcos_cap_v2" else options(given, ("beta_start", "beta_end"))
            pairs.append((betas_of(VPDiscrete(SCHEDULES[schedule], len(theirs), **ends)), theirs))  # type: ignore[arg-type]
    if not pairs:
        raise NotCoveredError(f"dinit has none of the schedules {', '.join(golden.under('sched.betas/'))}")
    return pairs


# --- CADS --------------------------------------------------------------------------------------------------------


@covers("sd-webui-cads", "cads_linear_schedule*")
def cads(golden: Golden) -> Pairs:
    given, pairs = golden.kwargs, []
    for key, theirs in golden.under("sched.gamma/").items():
        tau1, tau2 = (float(part.split("=")[1]) for part in key.split(","))
        pairs.append((anneal(golden["sched.t"], tau1, tau2), theirs))
    for key, theirs in golden.under("out.noised/gamma=").items():
        gamma, kind = key.split("/")
        mixing = 0.0 if kind == "norescale" else 1.0 if kind == "rescale_psi1" else given["psi"]
        # Where their statistics are those of the batch, the batch as one row has them.
        whole = kind in ("rescale", "rescale_psi1")
        y, z = (golden[key].reshape(1, -1) if whole else golden[key] for key in ("in.y", "in.y_noise"))
        ours = noised(y, z, torch.tensor(float(gamma), dtype=torch.float64), given["noise_scale"], mixing)
        pairs.append((ours.reshape_as(theirs), theirs))
    return [*pairs, _cads_run(golden)]


def _cads_run(golden: Golden) -> tuple[Tensor, Tensor]:
    """Their condition is annealed in the fraction of the steps, so the levels are put at those times."""
    given, chain = golden.kwargs, chain_of(golden)
    k = chain.scales((golden["sched.timestep_map"].flip(0).double() + 1) / chain.num_steps)
    mixture = golden.mixture(Levels(golden["sched.cads_t"], k.alpha, k.sigma))
    annealed = CADS(given["tau1"], given["tau2"], given["noise_scale"], given["psi"])
    steps = DDIM().iterate(
        annealed.wrap(Logits(mixture, golden["in.cond_logits"])),
        torch.empty(0),
        grid=golden["sched.cads_t"],
        labels=torch.zeros(len(golden["in.x_init"]), dtype=torch.int64),
        initial_state=golden["in.x_init"],
        noise_source=RecordedNoise(cads=golden["in.cond_noise"]),
    )
    states = list(steps)
    return torch.stack([states[0].x_t, *(step.x_s for step in states)]), golden.trajectory


class Logits(WrappedDenoiser):
    """The mixture conditioned on one logit a component."""

    def __init__(self, inner: MixtureDenoiser, logits: Tensor) -> None:
        super().__init__(inner)
        self.logits, self.weights = logits, inner.weights

    def encode(self, labels: Tensor) -> Condition:
        return replace(super().encode(labels), embedding=self.logits)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return self.inner(x_t, t, replace(cond, embedding=cond.embedding + self.weights.log()))
