"""Calls that a type checker must accept. Checked by tests/test_typing.py; nothing here is run."""

from __future__ import annotations

from typing import assert_type

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

import dinit
from dinit import DiT, Pipeline, list_samplers
from dinit.checkpoints import denoiser_from_diffusers, sampler_from_diffusers
from dinit.data import DATASETS, Digits, ImageData
from dinit.diffusion import Denoiser, Epsilon, LinearFlow, Process, VPDiscrete
from dinit.evaluation import Report, compare
from dinit.models import BACKBONES, DiCo, GaussianDenoiser
from dinit.samplers import (
    DDIM,
    SAMPLERS,
    DPMpp2M,
    Heun,
    Karras,
    NoiseSource,
    Sampler,
    TimeGrid,
    invert,
    search_timesteps,
)
from dinit.samplers import compare as side_by_side
from dinit.samplers.guidance import CADS, CFG, Guidance
from dinit.training import EMA, Recipe, load_recipe

assert_type(DDIM(eta=0.5), DDIM)
assert_type(DPMpp2M(variant="heun"), DPMpp2M)
sampler: Sampler = Heun()
grid: TimeGrid = Karras(rho=5.0)
guidance: list[Guidance] = [CFG(2.0), CADS()]
process: Process = LinearFlow()
chain = VPDiscrete()
parameterization = Epsilon()
assert_type(DiT(hidden_size=64, depth=2, num_heads=2), DiT)
network = DiCo(num_classes=10)
data = Digits()
names: list[str] = list_samplers("*2m*")
assert_type(SAMPLERS.create("ddim:eta=0.5"), Sampler)
assert_type(BACKBONES.create("DiT-XL/2", num_classes=10).num_classes, int)
digits: ImageData = DATASETS.create("digits")

pipe: Pipeline = dinit.Pipeline.from_pretrained("digits-dico")
generated = pipe([3, 1, 4], sampler=DDIM(eta=0.0), steps=20, guidance=CFG(2.0), seed=0)
generated = pipe(["3"], sampler="dpmpp-2m", grid="karras", steps=10, guidance=[CFG(4.0), CADS()], seed=[5])
images = generated.images
(pictures,) = pipe(
    class_labels=[3],
    guidance_scale=4.0,
    num_inference_steps=25,
    generator=torch.manual_seed(33),
    output_type="pil",
    return_dict=False,
)
pipe(batch_size=4, eta=0.5, callback_on_step_end=lambda step: print(step.index))
pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
pipe.sampler, pipe.steps, pipe.guidance, pipe.grid = "heun", 20, 4.0, Karras()
half = dinit.Pipeline.from_pretrained("digits-dico", device="cpu", dtype=torch.bfloat16)
assert_type(half, Pipeline)
assert_type(pipe.prepare([3], guidance="cfg:scale=4").steps, int)
denoiser: Denoiser = pipe.denoiser(labels=[3])
for step in Heun().iterate(denoiser, torch.zeros(1, 1, 8, 8), steps=18):
    assert_type(step.x0, torch.Tensor)
noise = torch.randn(2, 1, 8, 8)
sample = Heun().sample(denoiser, noise, grid="karras", steps=18, labels=[3, 1], seed=[4, 5], end="state")
assert_type(sample, torch.Tensor)
start = invert("ddim", denoiser, sample, 50, labels=[3, 1], grid=Karras())
assert_type(start.nfe, int)
several = side_by_side(denoiser, noise, None, ["ddim", Heun()], nfe=20, seed=3, decode=lambda latents: latents)
labelled = side_by_side(denoiser, noise, [3, 1], {"exact": "rk4", "few": {"name": "ddim", "eta": 0.5}}, 10)
assert_type(several.images, tuple[torch.Tensor, ...])
times: TimeGrid = search_timesteps(denoiser, "ddim", 8, lambda x: float(x.mean()), noise=noise, seed=2)
swapped = sampler_from_diffusers(EulerDiscreteScheduler(), {"s_churn": 1.0})
for step in swapped.iterate(denoiser, noise, 18, seed=1):
    assert_type(step.nfe, int)

recipe: Recipe = load_recipe("recipe.yaml")
result = dinit.train(recipe, out="runs/digits", resume=False)
report: Report = dinit.evaluate(pipe, num_samples=1000, dataset_name="digits", seed=1)

UNUSED = (denoiser_from_diffusers, sampler_from_diffusers, compare, GaussianDenoiser, NoiseSource, EMA)
