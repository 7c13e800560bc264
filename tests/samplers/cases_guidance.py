"""Golden runs of guided samplers, and of guidance alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from golden import Golden, LearnedRange, Levels, Pairs, covers
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales, WrappedDenoiser
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import RecordedNoise
from dinit.samplers.guidance.apg import projected
from dinit.samplers.guidance.cads import CADS, anneal, noised
from dinit.samplers.guidance.cfg import extrapolate, restore_spread
from dinit.samplers.guidance.cfg_zero import optimal_scale
from dinit.samplers.guidance.classifier import Classifier
from dinit.samplers.guidance.threshold import DynamicThreshold
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.sde.ddpm import DDPM


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


@covers("gd_ddim_linear_20_condscore", "gd_ddpm_25_condmean")
def guided_diffusion_classifier(golden: Golden) -> Pairs:
    given = golden.kwargs
    process = VPDiscrete(given["schedule"], given["T"])
    times = (golden["sched.timestep_map"].flip(0).double() + 1) / process.num_steps
    mixture = golden.mixture(process)
    ancestral = given["model_var_type"] == "LEARNED_RANGE"
    guidance = Classifier(1.5, ExactClassifier(mixture), "mean" if ancestral else "score", unconditional=True)
    theirs = golden["out.trajectory"]
    if not ancestral:
        return [(golden.run(DDIM(), mixture, times, guidance=guidance), theirs)]
    ours = golden.run(DDPM("learned-range"), LearnedRange(mixture), times, guidance=guidance)
    # Their last sample has the gradient times a variance that the chain's last step does not have.
    return [(ours[:-1], theirs[:-1]), (ours[-1], golden["out.pred_xstart"][-1])]


@covers("df_dpmpp_2m_thresholding")
def diffusers_thresholding(golden: Golden) -> Pairs:
    config = golden.kwargs["full_config"]
    process = VPDiscrete("linear", beta_start=config["beta_start"], beta_end=config["beta_end"])
    times = process.time_of_noise_level(golden["sched.model_sigma"] / golden["sched.model_alpha"])
    guidance = DynamicThreshold(config["dynamic_thresholding_ratio"], largest=config["sample_max_value"])
    return [(golden.run(DPMpp2M(), process, times, guidance=guidance), golden["out.trajectory"])]


@covers("df_guiders")
def diffusers_guiders(golden: Golden) -> Pairs:
    given, free, config = golden["in.pred_cond"], golden["in.pred_uncond"], golden.kwargs
    scale, radius = config["guidance_scale"], config["apg_norm_threshold"]
    guided = extrapolate(given, free, scale)
    fitted = optimal_scale(given.float(), free.float()).double()  # theirs computes it so
    pairs = [
        (guided, golden["out.cfg"]),
        (extrapolate(given, free, 1 + scale), golden["out.cfg_original_formulation"]),
        (restore_spread(guided, given, config["guidance_rescale"]), golden["out.cfg_rescaled"]),
        (fitted.reshape(-1, 1), golden["out.cfg_zero_star_scale"]),
        (extrapolate(given, fitted * free, scale), golden["out.cfg_zero_star"]),
    ]
    # Theirs adds the update to the unconditional prediction; the paper and ours, to the conditional one.
    (eta, eta_momentum), momentum = config["apg_eta"], config["apg_momentum"]
    after = golden["in.pred_cond_next"]
    running = after - free + momentum * (given - free)
    updates = {
        "apg_eta0_norm5": projected(given - free, given, eta, radius),
        "apg_momentum_step0": projected(given - free, given, eta_momentum, radius),
        "apg_momentum_step1": projected(running, after, eta_momentum, radius),
    }
    return pairs + [(free + scale * update, golden[f"out.{name}"]) for name, update in updates.items()]


@covers("cads_linear")
def published_cads(golden: Golden) -> Pairs:
    given, pairs = golden.kwargs, []
    for key, theirs in golden.under("sched.gamma/").items():
        tau1, tau2 = (float(part.split("=")[1]) for part in key.split(","))
        pairs.append((anneal(golden["sched.t"], tau1, tau2), theirs))
    y, z, scale, psi = golden["in.y"], golden["in.y_noise"], given["noise_scale"], given["psi"]
    for key, theirs in golden.under("out.noised/gamma=").items():
        gamma, kind = key.split("/")
        mixing = {"norescale": 0.0, "rescale_psi1": 1.0}.get(kind, psi)
        # Where their statistics are those of the batch, the batch as one row has them.
        rows = (lambda v: v.reshape(1, -1)) if kind in ("rescale", "rescale_psi1") else (lambda v: v)
        ours = noised(rows(y), rows(z), torch.tensor(float(gamma), dtype=torch.float64), scale, mixing)
        pairs.append((ours.reshape_as(theirs), theirs))
    return [*pairs, _cads_run(golden)]


def _cads_run(golden: Golden) -> tuple[Tensor, Tensor]:
    """Their condition is annealed in the fraction of the steps, so the levels are put at those times."""
    given, chain = golden.kwargs, VPDiscrete()
    k = chain.scales((golden["sched.timestep_map"].flip(0).double() + 1) / chain.num_steps)
    mixture = golden.mixture(Levels(golden["sched.cads_t"], k.alpha, k.sigma))
    model = CADS(given["tau1"], given["tau2"], given["noise_scale"], given["psi"]).wrap(
        Logits(mixture, golden["in.cond_logits"])
    )
    golden.tensors["in.labels"] = torch.zeros(len(golden["in.x_init"]), dtype=torch.int64)
    steps = DDIM().iterate(
        model,
        torch.empty(0),
        grid=golden["sched.cads_t"],
        labels=golden["in.labels"],
        initial_state=golden["in.x_init"],
        noise_source=RecordedNoise(cads=golden["in.cond_noise"]),
    )
    states = list(steps)
    return torch.stack([states[0].x_t, *(step.x_s for step in states)]), golden["out.trajectory"]


class Logits(WrappedDenoiser):
    """The mixture conditioned on one logit a component."""

    def __init__(self, inner: MixtureDenoiser, logits: Tensor) -> None:
        super().__init__(inner)
        self.logits, self.weights = logits, inner.weights

    def encode(self, labels: Tensor) -> Condition:
        return replace(super().encode(labels), embedding=self.logits)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return self.inner(x_t, t, replace(cond, embedding=cond.embedding + self.weights.log()))


@covers("dit_cfg3_combine")
def dit_combination(golden: Golden) -> Pairs:
    out, n = golden["in.model_output"], len(golden["in.x"]) // 2
    ours = extrapolate(out[:n], out[n:], golden.kwargs["cfg_scale"], channels=3)
    return [(ours, golden["out.final"][:n])]
