"""Calls as users of diffusers type them: they mean the same here, or are answered in one line.

A row for every habit. SAME: two ways of saying one thing. REFUSED: what is answered, and with which words.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import dinit
from dinit.models.base import Backbone
from dinit.pipelines.call import DEFAULT
from dinit.pipelines.generate import KEYWORDS, Generated, LoadOptions, OutputOptions, Pipeline
from dinit.samplers import DDIM, SAMPLERS, Heun
from dinit.samplers.grids.karras import Karras
from dinit.samplers.guidance import CFG, ClipX0

TRAINED: Any = diffusers.DDPMScheduler(
    beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
)


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return Pipeline.from_pretrained("digits-dico")


@pytest.fixture
def pipe(shipped: Pipeline) -> Pipeline:
    """digits-dico, whose defaults a test may change: 2 steps of DDIM, CFG at 1.5."""
    fresh = Pipeline(**shipped.components, **shipped.parameters)
    fresh.steps = 2
    fresh.set_progress_bar_config(disable=True)
    return fresh


def images(made: Any) -> Tensor:
    return made.images


def latents(pipe: Pipeline, *arguments: Any, **options: Any) -> Tensor:
    return pipe(*arguments, output_type="latent", **options).images


def generator(seed: int = 33) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int = 33) -> int:
    """The seed that is read from a fresh generator."""
    return int(torch.randint(2**63 - 1, (), generator=generator(seed)))


def assigned(pipe: Pipeline, **defaults: Any) -> Pipeline:
    for name, value in defaults.items():
        setattr(pipe, name, value)
    return pipe


Made = Callable[[Pipeline], Tensor]

SAME: dict[str, tuple[Made, Made]] = {
    "class_labels": (lambda p: latents(p, class_labels=[3]), lambda p: latents(p, [3])),
    "num_inference_steps": (lambda p: latents(p, 3, num_inference_steps=3), lambda p: latents(p, 3, steps=3)),
    "guidance_scale": (lambda p: latents(p, 3, guidance_scale=4.0), lambda p: latents(p, 3, guidance=CFG(4.0))),
    "guidance_scale of 1 is none": (
        lambda p: latents(p, 3, guidance_scale=1.0),
        lambda p: latents(p, 3, guidance=[]),
    ),
    "guidance_scale keeps what is not CFG": (
        lambda p: latents(assigned(p, guidance=[CFG(1.5), ClipX0()]), 3, guidance_scale=4),
        lambda p: latents(p, 3, guidance=[CFG(4.0), ClipX0()]),
    ),
    "guidance_scale without a default CFG": (
        lambda p: latents(assigned(p, guidance=ClipX0()), 3, guidance_scale=4),
        lambda p: latents(p, 3, guidance=[CFG(4.0), ClipX0()]),
    ),
    "eta": (
        lambda p: latents(p, 3, eta=0.5),
        lambda p: latents(p, 3, sampler=DDIM(eta=0.5)),
    ),
    "eta of a scheduler": (
        lambda p: latents(p, 3, sampler=diffusers.DDIMScheduler.from_config(TRAINED.config), eta=1.0, steps=4),
        lambda p: latents(p, 3, sampler=_eta_one(), steps=4),
    ),
    "generator": (lambda p: latents(p, [3, 1], generator=generator()), lambda p: latents(p, [3, 1], seed=drawn())),
    "generators": (
        lambda p: latents(p, [3, 1], generator=[generator(1), generator(2)]),
        lambda p: latents(p, [3, 1], seed=[drawn(1), drawn(2)]),
    ),
    "one generator, one image, is a list of it": (
        lambda p: latents(p, 3, generator=generator()),
        lambda p: latents(p, 3, generator=[generator()]),
    ),
    "batch_size of DDPMPipeline": (lambda p: latents(p, batch_size=4), lambda p: latents(p, num_images=4)),
    "no arguments": (lambda p: latents(p), lambda p: latents(p, None, num_images=1)),
    "one number is a label": (lambda p: latents(p, 4), lambda p: latents(p, [4])),
    "class by name": (lambda p: latents(p, "3"), lambda p: latents(p, [3])),
    "guidance as a number": (lambda p: latents(p, 3, guidance=4), lambda p: latents(p, 3, guidance=CFG(4.0))),
    "guidance of numbers": (lambda p: latents(p, 3, guidance=[4.0]), lambda p: latents(p, 3, guidance=CFG(4.0))),
    "guidance as on the command line": (
        lambda p: latents(p, 3, guidance="cfg:scale=4"),
        lambda p: latents(p, 3, guidance=CFG(4.0)),
    ),
    "guidance None is none": (lambda p: latents(p, 3, guidance=None), lambda p: latents(p, 3, guidance=[])),
    "guidance 'none' is none": (lambda p: latents(p, 3, guidance="none"), lambda p: latents(p, 3, guidance=())),
    "guidance DEFAULT": (lambda p: latents(p, 3, guidance=DEFAULT), lambda p: latents(p, 3, guidance=CFG(1.5))),
    "sampler as on the command line": (
        lambda p: latents(p, 3, sampler="ddim:eta=0.5"),
        lambda p: latents(p, 3, sampler=DDIM(eta=0.5)),
    ),
    "sampler in capitals": (lambda p: latents(p, 3, sampler="DDIM"), lambda p: latents(p, 3, sampler="ddim")),
    "sampler with an underscore": (
        lambda p: latents(p, 3, sampler="dpmpp_2m"),
        lambda p: latents(p, 3, sampler="dpmpp-2m"),
    ),
    "euler_a": (lambda p: latents(p, 3, sampler="euler_a"), lambda p: latents(p, 3, sampler="ancestral")),
    "edm": (lambda p: latents(p, 3, sampler="edm"), lambda p: latents(p, 3, sampler="edm-heun")),
    "grid as on the command line": (
        lambda p: latents(p, 3, grid="karras:rho=5"),
        lambda p: latents(p, 3, grid=Karras(rho=5)),
    ),
    "a diffusers scheduler as sampler": (
        lambda p: latents(p, 3, sampler=diffusers.DPMSolverMultistepScheduler.from_config(TRAINED.config)),
        lambda p: latents(
            assigned(p, scheduler=diffusers.DPMSolverMultistepScheduler.from_config(p.scheduler.config)), 3
        ),
    ),
    "pipe.sampler": (lambda p: latents(assigned(p, sampler="heun"), 3), lambda p: latents(p, 3, sampler=Heun())),
    "pipe.steps": (lambda p: latents(assigned(p, steps=3), 3), lambda p: latents(p, 3, steps=3)),
    "pipe.guidance": (lambda p: latents(assigned(p, guidance=4.0), 3), lambda p: latents(p, 3, guidance=CFG(4.0))),
    "pipe.guidance = None": (
        lambda p: latents(assigned(p, guidance=None), 3),
        lambda p: latents(p, 3, guidance=[]),
    ),
    "pipe.grid": (lambda p: latents(assigned(p, grid="karras"), 3), lambda p: latents(p, 3, grid="karras")),
    "return_dict": (
        lambda p: p(3, output_type="latent", return_dict=False)[0],
        lambda p: latents(p, 3),
    ),
    "the images are the first of what comes back": (
        lambda p: p(3, output_type="latent")[0],
        lambda p: latents(p, 3),
    ),
}


def _eta_one() -> Any:
    from dinit.checkpoints.from_diffusers import sampler_from_diffusers

    return sampler_from_diffusers(diffusers.DDIMScheduler.from_config(TRAINED.config), {"eta": 1.0})


@pytest.mark.parametrize("habit", SAME)
def test_means_the_same(habit: str, shipped: Pipeline) -> None:
    """Each side on a pipeline of its own, so that a default that one assigns is not the other's."""
    made = []
    for side in SAME[habit]:
        pipe = Pipeline(**shipped.components, **shipped.parameters)
        pipe.steps = 2
        pipe.set_progress_bar_config(disable=True)
        made.append(side(pipe))
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3},
        {"guidance": 4.0},
        {"guidance": []},
        {"sampler": "heun"},
        {"sampler": DDIM(eta=0.5)},
        {"sampler": "ancestral"},
        {"seed": drawn()},
        {"grid": "karras"},
        {"sampler": diffusers.DPMSolverMultistepScheduler.from_config(TRAINED.config)},
    ],
    ids=str,
)
def test_what_is_compared_above_differs_from_the_defaults(options: dict[str, Any], pipe: Pipeline) -> None:
    assert not torch.equal(latents(pipe, 3, **options), latents(pipe, 3))


REFUSED: dict[str, tuple[Callable[[Pipeline], Any], str]] = {
    "misspelt": (lambda p: p([3], stepz=20), "has no keyword 'stepz'; did you mean 'steps'"),
    "prompt": (lambda p: p(prompt="a cat"), "take classes, not texts"),
    "negative_prompt": (lambda p: p([3], negative_prompt=""), "uses the null class by itself"),
    "height": (lambda p: p([3], height=64), "see pipe.image_size"),
    "timesteps": (lambda p: p([3], timesteps=[999, 500]), "grid= takes"),
    "sigmas": (lambda p: p([3], sigmas=[80.0, 1.0]), "grid= takes"),
    "latents": (lambda p: p([3], latents=torch.zeros(1, 1, 8, 8)), "initial noise of image k comes from the key"),
    "num_images_per_prompt": (lambda p: p([3], num_images_per_prompt=4), "num_images= repeats one label"),
    "seeds": (lambda p: p([3], seeds=[1]), "seed= takes one number, or a list"),
    "scheduler=": (lambda p: p([3], scheduler=TRAINED), "a scheduler goes into sampler="),
    "callback": (lambda p: p([3], callback=print), "callback_on_step_end= is called after every step"),
    "two foreign ones": (lambda p: p([3], height=64, stepz=2), "see pipe.image_size"),
    "a second positional": (lambda p: p([3], 4.0), "only labels go without a keyword, got 4.0"),
    "prepare": (lambda p: p.prepare([3], negative_prompt=""), "uses the null class by itself"),
    "labels twice": (lambda p: p([3], class_labels=[3]), "labels and class_labels are the same"),
    "steps twice": (lambda p: p([3], steps=2, num_inference_steps=2), "steps and num_inference_steps are the same"),
    "guidance twice": (lambda p: p([3], guidance=2, guidance_scale=2), "give one of them"),
    "seed and generator": (lambda p: p([3], seed=1, generator=generator()), "give one of them"),
    "a generator as seed": (lambda p: p([3], seed=generator()), "give a torch.Generator as generator="),
    "too few generators": (lambda p: p([3, 1], generator=[generator()]), "one for each of 2 images; got 1"),
    "generator of another kind": (lambda p: p([3], generator=33), "generator must be a torch.Generator"),
    "eta of a sampler without": (
        lambda p: p([3], sampler="heun", eta=0.5),
        "Heun has no eta; samplers that have: ",
    ),
    "eta out of range": (lambda p: p([3], eta=2.0), "eta must be in [0, 1]"),
    "eta of a scheduler without": (
        lambda p: p([3], sampler=diffusers.UniPCMultistepScheduler.from_config(TRAINED.config), eta=1.0),
        "has no eta",
    ),
    "guidance=True": (lambda p: p([3], guidance=True), "None or [] is no guidance, a number the scale of CFG"),
    "guidance=False": (lambda p: p([3], guidance=False), "None or [] is no guidance, a number the scale of CFG"),
    "guidance of another kind": (lambda p: p([3], guidance=object()), "guidance must be a Guidance"),
    "guidance_scale of another kind": (lambda p: p([3], guidance_scale="4"), "guidance_scale must be a number"),
    "guidance_scale on another method": (
        lambda p: assigned(p, guidance="apg")([3], guidance_scale=4.0),
        "guidance_scale is the scale of CFG, and the default guidance of this pipeline is APG",
    ),
    "sampler class": (lambda p: p([3], sampler=DDIM), "got the class DDIM: call it, DDIM()"),
    "guidance class": (lambda p: p([3], guidance=CFG), "got the class CFG: call it, CFG()"),
    "scheduler class": (
        lambda p: p([3], sampler=diffusers.DDIMScheduler),
        "make one, DDIMScheduler.from_config(pipe.scheduler.config)",
    ),
    "another object as sampler": (lambda p: p([3], sampler=CFG(2.0)), "sampler must be a Sampler"),
    "output_type": (lambda p: p([3], output_type="numpy"), "unknown output type 'numpy'; did you mean 'np'"),
    "two counts": (lambda p: p([3, 1], num_images=4), "num_images = 4 contradicts 2 labels"),
    "unknown class": (lambda p: p("three"), "unknown class 'three'"),
    "the null class by number": (lambda p: p(10), "classes 0 .. 9; no class, the null class, is None"),
    "batch_size of 0": (lambda p: p(batch_size=0), "batch_size must be at least 1"),
    "callback of two arguments": (
        lambda p: p([3], callback_on_step_end=lambda step, x: None),
        "must take one argument, the Step, or diffusers' four",
    ),
    "callback that is none": (lambda p: p([3], callback_on_step_end=5), "must be callable"),
    "pipe.steps = 0": (lambda p: assigned(p, steps=0), "steps must be at least 1"),
    "pipe.steps = '50'": (lambda p: assigned(p, steps="50"), "whole number"),
    "pipe.sampler = 'dddim'": (lambda p: assigned(p, sampler="dddim"), "unknown sampler 'dddim'"),
    "pipe.guidance = True": (lambda p: assigned(p, guidance=True), "None or [] is no guidance"),
    "pipe.grid = 'krras'": (lambda p: assigned(p, grid="krras"), "did you mean 'karras'"),
    "pipe.scheduler = a name": (lambda p: assigned(p, scheduler="heun"), "see pipe.sampler"),
    "a scheduler of another schedule": (
        lambda p: assigned(p, scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")),
        "it would take its steps at wrong noise levels",
    ),
    "a scheduler of another prediction": (
        lambda p: assigned(
            p, scheduler=diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
        ),
        "make it with prediction_type='v_prediction'",
    ),
    "sampler= of another schedule": (
        lambda p: p([3], sampler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")),
        "it would take its steps at wrong noise levels",
    ),
    "from_pretrained(sampler=)": (
        lambda p: Pipeline.from_pretrained("digits-dico", sampler="heun"),  # pyright: ignore
        "no keyword 'sampler': assign it after opening: pipe.sampler = sampler",
    ),
    "from_pretrained(scheduler=)": (
        lambda p: Pipeline.from_pretrained("digits-dico", scheduler=TRAINED),  # pyright: ignore
        "assign it after opening: pipe.scheduler = scheduler",
    ),
    "from_pretrained, misspelt": (
        lambda p: Pipeline.from_pretrained("digits-dico", dtyp=torch.float16),  # pyright: ignore
        "no keyword 'dtyp'; did you mean 'dtype'",
    ),
    "from_pretrained(custom_pipeline=)": (
        lambda p: Pipeline.from_pretrained("digits-dico", custom_pipeline="x"),  # pyright: ignore
        "no code from a folder or a repository is run",
    ),
    "from_pretrained of a dtype by name": (
        lambda p: Pipeline.from_pretrained("digits-dico", dtype="bfloat16"),  # pyright: ignore
        "dtype must be a torch.dtype",
    ),
    "from_pretrained of two dtypes": (
        lambda p: Pipeline.from_pretrained("digits-dico", dtype=torch.bfloat16, torch_dtype=torch.float16),
        "differ; give one of them",
    ),
    "from_pretrained of pickles": (
        lambda p: Pipeline.from_pretrained("digits-dico", use_safetensors=False),
        "pickled weights can run code",
    ),
    "enable_vae_slicing": (lambda p: p.enable_vae_slicing(), "this one has none"),
    "enable_vae_tiling": (lambda p: p.enable_vae_tiling(), "this one has none"),
}


@pytest.mark.parametrize("habit", REFUSED)
def test_is_answered_before_the_network_is_evaluated(habit: str, pipe: Pipeline, monkeypatch) -> None:
    monkeypatch.setattr(pipe.backbone, "forward", None)
    call, message = REFUSED[habit]
    with pytest.raises(ValueError, match=re.escape(message)):
        call(pipe)


def test_two_foreign_keywords_get_a_line_each(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="image_size") as caught:
        pipe([3], height=64, stepz=2)  # pyright: ignore
    first, second = str(caught.value).splitlines()
    assert "'height'" in first
    assert "'stepz'; did you mean 'steps'" in second


ATTRIBUTES = {
    "stepz": "did you mean 'steps'",
    "samplr": "did you mean 'sampler'",
    "num_inference_steps": "the default number of steps is pipe.steps",
    "guidance_scale": "the default guidance is pipe.guidance",
    "unet": "the network is pipe.backbone",
    "_interrupt": "raise an exception in callback_on_step_end",
    "anything": "known: ",
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_unknown_attribute_is_not_accepted(name: str, pipe: Pipeline) -> None:
    with pytest.raises(AttributeError, match=re.escape(ATTRIBUTES[name])):
        setattr(pipe, name, 50)


@pytest.mark.parametrize("name", ["unet", "model", "half", "cuda", "samplr", "tokenizer"])
def test_an_unknown_attribute_is_answered(name: str, pipe: Pipeline) -> None:
    with pytest.raises(AttributeError, match=r"a dinit Pipeline has no attribute .*(: |did you mean)"):
        getattr(pipe, name)
    assert not hasattr(pipe, name)


def test_attributes_without_a_setter_stay(pipe: Pipeline) -> None:
    for name in ("process", "parameterization", "device", "defaults", "num_classes", "codec"):
        with pytest.raises(AttributeError):
            setattr(pipe, name, None)


def test_defaults_read_back(pipe: Pipeline, tmp_path: Path) -> None:
    assigned(pipe, sampler="ddim:eta=0.5", steps=3, grid="karras", guidance=[4.0, "clip-x0"])
    assert (pipe.sampler, pipe.steps, pipe.grid) == (DDIM(eta=0.5), 3, Karras())
    assert pipe.guidance == (CFG(4.0), ClipX0())
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.defaults == pipe.defaults
    assert torch.equal(latents(loaded, 3), latents(pipe, 3))
    assigned(pipe, sampler=None, steps=None, grid=None, guidance=None)
    assert (pipe.sampler, pipe.steps, pipe.grid, pipe.guidance) == (None, None, None, ())
    with pytest.raises(ValueError, match="give a sampler"):
        pipe(3)


def test_the_published_call_of_dit_pipeline(pipe: Pipeline) -> None:
    """As the documentation of diffusers' DiTPipeline has it, but for the class numbers."""
    made = pipe(
        class_labels=[2, 3],
        guidance_scale=4.0,
        num_inference_steps=2,
        generator=torch.manual_seed(33),
        output_type="pil",
        return_dict=False,
    )
    assert isinstance(made, tuple)
    assert [picture.size for picture in made[0]] == [(8, 8)] * 2
    call = pipe.prepare([2, 3], seed=drawn(), guidance=4.0)
    assert [p.tobytes() for p in pipe.run(call).images] == [p.tobytes() for p in made[0]]


@pytest.mark.parametrize("more", [{}, {"eta": 0.5}], ids=["DDPMPipeline", "DDIMPipeline"])
def test_the_published_calls_of_unconditional_pipelines(pipe: Pipeline, more: dict[str, Any]) -> None:
    made = pipe(batch_size=4, generator=torch.manual_seed(0), num_inference_steps=2, output_type="np", **more)
    assert made.images.shape == (4, 8, 8, 1)
    assert made.call.labels == (None,) * 4


def test_a_generator_is_advanced_and_its_state_decides(pipe: Pipeline) -> None:
    one = generator()
    first, second = (latents(pipe, 3, generator=one) for _ in range(2))
    assert not torch.equal(first, second)
    state = generator()
    torch.randint(2**63 - 1, (), generator=state)
    assert torch.equal(latents(pipe, 3, generator=state), second)


def test_no_seed_draws_one_that_is_recorded(pipe: Pipeline) -> None:
    made = [pipe(3, seed=None, output_type="latent") for _ in range(2)]
    assert not torch.equal(images(made[0]), images(made[1]))
    (seed, index) = made[0].call.keys[0]
    assert index == 0
    assert torch.equal(latents(pipe, 3, seed=seed), images(made[0]))


def test_batch_size_with_labels_changes_speed_only(pipe: Pipeline) -> None:
    made = pipe([3, 1, 4], batch_size=2, output_type="latent")
    assert len(made.images) == 3
    assert made.call.batch_size == 2
    assert len(latents(pipe, 3, batch_size=4)) == 1, "one label is one image"
    assert len(latents(pipe, num_images=3, batch_size=2)) == 3


def test_callback_with_the_four_arguments_of_diffusers(pipe: Pipeline) -> None:
    seen = []

    def callback(owner, i, t, kwargs):
        seen.append((owner, i, float(t), kwargs["latents"]))
        return kwargs

    made = pipe([3, 1], callback_on_step_end=callback, output_type="latent", steps=4)
    assert [entry[:2] for entry in seen] == [(pipe, i) for i in range(4)]
    assert [entry[2] for entry in seen] == [999.0, 749.0, 499.0, 249.0], "timesteps of the chain"
    assert torch.equal(seen[-1][3], made.images)


def test_callback_cannot_change_the_latents(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="a callback cannot change the images"):
        pipe(3, callback_on_step_end=lambda owner, i, t, kwargs: {"latents": 2 * kwargs["latents"]})


def test_callback_with_one_step(pipe: Pipeline) -> None:
    steps = []
    pipe(3, callback_on_step_end=steps.append)
    assert [step.index for step in steps] == [0, 1]


def test_scheduler_says_what_the_pipeline_was_trained_on(pipe: Pipeline) -> None:
    read = pipe.scheduler
    assert type(read).__name__ == "DDPMScheduler"
    assert read.config.beta_schedule == "squaredcos_cap_v2"
    assert read.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="Make it with timestep_spacing='leading'"):  # Heun on a cosine chain
        pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(read.config)
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(read.config, timestep_spacing="leading")
    assert type(pipe.scheduler).__name__ == "HeunDiscreteScheduler"
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_a_refused_scheduler_changes_nothing(pipe: Pipeline) -> None:
    before = latents(pipe, 3)
    with pytest.raises(ValueError, match="wrong noise levels"):
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
    assert pipe.sampler == DDIM()
    assert torch.equal(latents(pipe, 3), before)


def test_scheduler_where_diffusers_has_none(shipped: Pipeline) -> None:
    settings = {**shipped.parameters, "process": {"name": "gvp"}, "parameterization": {"name": "velocity"}}
    pipe = Pipeline(**shipped.components, **settings)
    with pytest.raises(ValueError, match="diffusers has no scheduler for a network that was trained on GVP"):
        _ = pipe.scheduler


class ExactEpsilon(Backbone):
    """The exact noise of x_t for images N(0, std^2) on DDPM's linear chain: what a perfect network predicts."""

    std = 0.3
    in_channels = out_channels = 1
    num_classes, image_size = 2, 8

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        at = noise_label.double().clamp(0, 999)
        low = at.floor().long()
        high = (low + 1).clamp(max=999)
        log = torch.lerp(self.alphas_bar.log()[low], self.alphas_bar.log()[high], at - low)
        alpha_bar = log.exp().reshape(-1, 1, 1, 1)
        sigma = (1 - alpha_bar).sqrt()
        return (sigma / (alpha_bar * self.std**2 + 1 - alpha_bar) * x).to(x.dtype)


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"],
)
def test_the_swap_that_elsewhere_gives_a_flat_grey_image(scheduler: str) -> None:
    """In DiTPipeline this very line gives a standard deviation of 0.000 for Euler and Heun; right is 0.3."""
    pipe = Pipeline(
        ExactEpsilon(), {"name": "vp-discrete"}, {"name": "epsilon"}, defaults={"sampler": "ddim", "steps": 50}
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    made = pipe(class_labels=[1] * 64, guidance_scale=1.0, num_inference_steps=50, output_type="raw").images
    assert float(made.std()) == pytest.approx(0.29, abs=0.02)


def test_device_dtype_and_their_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"dtype": torch.bfloat16}, {"torch_dtype": torch.bfloat16}, {"device": "cpu"}):
            pipe = Pipeline.from_pretrained("digits-dico", **options)
            assert pipe.backbone.dtype == (torch.float32 if "device" in options else torch.bfloat16)


@pytest.mark.parametrize(
    "move",
    [
        lambda p: p.to(torch.bfloat16),
        lambda p: p.to("cpu", torch.bfloat16),
        lambda p: p.to(dtype=torch.bfloat16),
        lambda p: p.to(device="cpu", dtype=torch.bfloat16),
        lambda p: Pipeline.from_pretrained("digits-dico", dtype=torch.bfloat16),
    ],
)
def test_to_bfloat16_is_silent(move: Any, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    from diffusers.utils import logging

    pipe = Pipeline.from_pretrained("digits-dico")
    monkeypatch.setattr(logging.get_logger("diffusers"), "propagate", True)
    moved = move(pipe)
    assert moved.backbone.dtype == torch.bfloat16
    assert isinstance(moved, Pipeline)
    assert not caplog.records


def test_what_has_no_effect_says_so(pipe: Pipeline) -> None:
    for method in ("enable_attention_slicing", "enable_xformers_memory_efficient_attention"):
        with pytest.warns(UserWarning, match=f"{method} has no effect"):
            getattr(pipe, method)()


def test_vae_methods_and_sizes_reach_the_autoencoder() -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(3, 3, **blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4)
    network = dinit.DiT(8, 2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=10)
    pipe = Pipeline(network, {"name": "flow"}, {"name": "velocity"}, vae=vae)
    assert (pipe.num_classes, pipe.image_size) == (10, 16)
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    assert vae.use_slicing
    assert vae.use_tiling
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert not vae.use_slicing
    assert not vae.use_tiling
    assert pipe.codec is pipe.codec, "built once"
    other = AutoencoderKL(3, 3, **blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4)
    pipe.vae = other
    assert pipe.codec.vae is other  # pyright: ignore
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"


def test_a_normalization_of_latents_is_in_the_saved_autoencoder_alone(tmp_path: Path) -> None:
    """diffusers reads it from vae/config.json; the autoencoder that was handed in keeps its own scale."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(3, 3, **blocks, block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    before = dict(vae.config)
    network = dinit.DiT(8, 2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=10)
    own = {"mean": [0.0, 0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0, 4.0]}
    pipe = Pipeline(network, {"name": "flow"}, {"name": "velocity"}, vae=vae, latent_normalization=own)
    pipe.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (saved["latents_mean"], saved["latents_std"], saved["scaling_factor"]) == (own["mean"], own["std"], 1.0)
    assert {key: vae.config[key] for key in before} == before
    latents = torch.ones(1, 4, 8, 8)
    again = Pipeline.from_pretrained(tmp_path)
    assert torch.equal(again.codec.decode(latents), pipe.codec.decode(latents))


def test_reading_the_codec_changes_nothing(pipe: Pipeline) -> None:
    before = json.dumps(dict(pipe.config), default=str)
    assert pipe.codec is pipe.codec
    assert json.dumps(dict(pipe.config), default=str) == before
    assert (pipe.num_classes, pipe.image_size) == (10, 8)


def test_the_written_out_keywords_are_those_of_the_type() -> None:
    """The overloads of `__call__` take OutputOptions; its implementation, which `help` shows, spells them out."""
    import inspect

    parameters = inspect.signature(Pipeline.__call__).parameters
    named = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert named == {*OutputOptions.__annotations__, "return_dict"}
    assert set(KEYWORDS) == {*named, "labels"}
    for name in LoadOptions.__annotations__:
        assert name in {*inspect.signature(Pipeline.__init__).parameters, *_LOADING}, name


_LOADING = (
    "null_label", "torch_dtype", "cache_dir", "force_download", "local_files_only", "token", "revision", "variant",
    "use_safetensors", "device_map", "max_memory", "offload_folder", "offload_state_dict", "low_cpu_mem_usage",
    "quantization_config", "disable_mmap",
)  # fmt: skip


def test_result(pipe: Pipeline) -> None:
    made = pipe(3)
    assert isinstance(made, Generated)
    assert made[0] is made.images
    assert made.nfe == 2
    assert made.call.steps == 2
    assert "ddim" in SAMPLERS
