"""Calls that a type checker must refuse: each line marked `# error expected`, and no other.

Checked by tests/test_typing.py; nothing here is run.
"""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

import dinit
from dinit import DiTT  # error expected
from dinit.checkpoints import sampler_from_diffusers
from dinit.data import Digits, Digit  # error expected
from dinit.diffusion import Epsilon, LinearFlow, VPDiscrete
from dinit.models import ADMClassifier, DiCo, DiT, SiT
from dinit.samplers import DDIM, GRIDS, SAMPLERS, Heun, Karras, Sampler, compare, invert, search_timesteps
from dinit.samplers import DDMI  # error expected
from dinit.samplers import CFG as FromTheWrongPlace  # error expected
from dinit.samplers.guidance import CADS, CFG
from dinit.training import EMA, load_recipe

# A misspelt option, a value of a wrong type, a missing argument.
DDIM(etta=0.5)  # error expected
DDIM(eta="a little")  # error expected
DDIM(0.5, nonsense=True)  # error expected
Karras(roh=5.0)  # error expected
CFG(scael=2.0)  # error expected
CADS(tau_1=0.6)  # error expected
CFG(2.0).scle  # error expected
LinearFlow(shfit=2.0)  # error expected
VPDiscrete(number_of_steps=10)  # error expected
Epsilon(scale=2.0)  # error expected
DiT(hiden_size=64)  # error expected
DiT(depth="two")  # error expected
DiCo(class_count=10)  # error expected
SiT(spare_hlf=True)  # error expected
ADMClassifier(channel="many")  # error expected
Digits(splt="test")  # error expected
EMA(decai=0.9)  # error expected

# An object of another kind.
wrong: Sampler = CFG(2.0)  # error expected
class_for_object: Sampler = Heun  # error expected

# The calls.
pipe = dinit.Pipeline.from_pretrained("digits-dico")
pipe([3], stepz=20)  # error expected
pipe([3], num_inference_step=20)  # error expected
pipe([3], steps="many")  # error expected
pipe([3], guidance=object())  # error expected
pipe([3], return_dict=False).images  # error expected
pipe.prepare([3], stepz=20)  # error expected
dinit.Pipeline.from_pretrained("digits-dico", dtyp=torch.float16)  # error expected
pipe.denoiser(label=[3])  # error expected
recipe = load_recipe("recipe.yaml")
dinit.train(recipe, output="runs/digits")  # error expected
dinit.train("recipe.yaml", out="runs/digits")  # error expected
dinit.evaluate(pipe, samples=1000)  # error expected
dinit.evaluate(pipe, stepz=20)  # error expected
dinit.evalute(pipe)  # error expected
dinit.list_samplers(patern="*2m*")  # error expected
denoiser, noise = pipe.denoiser(), torch.zeros(1, 1, 8, 8)
Heun().iterate(denoiser, noise, stepz=18)  # error expected
Heun().sample(denoiser, noise, 18, gird="karras")  # error expected
Heun().sample(denoiser, noise, 18, end="x0")  # error expected
Heun().sample(denoiser, noise, seed="3")  # error expected
Heun().describe("vp", stepz=18)  # error expected
invert("ddim", denoiser, noise, 18, lables=[3])  # error expected
invert("ddim", denoiser, noise, 18, end="state")  # error expected
compare(denoiser, noise, None, ["ddim"], step=4)  # error expected
compare(denoiser, noise, None, [CFG(2.0)], 4)  # error expected
search_timesteps(denoiser, "ddim", 8, len, noise=noise, girds="karras")  # error expected
sampler_from_diffusers(EulerDiscreteScheduler()).iterate(denoiser, noise, 18, sede=1)  # error expected
sampler_from_diffusers(EulerDiscreteScheduler(), option={})  # error expected
sampler_from_diffusers("euler")  # error expected
SAMPLERS.create("ddim").eta  # error expected
another_kind: Sampler = GRIDS.create("karras")  # error expected
