"""diffusers' schedulers as samplers: the same samples as their own loops, and errors for what does not fit."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler, check_path, sampler_from_diffusers
from dinit.diffusion import BackboneDenoiser, Condition, Denoised, Denoiser, Parameterization, Process
from dinit.diffusion.continuous import EDM, VE, LinearFlow
from dinit.diffusion.discrete import VPBetas, VPDiscrete
from dinit.diffusion.parameterization import X0, EDMPreconditioning, Epsilon, ReversedVelocity, Score, V, Velocity
from dinit.models.analytic import MixtureDenoiser
from dinit.pipelines.call import Call
from dinit.pipelines.generate import Pipeline
from dinit.samplers import NoiseSource, Step
from dinit.samplers.comparison import compare
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler
from dinit.samplers.ode.flow import FlowEuler
from dinit.samplers.sde.ddpm import DDPM

STEPS = 10
LABELS = torch.tensor([0, 1, 2])
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {}),
    "ddim eta": ("DDIMScheduler", {"clip_sample": False}, {"eta": 0.7}),
    "ddim clip": ("DDIMScheduler", {"clip_sample_range": 0.8, "set_alpha_to_one": False}, {}),
    "ddim zero snr": (
        "DDIMScheduler",
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
        {},
    ),
    "ddim parallel": ("DDIMParallelScheduler", {"prediction_type": "sample"}, {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, {}),
    "ddpm large": ("DDPMScheduler", {"variance_type": "fixed_large", "prediction_type": "v_prediction"}, {}),
    "ddpm parallel": ("DDPMParallelScheduler", {}, {}),
    "euler": ("EulerDiscreteScheduler", {}, {}),
    "euler churn": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, {"s_churn": 2.0}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "euler sigma_min": ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, {}),
    "euler zero snr": (
        "EulerDiscreteScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {},
    ),
    "euler a": ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    "heun": ("HeunDiscreteScheduler", {}, {}),
    "heun trailing": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}, {}),
    "lms": ("LMSDiscreteScheduler", {}, {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, {}),
    "kdpm2 a": ("KDPM2AncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}, {}),
    "dpm++ 3m karras": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, {}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpm++ threshold": (
        "DPMSolverMultistepScheduler",
        {"thresholding": True, "variance_type": "learned_range"},
        {},
    ),
    "dpm++ flow": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        {},
    ),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", {}, {}),
    "unipc": ("UniPCMultistepScheduler", {"beta_schedule": "scaled_linear"}, {}),
    "unipc flow": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        {},
    ),
    "deis": ("DEISMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {}),
    "sa": ("SASolverScheduler", {}, {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, {}),
    "pndm": (
        "PNDMScheduler",
        {"trained_betas": np.linspace(0.001, 0.03, 300) ** 1.1, "num_train_timesteps": 300},
        {},
    ),
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}),
    "flow sde": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}, {}),
    "flow heun churn": ("FlowMatchHeunDiscreteScheduler", {}, {"s_churn": 2.0}),
    "edm euler": ("EDMEulerScheduler", {"sigma_data": 0.7}, {}),
    "edm churn": ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, {"s_churn": 3.0, "s_tmin": 0.1}),
    "edm dpm++": ("EDMDPMSolverMultistepScheduler", {}, {}),
    "edm sde": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
}


def make(case: str) -> Any:
    name, config, _ = CASES[case]
    return getattr(diffusers, name)(**config)


def mixture(process: Process) -> MixtureDenoiser:
    """Five components of three classes."""
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(5, 2, 4, 4, generator=generator) * 0.7
    variances = 0.02 + 0.1 * torch.rand(5, 2, 4, 4, generator=generator)
    return MixtureDenoiser(process, means, variances, component_class=torch.tensor([0, 1, 2, 2, 0]))


def first_noise(batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(1))


class Recorded:
    """Draws that torch made, kept for a loop of diffusers: the source of noise of both."""

    def __init__(self) -> None:
        self.generator, self.kept, self.floats = torch.Generator().manual_seed(7), [], set()

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        assert stream == "step"
        assert number not in self.floats, "a draw was used twice"
        self.floats.add(number)
        self.kept.append(torch.randn(like.shape, generator=self.generator, dtype=like.dtype))
        return self.kept[-1]


def network(scheduler: Any, cond: Condition) -> Callable[[Tensor, Tensor], Tensor]:
    """(the scheduler's input, its timestep) -> what a perfect network of its prediction type says.

    The noise level is the scheduler's where a chain's timestep is a rounded one; else the timestep's.
    """
    process, parameterization = read_scheduler(scheduler)
    exact = mixture(process)

    def say(x_in: Tensor, told: Tensor) -> Tensor:
        x_t = x_in
        if "EDM" in type(scheduler).__name__:
            sigma = scheduler.sigmas[scheduler.step_index].double()
            x_t = x_in * (sigma**2 + scheduler.config.sigma_data**2).sqrt()
            k = process.scales(process.time_of_noise_level(sigma))
        elif scheduler.config.get("use_karras_sigmas"):
            k = process.scales(process.time_of_noise_level(scheduler.sigmas[scheduler.step_index or 0].double()))
        elif hasattr(process, "alphas"):
            k = process.scales((told.double() + 1) / process.num_steps)
        else:
            sigma = told.double() / 1000
            k = process.scales(process.time_of_noise_level(sigma / (1 - sigma)))
        denoised = exact(x_t, k, cond)
        return parameterization.target(denoised.x0, denoised.eps, k)

    return say


@torch.no_grad()
def theirs(scheduler: Any, noise: Tensor, options: dict[str, Any]) -> tuple[Tensor, int]:
    """diffusers' own loop: the sample, and the number of network calls. Draws from a generator of its own."""
    scheduler.set_timesteps(STEPS)
    denoiser = mixture(read_scheduler(scheduler)[0])
    ask = network(scheduler, denoiser.condition(LABELS, len(noise)))
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options = {**options, "generator": torch.Generator().manual_seed(7)}
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(ask(x_in, t), t, x, return_dict=False, **options)[0]
    return x, len(scheduler.timesteps)


@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers_own_loop(case: str) -> None:
    scheduler, options = make(case), CASES[case][2]
    sampler = sampler_from_diffusers(scheduler, options)
    denoiser, noise, draws = mixture(read_scheduler(scheduler)[0]), first_noise(), Recorded()
    steps = list(sampler.iterate(denoiser, noise, STEPS, labels=LABELS, noise_source=draws))
    expected, calls = theirs(make(case), noise, options)
    assert expected.isfinite().all()
    # Both loops are float32 and start at noise levels up to 157, where a last digit of x_t is 1.5e-5: the results
    # differ by up to 1.8e-5 of the largest pixel (AVX-512, AVX2 and plain code; AMD and Intel). kdpm2 evaluates the
    # network between two timesteps, which diffusers rounds to float32: 5e-5.
    tolerance = 3e-4 if case == "kdpm2" else 1e-4
    assert (steps[-1].x_s - expected).abs().max() <= tolerance * expected.abs().max()
    assert len(steps) == STEPS == steps[0].total
    assert steps[-1].nfe == calls == sampler.nfe(STEPS)
    assert sampler.stochastic == bool(draws.kept)
    assert all(one.t > two.t and one.x_s is two.x_t for one, two in pairwise(steps))


@torch.no_grad()
@pytest.mark.parametrize("case", ["ddpm", "euler a", "kdpm2 a", "dpm++ 2m sde", "edm sde", "sa", "ddim eta"])
def test_noise_is_each_images_own(case: str) -> None:
    sampler, process = sampler_from_diffusers(make(case), CASES[case][2]), read_scheduler(make(case))[0]
    denoiser, noise = mixture(process), first_noise()
    together = sampler.sample(denoiser, noise, STEPS, labels=LABELS, seed=5)
    torch.manual_seed(1)  # the global generator has no part in it
    alone = [
        sampler.sample(
            denoiser,
            noise[i : i + 1],
            STEPS,
            labels=LABELS[i : i + 1],
            noise_source=NoiseSource.from_seed(5, 1, start=i),
        )
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    other = sampler.sample(denoiser, noise, STEPS, labels=LABELS, seed=6)
    assert (other - together).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("case", ["dpm++ 2m sde", "pndm", "unipc", "heun"])
def test_runs_that_are_interleaved_do_not_meet(case: str) -> None:
    scheduler = make(case)
    before = scheduler.__dict__.copy()
    sampler, denoiser = sampler_from_diffusers(scheduler), mixture(read_scheduler(scheduler)[0])
    starts = first_noise(), -first_noise()
    expected = [sampler.sample(denoiser, noise, STEPS) for noise in starts]
    runs = [sampler.iterate(denoiser, noise, STEPS) for noise in starts]
    found = [(one.x_s, two.x_s) for one, two in zip(*runs, strict=True)][-1]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert scheduler.__dict__.keys() == before.keys(), "the caller's scheduler was touched"
    assert all(scheduler.__dict__[key] is value for key, value in before.items())


SAME = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, DDIM()),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, DDPM("fixed-small")),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}, DPMpp2M()),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, DDIM()),
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, FlowEuler()),
    "edm euler": ("EDMEulerScheduler", {}, Euler()),
}


@torch.no_grad()
@pytest.mark.parametrize("case", SAME)
def test_equals_dinits_own_solver_on_its_grid(case: str) -> None:
    name, config, ours = SAME[case]
    sampler = sampler_from_diffusers(getattr(diffusers, name)(**config))
    scheduler = getattr(diffusers, name)(**config)
    denoiser, noise = mixture(read_scheduler(scheduler)[0]), first_noise()
    theirs = list(sampler.iterate(denoiser, noise, STEPS, labels=LABELS, seed=4))
    found = ours.sample(
        denoiser, noise, STEPS, labels=LABELS, seed=4, grid=sampler.own_grid, initial_state=theirs[0].x_t
    )
    torch.testing.assert_close(
        theirs[-1].x_s, found, rtol=0, atol=1e-4
    )  # float32 from a noise level of 157: 1.8e-5


def test_a_chain_of_another_number_of_steps_is_another_chain() -> None:
    """Though it follows the same path: the scheduler's timesteps are levels of its own chain."""
    levels = VPBetas(VPDiscrete("cosine", num_steps=50).alphas.square().diff().neg().clamp(0.01, 0.5).tolist())
    halves = VPBetas([1 - math.sqrt(1 - beta) for beta in levels.betas for _ in range(2)])
    check_path("DDIMScheduler", levels, levels)
    with pytest.raises(ValueError, match="was made for"):
        check_path("DDIMScheduler", levels, halves)


def test_a_comparison_and_a_table_on_a_grid_leave_a_scheduler_its_own() -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    sampler, (process, _) = sampler_from_diffusers(scheduler), read_scheduler(scheduler)
    denoiser, noise, grid = mixture(process), first_noise(), torch.linspace(1.0, 0.1, STEPS, dtype=torch.float64)
    found = compare(denoiser, noise, LABELS, {"theirs": sampler, "ours": "ddim"}, STEPS, grid=grid)
    assert torch.equal(found["theirs"], sampler.sample(denoiser, noise, STEPS, labels=LABELS))
    assert torch.equal(found["ours"], DDIM().sample(denoiser, noise, labels=LABELS, grid=grid))
    rows = [[row.t for row in sampler.describe(process, STEPS, grid=given).rows] for given in (None, "uniform")]
    assert rows[0] == rows[1]


BACKBONE = SimpleNamespace(num_classes=3, in_channels=2, out_channels=2, embed=lambda labels: labels[:, None])


def read_as(process: Process, parameterization: Parameterization) -> Denoiser:
    """A denoiser of a network that must not be asked."""
    return CFG(2.0).wrap(BackboneDenoiser(BACKBONE, process, parameterization))


DDPM_LINEAR = VPDiscrete("linear")
MISFITS = {
    "betas": (
        diffusers.DDIMScheduler(beta_start=0.00085),
        read_as(DDPM_LINEAR, Epsilon()),
        "VPDiscrete.*VPDiscrete",
    ),
    "levels": (
        diffusers.DDIMScheduler(num_train_timesteps=500),
        read_as(DDPM_LINEAR, Epsilon()),
        "num_steps=500.*num_steps=1000",
    ),
    "zero snr": (
        diffusers.DPMSolverMultistepScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        read_as(DDPM_LINEAR, V()),
        "zero_terminal_snr=True.*zero_terminal_snr=False",
    ),
    "prediction": (
        diffusers.DPMSolverMultistepScheduler(),
        read_as(DDPM_LINEAR, V()),
        r"Epsilon\(\) \(prediction_type='epsilon'\).*V\(\).*prediction_type='v_prediction'",
    ),
    "flow on vp": (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        read_as(DDPM_LINEAR, Epsilon()),
        "FlowMatchEuler.*LinearFlow\\(shift=3.0\\).*VPDiscrete",
    ),
    "vp on flow": (diffusers.EulerDiscreteScheduler(), read_as(LinearFlow(), Velocity()), "VPDiscrete.*LinearFlow"),
    "edm on vp": (diffusers.EDMEulerScheduler(), mixture(DDPM_LINEAR), "EDM.*VPDiscrete"),
    "sigma_data": (
        diffusers.EDMEulerScheduler(sigma_data=0.7),
        read_as(EDM(), EDMPreconditioning(0.5)),
        "sigma_data=0.7.*sigma_data=0.5",
    ),
    "x0 on flow": (
        diffusers.FlowMatchHeunDiscreteScheduler(),
        read_as(LinearFlow(), X0()),
        r"Difference\(\).*X0\(\).*dinit's samplers",
    ),
    "sigma_min": (
        diffusers.EDMEulerScheduler(sigma_max=40),
        mixture(VE(0.01, 60.0)),
        "to 0.002, .* levels 0.01 to 60",
    ),
    "sigma_max": (
        diffusers.EDMEulerScheduler(sigma_max=90.0),
        mixture(EDM()),
        "noise level 90 to .*sigma_max=80.0",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_an_error_that_names_both(case: str) -> None:
    scheduler, denoiser, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        sampler_from_diffusers(scheduler).iterate(denoiser, first_noise(), STEPS)


@pytest.mark.parametrize(
    ("scheduler", "denoiser"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), read_as(LinearFlow(), Velocity())),
        (diffusers.FlowMatchEulerDiscreteScheduler(), read_as(LinearFlow(2.0), ReversedVelocity())),
        (diffusers.UniPCMultistepScheduler(), read_as(DDPM_LINEAR, Score())),
        (diffusers.DDPMScheduler(), read_as(VPBetas(), Epsilon())),
        (diffusers.EDMDPMSolverMultistepScheduler(), read_as(EDM(), EDMPreconditioning(0.5))),
        (diffusers.EDMEulerScheduler(sigma_max=40.0), mixture(VE(0.001, 60.0))),
    ],
)
def test_the_same_said_otherwise_fits(scheduler: Any, denoiser: Denoiser) -> None:
    sampler_from_diffusers(scheduler).iterate(denoiser, first_noise(), STEPS)


REFUSED = {
    "no scheduler": (lambda: "ddim", "scheduler classes, got <class 'str'>"),
    "another class": (lambda: type("Mine", (diffusers.DDIMScheduler,), {})(), "scheduler classes, got .*Mine"),
    "consistency": (diffusers.LCMScheduler, "LCMScheduler is not covered as a sampler"),
    "pndm sample": (lambda: diffusers.PNDMScheduler(prediction_type="sample"), "must be one of `epsilon`"),
    "shifting": (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        r"use_dynamic_shifting = True is not covered \(accepted: False\)$",
    ),
    "learned": (lambda: diffusers.DDPMScheduler(variance_type="learned"), "'learned_range' here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_where_it_is_made(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        sampler_from_diffusers(given())


def test_refused_options() -> None:
    with pytest.raises(ValueError, match=r"has no etta \(it takes: eta, use_clipped_model_output\)"):
        sampler_from_diffusers(diffusers.DDIMScheduler(), {"etta": 1.0})
    with pytest.raises(ValueError, match="'dpmpp-sde'"):
        SchedulerSampler("DPMSolverSDEScheduler")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "grid": "karras"}, "places its own times"),
        ({"grid": torch.tensor([1.0, 0.5])}, "places its own times"),
        ({"steps": 5, "end": "state"}, "ends by itself"),
        ({}, "steps must be a whole number"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": 1}, "1 steps of DDIMScheduler start at t = 0.001"),
    ],
)
def test_refused_runs(options: dict[str, Any], message: str) -> None:
    sampler = sampler_from_diffusers(diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match=message):
        sampler.iterate(mixture(DDPM_LINEAR), first_noise(), **options)


def test_a_prediction_that_says_nothing_at_pure_noise_is_refused() -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="rescale_betas_zero_snr = True does not work in diffusers: its steps"):
        sampler_from_diffusers(scheduler)
    process = read_scheduler(scheduler)[0]
    later = sampler_from_diffusers(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="'epsilon' is singular"):
        later.iterate(mixture(process), first_noise(), 1000)


def test_a_shift_set_later_is_refused() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_shift(4.0)
    with pytest.raises(ValueError, match=r"4\.0, than its config, 1\.0: make one with .*shift=4\.0"):
        sampler_from_diffusers(scheduler)


class WithVariance(MixtureDenoiser):
    """With a fraction of the variance, a function of the state."""

    learns_variance = True

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        denoised = super().__call__(x_t, t, cond)
        return replace(denoised, variance_fraction=torch.sigmoid(x_t))


@torch.no_grad()
def test_a_learned_variance_is_handed_over() -> None:
    scheduler = diffusers.DDPMScheduler(
        variance_type="learned_range", clip_sample=False, timestep_spacing="trailing"
    )
    plain, noise = mixture(DDPM_LINEAR), first_noise()
    denoiser = WithVariance(DDPM_LINEAR, plain.means, plain.variances, plain.weights, plain.component_class)
    sampler = sampler_from_diffusers(scheduler)
    draws = Recorded()
    found = sampler.sample(denoiser, noise, STEPS, labels=LABELS, noise_source=draws)
    ask, x = network(scheduler, plain.condition(LABELS, 3)), noise
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        output = torch.cat([ask(x, t), 2 * torch.sigmoid(x) - 1], 1)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="needs a network that learned its variance"):
        sampler.sample(plain, noise, STEPS)


def test_in_a_pipeline_and_back_from_its_record() -> None:
    pipe = Pipeline.from_pretrained("digits-dico")
    pipe.set_progress_bar_config(disable=True)
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**config, algorithm_type="sde-dpmsolver++")
    sampler = sampler_from_diffusers(scheduler)
    steps: list[Step] = []
    options: dict[str, Any] = {"steps": 6, "guidance": CFG(1.5), "output_type": "latent"}
    made = pipe([3, 1, 4], sampler=sampler, callback_on_step_end=steps.append, **options)
    assert len(steps) == made.nfe == 6
    recorded = json.loads(json.dumps(made.call.to_config()))
    assert recorded["sampler"]["scheduler"] == "DPMSolverMultistepScheduler"
    call = Call.from_config(recorded)
    assert call.sampler == sampler
    assert torch.equal(pipe.run(call, "latent").images, made.images)
    again = pipe([3, 1, 4], sampler=recorded["sampler"], batch_size=1, **options).images
    torch.testing.assert_close(again, made.images, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="places its own times"):
        pipe([3], sampler=sampler, grid="karras", steps=6)
    with pytest.raises(ValueError, match="prediction_type='v_prediction'"):
        pipe([3], sampler=sampler_from_diffusers(diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")))
