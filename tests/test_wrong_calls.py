"""Wrong calls in Python: each ends in an error that names what was given and what is accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dinit
from dinit import Pipeline, data, diffusion, models, samplers, training
from dinit.data import DATASETS
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.models.base import BACKBONES
from dinit.samplers import DDIM, GRIDS, SAMPLERS, Heun, guidance
from dinit.samplers.guidance import CFG, GUIDANCES
from dinit.samplers.ode.restart import Interval

NAMES = {
    "BACKBONES": BACKBONES,
    "CFG": CFG,
    "DATASETS": DATASETS,
    "DDIM": DDIM,
    "GRIDS": GRIDS,
    "GUIDANCES": GUIDANCES,
    "Heun": Heun,
    "Interval": Interval,
    "PARAMETERIZATIONS": PARAMETERIZATIONS,
    "PROCESSES": PROCESSES,
    "Pipeline": Pipeline,
    "SAMPLERS": SAMPLERS,
    "data": data,
    "diffusion": diffusion,
    "dinit": dinit,
    "guidance": guidance,
    "models": models,
    "np": np,
    "samplers": samplers,
    "torch": torch,
    "training": training,
}
INTERNAL = re.compile(
    r"not supported between|object has no attribute|NoneType|unexpected keyword|positional argument|object is not|"
    r"has no len|unsupported operand|cannot be interpreted|<class |Errno|<function|object at 0x|could not convert|"
    r"is not subscriptable|only integer|must be real number|size mismatch|shape '\[|Expected |expected scalar|"
    r"mat1 and mat2|new\(\)|too many dimensions|can't be cast|not iterable"
)

CALLS: list[tuple[str, tuple[str, ...]]] = [
    # constructors
    ("CFG('2')", ("scale must be a number, got '2'",)),
    ("CFG(None)", ("scale must be a number, got None",)),
    ("CFG(True)", ("scale must be a number, got True",)),
    ("CFG([2])", ("scale must be a number, got [2]",)),
    ("CFG(float('nan'))", ("scale must be a number, got nan",)),
    ("CFG(float('inf'))", ("scale", "inf")),
    ("CFG(-1)", ("scale", "-1")),
    ("CFG(torch.ones(2))", ("scale must be a number", "Tensor", "(2,)")),
    ("CFG(scal=2)", ("scal", "did you mean 'scale'")),
    ("CFG(1, 2, 3, 4, 5, 6, 7)", ("scale", "7")),
    ("CFG(low='a')", ("low must be a number, got 'a'",)),
    ("CFG(channels=1.5)", ("channels must be a whole number or None, got 1.5",)),
    ("CFG(schedule=3)", ("schedule", "3")),
    ("CFG(schedule='nope')", ("nope", "cosine")),
    ("CFG(DDIM())", ("scale must be a number", "DDIM")),
    ("DDIM('abc')", ("eta must be a number, got 'abc'",)),
    ("DDIM(eta=2)", ("eta", "2")),
    ("DDIM(1, 2)", ("eta", "2")),
    ("DDIM(steps=5)", ("steps", "eta")),
    ("Heun(order=2)", ("order",)),
    ("samplers.DEIS(order='two')", ("order must be a whole number, got 'two'",)),
    ("samplers.DEIS(order=2.0)", ("order must be a whole number, got 2.0",)),
    ("samplers.DEIS(order=0)", ("order", "0")),
    ("samplers.DPMpp2M(variant='mid')", ("variant must be 'midpoint' or 'heun', got 'mid'",)),
    ("samplers.UniPC(lower_order_final=1)", ("lower_order_final must be true or false, got 1",)),
    ("samplers.PredictorCorrector(predictor=DDIM)", ("predictor", "DDIM")),
    ("samplers.Restart(intervals=[3])", ("intervals", "3")),
    ("Interval(low='a', high=1)", ("low must be a number, got 'a'",)),
    ("samplers.Karras(rho='7')", ("rho must be a number, got '7'",)),
    ("samplers.Times(['a'])", ("values must be a list of numbers, got ['a']",)),
    ("samplers.Times(0.5)", ("values must be a list of numbers, got 0.5",)),
    ("diffusion.VP(beta_min='a')", ("beta_min must be a number, got 'a'",)),
    ("PROCESSES.create('vpp')", ("vpp", "did you mean 'vp'")),
    ("PROCESSES.create(3)", ("process", "3")),
    ("PROCESSES.create('vp-discrete', num_steps=10.5)", ("num_steps must be a whole number, got 10.5",)),
    ("PROCESSES.create('flow', shift=None)", ("shift must be a number, got None",)),
    ("PARAMETERIZATIONS.create('epsilon-prediction')", ("epsilon-prediction", "eps")),
    ("PARAMETERIZATIONS.create('edm', sigma_data='a')", ("sigma_data must be a number, got 'a'",)),
    ("BACKBONES.create('dit', depth='2')", ("depth must be a whole number, got '2'",)),
    ("BACKBONES.create('dit', hidden_size=30, num_heads=4)", ("30", "4")),
    ("BACKBONES.create('unet', dropout=None)", ("dropout must be a number, got None",)),
    ("DATASETS.create('glyphs', size='32')", ("size must be a whole number, got '32'",)),
    ("DATASETS.create('glyphs', split='trian')", ("trian", "train")),
    ("DATASETS.create('folder', path=3, size=8)", ("path must be", "got 3")),
    ("DATASETS.create('folder', path='nope', size=8)", ("nope",)),
    ("DATASETS.create('folder', size=8)", ("path",)),
    ("DATASETS.create('nope/')", ("there is no folder nope/",)),
    ("training.WEIGHTINGS.create('min-snr', gamma='5')", ("gamma must be a number, got '5'",)),
    ("training.TIME_SAMPLERS.create('log-normal', std=True)", ("std must be a number, got True",)),
    ("training.LOSS_TERMS.create('direction', weight='a')", ("weight must be a number, got 'a'",)),
    ("SAMPLERS.create('ddim', eta='abc')", ("eta must be a number, got 'abc'",)),
    ("SAMPLERS.create('ddim:eta=1', eta=1)", ("eta", "twice")),
    ("SAMPLERS.create({'eta': 1})", ("name", "eta")),
    ("SAMPLERS.create(DDIM)", ("DDIM", "DDIM()")),
    ("SAMPLERS.create(None)", ("sampler", "None")),
    ("SAMPLERS.create('20')", ("20", "steps=20")),
    ("GUIDANCES.create('2')", ("did you mean cfg:scale=2",)),
    ("GUIDANCES.create('cfg:2')", ("did you mean cfg:scale=2",)),
    ("GRIDS.create('7')", ("7", "steps=7")),
    ("SAMPLERS['karras']", ("karras", "grid='karras'")),
    # a sampler's own calls
    ("DDIM().sample(pipe, noise, 4)", ("pipe.denoiser(",)),
    ("DDIM().sample(pipe.backbone, noise, 4)", ("denoiser", "DiCo")),
    ("DDIM().sample('digits-dico', noise, 4)", ("denoiser", "'digits-dico'")),
    ("DDIM().sample(den, 'noise', 4)", ("initial_noise", "'noise'")),
    ("DDIM().sample(den, np.zeros((1, 1, 8, 8)), 4)", ("initial_noise", "ndarray", "torch.from_numpy")),
    ("DDIM().sample(den, (1, 1, 8, 8), 4)", ("initial_noise", "(1, 1, 8, 8)")),
    ("DDIM().sample(den, noise[0], 4)", ("(B, 1, H, W)", "(1, 8, 8)")),
    ("DDIM().sample(den, torch.randn(1, 3, 8, 8), 4)", ("(B, 1, H, W)", "(1, 3, 8, 8)")),
    ("DDIM().sample(den, torch.randn(1, 1, 9, 7), 4)", ("multiples of 4", "9 x 7")),
    ("DDIM().sample(den, torch.ones(1, 1, 8, 8, dtype=torch.int64), 4)", ("initial_noise", "int64")),
    ("DDIM().sample(den, torch.empty(0, 1, 8, 8), 4)", ("initial_noise", "(0, 1, 8, 8)")),
    ("DDIM().sample(den, noise)", ("steps",)),
    ("DDIM().sample(den, noise, 0)", ("steps", "at least 1", "0")),
    ("DDIM().sample(den, noise, 2.5)", ("steps", "2.5")),
    ("DDIM().sample(den, noise, '20')", ("steps", "'20'")),
    ("DDIM().sample(den, noise, True)", ("steps", "True")),
    ("DDIM().sample(den, noise, torch.linspace(1, 0, 5))", ("steps", "grid")),
    ("DDIM().sample(den, noise, grid=torch.linspace(0.1, 0.9, 5))", ("decreasing",)),
    ("DDIM().sample(den, noise, grid=torch.linspace(1000, 0, 5))", ("[0, ", "1000")),
    ("DDIM().sample(den, noise, grid=[0.5, 0.9])", ("decreasing", "[0.5, 0.9]")),
    ("DDIM().sample(den, noise, grid=['a'])", ("grid", "['a']")),
    ("DDIM().sample(den, noise, 4, grid='nope')", ("nope", "karras")),
    ("DDIM().sample(den, noise, 4, grid=samplers.Karras)", ("Karras", "Karras()")),
    ("DDIM().sample(den, noise, 4, labels=['three'])", ("labels", "'three'")),
    ("DDIM().sample(den, noise, 4, labels=[3.5])", ("labels", "3.5")),
    ("DDIM().sample(den, noise, 4, labels=torch.tensor([[3]]))", ("labels", "(1, 1)")),
    ("DDIM().sample(den, noise, 4, labels=3)", ("labels", "1 label")),
    ("DDIM().sample(den, noise, 4, labels=[3, 4])", ("labels", "1")),
    ("DDIM().sample(den, noise, 4, labels=[55])", ("55", "0 .. 9")),
    ("DDIM().sample(den, noise, 4, seed='a')", ("seed", "'a'")),
    ("DDIM().sample(den, noise, 4, seed=torch.Generator())", ("seed", "Generator")),
    ("DDIM().sample(den, noise, 4, noise_source=torch.Generator())", ("noise_source", "Generator")),
    ("DDIM().sample(den, noise, 4, end='cleaned')", ("cleaned", "'clean'")),
    ("DDIM().sample(den, noise, 4, initial_state='x')", ("initial_state", "'x'")),
    ("DDIM.sample(den, noise, 4)", ("DDIM()",)),
    ("DDIM().describe('vpp', 4)", ("vpp",)),
    # a pipeline's calls
    ("pipe(['eleven'])", ("eleven",)),
    ("pipe([3.5])", ("3.5",)),
    ("pipe([[3], [4]])", ("[3]",)),
    ("pipe(torch.tensor([[3], [4]]))", ("[3]",)),
    ("pipe(torch.tensor([3.0]))", ("3.0",)),
    ("pipe(True)", ("True",)),
    ("pipe([10])", ("10", "0 .. 9")),
    ("pipe([-1])", ("-1", "0 .. 9")),
    ("pipe([])", ("labels",)),
    ("pipe({'class': 3})", ("{'class': 3}",)),
    ("pipe(noise)", ("label",)),
    ("pipe(3, 20)", ("20",)),
    ("pipe(3, steps=0)", ("steps", "at least 1", "0")),
    ("pipe(3, steps=2.5)", ("steps", "2.5")),
    ("pipe(3, steps='20')", ("steps", "'20'")),
    ("pipe(3, steps=-1)", ("steps", "-1")),
    ("pipe(3, stepz=4)", ("stepz", "steps")),
    ("pipe(3, sampler=DDIM)", ("DDIM", "DDIM()")),
    ("pipe(3, sampler='ddimm')", ("ddimm", "ddim")),
    ("pipe(3, sampler=20)", ("sampler", "20", "steps=20")),
    ("pipe(3, sampler=CFG(2))", ("sampler", "CFG")),
    ("pipe(3, sampler='cfg')", ("cfg", "guidance='cfg'")),
    ("pipe(3, sampler=[DDIM()])", ("sampler", "[DDIM")),
    ("pipe(3, sampler=lambda x: x)", ("sampler",)),
    ("pipe(3, guidance=CFG)", ("CFG", "CFG()")),
    ("pipe(3, guidance='2')", ("cfg:scale=2",)),
    ("pipe(3, guidance=DDIM())", ("guidance", "DDIM")),
    ("pipe(3, guidance=True)", ("True",)),
    ("pipe(3, guidance=[2, 'nope'])", ("nope",)),
    ("pipe(3, guidance={'scale': 2})", ("name", "scale")),
    ("pipe(3, guidance=2, guidance_scale=2)", ("guidance", "guidance_scale")),
    ("pipe(3, guidance_scale='2')", ("guidance_scale must be a number, got '2'",)),
    ("pipe(3, guidance=float('nan'))", ("scale must be a number, got nan",)),
    ("pipe(3, grid=torch.linspace(0, 1, 5))", ("decreasing",)),
    ("pipe(3, grid=[0.5, 0.9])", ("decreasing", "[0.5, 0.9]")),
    ("pipe(3, grid=['a'])", ("grid", "['a']")),
    ("pipe(3, grid=7)", ("grid", "7", "steps=7")),
    ("pipe(3, grid=torch.zeros(0))", ("grid", "decreasing")),
    ("pipe(3, grid=torch.tensor([0.9, float('nan')]))", ("values must be a list of numbers", "nan")),
    ("pipe(3, grid=samplers.Karras)", ("Karras()",)),
    ("pipe(3, grid=np.array([0.1, 0.9]))", ("decreasing",)),
    ("pipe(3, seed='a')", ("seed", "'a'")),
    ("pipe(3, seed=1.5)", ("seed", "1.5")),
    ("pipe(3, seed=torch.Generator())", ("seed", "generator=")),
    ("pipe(3, seed=[1, 2])", ("seed", "2")),
    ("pipe(3, generator=5)", ("generator", "5", "seed=")),
    ("pipe(3, num_images=0)", ("num_images", "at least 1", "0")),
    ("pipe(3, num_images=2.5)", ("num_images", "2.5")),
    ("pipe([3, 4], num_images=3)", ("num_images", "3")),
    ("pipe(3, batch_size=0)", ("batch_size", "at least 1", "0")),
    ("pipe(3, batch_size='4')", ("batch_size", "'4'")),
    ("pipe(3, start_index=-1)", ("start_index", "-1")),
    ("pipe(3, output_type='png')", ("png", "pil")),
    ("pipe(3, output_type=None)", ("None", "pil")),
    ("pipe(3, end='cleaned')", ("cleaned", "'clean'")),
    ("pipe(3, eta='a')", ("eta must be a number, got 'a'",)),
    ("pipe(3, eta=0.5, sampler='heun')", ("eta", "ddim")),
    ("pipe(3, callback_on_step_end=5)", ("callback_on_step_end", "5")),
    ("pipe(3, latents=noise)", ("latents", "sample")),
    ("pipe(prompt='a cat')", ("prompt", "labels")),
    ("pipe.denoiser(['eleven'])", ("eleven",)),
    # making and opening pipelines
    ("Pipeline(den)", ("backbone", "denoiser")),
    ("Pipeline(den, 'vp', 'v')", ("backbone", "denoiser")),
    ("Pipeline(pipe, 'vp', 'v')", ("backbone", "Pipeline")),
    ("Pipeline('dit', 'vp', 'v')", ("backbone", "'dit'", "BACKBONES.create")),
    ("Pipeline(models.DiT, 'vp', 'v')", ("DiT", "DiT(")),
    ("Pipeline(torch.nn.Linear(2, 2), 'vp', 'v')", ("backbone", "Linear")),
    ("Pipeline(None, 'vp', 'v')", ("backbone", "None")),
    ("Pipeline(pipe.backbone)", ("process=", "parameterization=")),
    ("Pipeline(pipe.backbone, 'vpp', 'v')", ("vpp",)),
    ("Pipeline(pipe.backbone, DDIM(), 'v')", ("process", "DDIM")),
    ("Pipeline(pipe.backbone, diffusion.VP, 'v')", ("VP", "VP()")),
    ("Pipeline(pipe.backbone, 'vp', CFG(2))", ("parameterization", "CFG")),
    ("Pipeline(pipe.backbone, 'vp', 'v', class_names=['a'])", ("1", "10")),
    ("Pipeline(pipe.backbone, 'vp', 'v', class_names=3)", ("class_names", "3")),
    ("Pipeline(pipe.backbone, 'vp', 'v', t_max='a')", ("t_max", "'a'")),
    ("Pipeline(pipe.backbone, 'vp', 'v', t_max=2)", ("t_max", "2")),
    ("Pipeline(pipe.backbone, 'vp', 'v', defaults={'stepz': 4})", ("stepz", "steps")),
    ("Pipeline(pipe.backbone, 'vp', 'v', defaults='ddim')", ("defaults", "'ddim'")),
    ("Pipeline(pipe.backbone, 'vp', 'v', vae='vae')", ("vae", "'vae'")),
    ("Pipeline.from_pretrained('digits-dti')", ("digits-dti", "did you mean 'digits-dit'")),
    ("Pipeline.from_pretrained(3)", ("3",)),
    ("Pipeline.from_pretrained(None)", ("None",)),
    ("Pipeline.from_pretrained(pipe)", ("Pipeline",)),
    ("Pipeline.from_pretrained('nope/')", ("nope/",)),
    ("Pipeline.from_pretrained('digits-dico', dtype='float16')", ("float16", "torch.")),
    ("Pipeline.from_pretrained('digits-dico', device='gpu')", ("gpu", "cuda")),
    ("Pipeline.from_pretrained('digits-dico', scheduler=1)", ("scheduler",)),
    ("setattr(pipe, 'sampler', DDIM)", ("DDIM()",)),
    ("setattr(pipe, 'steps', '20')", ("steps", "'20'")),
    ("setattr(pipe, 'stepz', 20)", ("stepz", "steps")),
    ("pipe.unet", ("pipe.backbone",)),
    # functions
    ("guidance.apply_guidance(den, CFG)", ("CFG()",)),
    ("guidance.apply_guidance(pipe, CFG(2))", ("pipe.denoiser(",)),
    ("guidance.apply_guidance(den, 3)", ("guidance", "3")),
    ("samplers.invert('ddim', pipe, noise, 4)", ("pipe.denoiser(",)),
    ("samplers.compare(pipe, noise, None, ['ddim'], 4)", ("pipe.denoiser(",)),
    ("samplers.compare(den, noise, None, 'ddim', 4)", ("samplers", "'ddim'")),
    ("samplers.compare(den, noise, None, [DDIM], 4)", ("DDIM()",)),
    ("data.Digits(split=3)", ("split must be a text, got 3",)),
    ("training.load_recipe('nope.yaml')", ("nope.yaml",)),
    ("training.load_recipe(3)", ("3",)),
    ("dinit.train('nope.yaml', 'out')", ("nope.yaml",)),
    ("dinit.evaluate(pipe, 0)", ("num_samples", "0")),
    ("dinit.evaluate('nope', 10)", ("nope",)),
]
"""Each a call, and what its error has in it."""


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    pipe = Pipeline.from_pretrained("digits-dico")
    pipe.set_progress_bar_config(disable=True)
    own = {"pipe": pipe, "den": pipe.denoiser([3]), "noise": torch.randn(1, 1, 8, 8)}
    return {**NAMES, **own}


@pytest.mark.parametrize(("call", "named"), CALLS, ids=[call for call, _ in CALLS])
def test_a_wrong_call_ends_in_an_error_that_helps(
    call: str,
    named: tuple[str, ...],
    names: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError, OSError)) as raised:
        eval(call, names)
    text = str(raised.value)
    assert not INTERNAL.search(text), text
    assert len(text) <= 24 * 76, text
    missing = [one for one in named if one not in text]
    assert not missing, f"{missing} not in: {text}"
    assert not list(tmp_path.iterdir()), "files were written"


@pytest.mark.parametrize(
    "call",
    [
        "DDIM(np.float32(0.5))",
        "DDIM(torch.tensor(0.5))",
        "DDIM(1)",
        "samplers.DEIS(order=np.int64(2))",
        "samplers.UniPC(uncorrected=[1])",
        "samplers.Times([0.9, 0.1])",
        "samplers.Times(np.array([0.9, 0.1]))",
        "samplers.Times(torch.tensor([0.75, 0.25]))",
        "samplers.DPMpp2M(order=np.int64(1))",
        "guidance.ClipX0(limit=float('inf'))",
        "SAMPLERS.create('DPM++ 2M')",
        "SAMPLERS.create('unipc:uncorrected=[1,2]')",
        "CFG(np.float64(2))",
        "pipe(np.int64(3), steps=np.int64(1))",
        "pipe(torch.tensor([3]), steps=1)",
        "pipe(np.array([3]), steps=1, seed=np.int64(5))",
        "pipe('3', steps=1, guidance=np.float32(2))",
        "pipe([3, 4], steps=1, seed=[5, 6])",
        "pipe([3], sampler={'name': 'ddim', 'eta': 1}, steps=1, guidance=[2, 'clip-x0'])",
        "pipe(3, grid=np.array([0.9, 0.1]))",
        "pipe(3, grid=[0.9, 0.1])",
        "DDIM().sample(den, noise, grid=(0.9, 0.1))",
        "DDIM().sample(den, noise, np.int64(2), labels=[3])",
        "DDIM().sample(den, noise, 2, seed=np.int64(3))",
        "data.Digits(split='test')",
    ],
)
def test_a_right_sibling_stays_right(call: str, names: dict[str, Any]) -> None:
    assert eval(call, names) is not None


def test_a_number_of_another_library_becomes_a_plain_one() -> None:
    assert type(DDIM(np.float32(0.5)).eta) is float
    assert DDIM(torch.tensor(0.25)) == DDIM(0.25)
    assert samplers.Times([0.9, 0.1]) == samplers.Times((0.9, 0.1))
    assert type(samplers.DEIS(order=np.int64(2)).order) is int
