"""Networks out of diffusers pipelines, under dinit's samplers: the same numbers as under diffusers' own loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from dinit.checkpoints.from_diffusers import denoiser_from_diffusers
from dinit.diffusion import Denoiser
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.parameterization import X0, Difference, EDMPreconditioning, Epsilon, V
from dinit.samplers import RecordedNoise, Sampler
from dinit.samplers.guidance.cads import CADS
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler
from dinit.samplers.ode.flow import FlowEuler
from dinit.samplers.sde.ddpm import DDPM

TEXT = (5, 16)  # tokens, features
Ask = Callable[[Tensor, Tensor], Tensor]


def seeded(make: Callable[[], Any]) -> Any:
    """The network with every tensor random, those that start at zero too, in evaluation mode."""
    torch.manual_seed(0)
    network = make()
    for parameter in network.parameters():
        if parameter.ndim < 2 or float(parameter.detach().abs().max()) == 0:
            nn.init.normal_(parameter, float(parameter.detach().mean()), 0.1)
    return network.eval().requires_grad_(False)


def unet(**options: Any) -> UNet2DModel:
    arguments = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return seeded(lambda: UNet2DModel(**{**arguments, **options}))


def dit() -> DiTTransformer2DModel:
    return seeded(
        lambda: DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=10,
        )
    )


def text_unet(**options: Any) -> UNet2DConditionModel:
    arguments = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT[1],
        "attention_head_dim": 4,
    }
    return seeded(lambda: UNet2DConditionModel(**{**arguments, **options}))


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pipeline(network: nn.Module, scheduler: Any) -> Any:
    name = "unet" if isinstance(network, (UNet2DModel, UNet2DConditionModel)) else "transformer"
    return SimpleNamespace(**{name: network, "scheduler": scheduler})


@torch.no_grad()
def theirs(ask: Ask, scheduler: Any, noise: Tensor, steps: int) -> Tensor:
    """The loop of diffusers' pipelines. ask: (scaled input, timesteps (B,)) -> output of as many channels."""
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(ask(x_in, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


def levels(scheduler: Any) -> Tensor:
    """The times at which a chain's scheduler asks the network, after its set_timesteps."""
    return (scheduler.timesteps.double() + 1) / scheduler.config.num_train_timesteps


@torch.no_grad()
def ours(sampler: Sampler, denoiser: Denoiser, noise: Tensor, grid: Tensor, **options: Any) -> Tensor:
    return sampler.sample(denoiser, noise, grid=grid, **options)


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    assert theirs.isfinite().all()
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


CHAIN = {"beta_schedule": "linear"}
CHAINS = {
    "linear": CHAIN,
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "other ends": {"beta_start": 0.0005, "beta_end": 0.04, "num_train_timesteps": 400},
    "trained": {"trained_betas": np.linspace(0.001, 0.03, 300) ** 1.1, "num_train_timesteps": 300},
}
SCHEDULERS = {
    "ddim": (lambda c: DDIMScheduler(**c, clip_sample=False, timestep_spacing="trailing"), DDIM()),
    "euler": (lambda c: EulerDiscreteScheduler(**c, timestep_spacing="leading", steps_offset=1), DDIM()),
    "dpm++ 2m": (lambda c: DPMSolverMultistepScheduler(**c, timestep_spacing="trailing"), DPMpp2M()),
    "dpm++ 2m linspace": (lambda c: DPMSolverMultistepScheduler(**c), DPMpp2M()),
    "dpm++ 2m heun": (lambda c: DPMSolverMultistepScheduler(**c, solver_type="heun"), DPMpp2M("heun")),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_unconditional(chain: str, name: str, prediction: str) -> None:
    make, sampler = SCHEDULERS[name]
    scheduler = make({**CHAINS[chain], "prediction_type": prediction})
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    expected = theirs(lambda x, t: network(x, t).sample, scheduler, noise, 10)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    assert_same(ours(sampler, denoiser, noise, levels(scheduler)), expected)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_eulers_smaller_noise(spacing: str) -> None:
    """Where diffusers' Euler starts from noise of standard deviation sigma_t, initial_state= gives its
    trajectory."""
    scheduler = EulerDiscreteScheduler(timestep_spacing=spacing)
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    expected = theirs(lambda x, t: network(x, t).sample, scheduler, noise, 10)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    grid = levels(scheduler)
    start = noise * denoiser.process.scales(grid[0]).sigma
    assert_same(ours(DDIM(), denoiser, noise, grid, initial_state=start), expected)


def test_a_scheduler_that_stops_at_the_first_level() -> None:
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading", steps_offset=1)
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    expected = theirs(lambda x, t: network(x, t).sample, scheduler, noise, 10)
    grid = torch.cat([levels(scheduler), torch.tensor([1 / 1000], dtype=torch.float64)])
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    assert_same(ours(DDIM(), denoiser, noise, grid, end="state"), expected)
    scheduler = DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", lower_order_final=False)
    expected = theirs(lambda x, t: network(x, t).sample, scheduler, noise, 10)
    grid = torch.cat([levels(scheduler), torch.tensor([1 / 1000], dtype=torch.float64)])
    assert_same(ours(DPMpp2M(), denoiser, noise, grid, end="state"), expected)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("chain", ["scaled linear", "trained"])
def test_zero_terminal_snr(prediction: str, chain: str) -> None:
    options = {**CHAINS[chain], "rescale_betas_zero_snr": True, "prediction_type": prediction}
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **options)
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    assert float(denoiser.process.scales(1.0).alpha) == 0
    expected = theirs(lambda x, t: network(x, t).sample, scheduler, noise, 10)
    assert_same(ours(DDIM(), denoiser, noise, levels(scheduler)), expected)
    with pytest.raises(ValueError, match="is singular at t = 1"):
        denoiser_from_diffusers(pipeline(network, DDIMScheduler(rescale_betas_zero_snr=True)))


def test_betas_that_only_the_scheduler_knows() -> None:
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    scheduler = DDPMScheduler(beta_schedule="sigmoid", clip_sample=False)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    alpha_bar = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(denoiser.process.alphas.square(), alpha_bar, rtol=1e-4, atol=1e-6)
    assert noise.shape == ours(DDIM(), denoiser, noise, torch.tensor([1.0, 0.5])).shape


def test_ddpm_with_the_same_noise_and_clipping() -> None:
    scheduler = DDPMScheduler(timestep_spacing="trailing", variance_type="fixed_small")
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    draws = [randn(10 + i, 2, 3, 8, 8) for i in range(10)]
    scheduler.set_timesteps(10)
    x = noise
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = network(x, t).sample
        x = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(10 + i)).prev_sample
    denoiser = ClipX0(1.0).wrap(denoiser_from_diffusers(pipeline(network, scheduler)))
    got = ours(DDPM("fixed-small"), denoiser, noise, levels(scheduler), noise_source=RecordedNoise(step=draws))
    assert_same(got, x)


@torch.no_grad()
@pytest.mark.parametrize("null_label", [None, 9, 0])
def test_class_unet(null_label: int | None) -> None:
    network = unet(num_class_embeds=10)
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    noise, labels = randn(1, 2, 3, 8, 8), torch.tensor([3, 1])
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler), null_label=null_label)
    assert denoiser.num_classes == (9 if null_label == 9 else 10)
    expected = theirs(lambda x, t: network(x, t, class_labels=labels).sample, scheduler, noise, 5)
    assert_same(ours(DDIM(), denoiser, noise, levels(scheduler), labels=labels), expected)
    assert isinstance(network.class_embedding, nn.Embedding), "the user's network was changed"
    if null_label is None:
        with pytest.raises(ValueError, match="trained without a null class"):
            denoiser.condition(None, 2)
        return
    nothing = torch.full((2,), null_label)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        given, free = (network(x, t, class_labels=y).sample for y in (labels, nothing))
        return free + 2.5 * (given - free)

    expected = theirs(guided, scheduler, noise, 5)
    assert_same(ours(DDIM(), CFG(2.5).wrap(denoiser), noise, levels(scheduler), labels=labels), expected)


@torch.no_grad()
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("equal_tables", [True, False])
def test_dit_with_a_learned_variance(channels: int | None, equal_tables: bool) -> None:
    network = dit()
    if equal_tables:
        first = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        network.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.copy_(first)
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    noise, labels = randn(1, 3, 4, 8, 8), torch.tensor([3, 9, 0])
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    assert denoiser.num_classes == 10
    assert denoiser.embed(labels).shape == ((3, 16) if equal_tables else (3, 2, 16))
    cond = denoiser.condition(labels, 3)
    assert denoiser(noise, 0.5, cond).variance_fraction is not None

    def guided(x: Tensor, t: Tensor) -> Tensor:
        given = network(x, t, class_labels=labels).sample[:, :4]
        free = network(x, t, class_labels=torch.full((3,), 10)).sample[:, :4]
        all_guided = free + 4 * (given - free)
        return all_guided if channels is None else torch.cat([all_guided[:, :channels], given[:, channels:]], 1)

    expected = theirs(guided, scheduler, noise, 10)
    got = ours(DPMpp2M(), CFG(4.0, channels=channels).wrap(denoiser), noise, levels(scheduler), labels=labels)
    assert_same(got, expected)


TEXTS, EMPTY = randn(5, 3, *TEXT), randn(6, 1, *TEXT)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_with_guidance(prediction: str, name: str) -> None:
    make, sampler = SCHEDULERS[name]
    scheduler = make({**CHAINS["scaled linear"], "prediction_type": prediction})
    network, noise = text_unet(), randn(1, 3, 4, 8, 8)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        given = network(x, t, encoder_hidden_states=TEXTS).sample
        free = network(x, t, encoder_hidden_states=EMPTY.expand(3, -1, -1)).sample
        return free + 7.5 * (given - free)

    expected = theirs(guided, scheduler, noise, 10)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler), condition=TEXTS, null_condition=EMPTY)
    assert_same(ours(sampler, CFG(7.5).wrap(denoiser), noise, levels(scheduler)), expected)


def sdxl() -> tuple[UNet2DConditionModel, dict[str, Any], dict[str, Any]]:
    """A network with an added text and sizes, its arguments for three prompts, and for the empty one."""
    network = text_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 + 6 * 8,
    )
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    given = {"encoder_hidden_states": TEXTS, "added_cond_kwargs": {"text_embeds": randn(7, 3, 8)}}
    empty = {"encoder_hidden_states": EMPTY, "added_cond_kwargs": {"text_embeds": randn(8, 1, 8)}}
    given["added_cond_kwargs"]["time_ids"] = sizes.repeat(3, 1)
    empty["added_cond_kwargs"]["time_ids"] = sizes
    return network, given, empty


def repeated(empty: Any, times: int) -> Any:
    if isinstance(empty, dict):
        return {name: repeated(value, times) for name, value in empty.items()}
    return empty.expand(times, *empty.shape[1:])


def test_further_arguments_are_guided_with_the_text() -> None:
    network, given, empty = sdxl()
    scheduler = EulerDiscreteScheduler(**CHAINS["scaled linear"], timestep_spacing="leading", steps_offset=1)
    noise = randn(1, 3, 4, 8, 8)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        free = network(x, t, **repeated(empty, 3)).sample
        return free + 5 * (network(x, t, **given).sample - free)

    expected = theirs(guided, scheduler, noise, 10)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler), condition=given, null_condition=empty)
    assert_same(ours(DDIM(), CFG(5.0).wrap(denoiser), noise, levels(scheduler)), expected)


def test_flow_transformer_with_a_shift() -> None:
    network = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT[1],
            caption_projection_dim=16,
            pooled_projection_dim=8,
            pos_embed_max_size=8,
        )
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noise, pooled = randn(1, 3, 4, 8, 8), randn(7, 4, 8)
    given = {"encoder_hidden_states": TEXTS, "pooled_projections": pooled[:3]}
    empty = {"encoder_hidden_states": EMPTY, "pooled_projections": pooled[3:]}
    scheduler.init_noise_sigma = 1.0

    def guided(x: Tensor, t: Tensor) -> Tensor:
        free = network(x, timestep=t, **repeated(empty, 3)).sample
        return free + 4 * (network(x, timestep=t, **given).sample - free)

    expected = theirs(guided, scheduler, noise, 10)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler), condition=given, null_condition=empty)
    sigmas = scheduler.sigmas[:-1].double()
    grid = denoiser.process.time_of(2 * ((1 - sigmas) / sigmas).log())
    assert_same(ours(FlowEuler(), CFG(4.0).wrap(denoiser), noise, grid), expected)


def test_edm() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=30.0, sigma_data=0.7)
    network, noise = unet(), randn(1, 2, 3, 8, 8)
    expected = theirs(lambda x, t: network(x, t).sample, scheduler, noise, 10)
    denoiser = denoiser_from_diffusers(pipeline(network, scheduler))
    start = noise * scheduler.init_noise_sigma
    grid = scheduler.sigmas[:-1].double() / 30.0
    for sampler in (Euler(), DDIM()):
        assert_same(ours(sampler, denoiser, noise, grid, initial_state=start), expected)


@pytest.mark.parametrize(
    ("scheduler", "process", "parameterization"),
    [
        (DDPMScheduler(), VPDiscrete("linear", beta_start=1e-4, beta_end=0.02), Epsilon()),
        (
            UniPCMultistepScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
            VPDiscrete("squared-cosine"),
            V(),
        ),
        (
            EulerDiscreteScheduler(beta_schedule="scaled_linear", prediction_type="sample"),
            VPDiscrete("scaled-linear", beta_start=1e-4, beta_end=0.02),
            X0(),
        ),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), LinearFlow(3.0), Difference()),
        (
            DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.0, prediction_type="flow_prediction"),
            LinearFlow(2.0),
            Difference(),
        ),
        (EDMEulerScheduler(sigma_data=1.0), EDM(0.002, 80.0), EDMPreconditioning(1.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_scheduler_says(scheduler: Any, process: Any, parameterization: Any) -> None:
    denoiser: Any = denoiser_from_diffusers(pipeline(unet(), scheduler))
    assert denoiser.process == process
    assert denoiser.parameterization == parameterization


def test_process_and_parameterization_may_be_given() -> None:
    denoiser: Any = denoiser_from_diffusers(
        pipeline(unet(), LCMScheduler()), process=LinearFlow(), parameterization=Difference()
    )
    assert denoiser.process == LinearFlow()


@torch.no_grad()
def test_prompts_are_classes() -> None:
    pipe = pipeline(text_unet(), DDIMScheduler())
    denoiser = denoiser_from_diffusers(pipe, condition=TEXTS, null_condition=EMPTY)
    cond = denoiser.condition(None, 3)
    assert torch.equal(cond.embedding, TEXTS)
    assert not cond.is_null.any()
    assert torch.equal(
        denoiser.condition([2, 3, 0, 2], 4).embedding, torch.cat([TEXTS[2:], EMPTY, TEXTS[:1], TEXTS[2:]])
    )
    assert torch.equal(cond.null().embedding, EMPTY.expand(3, -1, -1))
    with pytest.raises(ValueError, match="expected 2 labels, one per sample"):
        denoiser.condition(None, 2)
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 2, or 3 for the null class"):
        denoiser.condition([4, 0, 0], 3)
    alone = denoiser_from_diffusers(pipe, condition=TEXTS)
    with pytest.raises(ValueError, match="trained with a null class; this one has none"):
        CFG(2.0).wrap(alone)
    asked = []

    def encode(labels: Tensor) -> Tensor:
        asked.append(labels.tolist())
        return TEXTS[labels]

    lazy = denoiser_from_diffusers(pipe, condition=encode, null_condition=EMPTY, num_classes=3)
    assert torch.equal(lazy.condition([1, 3], 2).embedding, torch.cat([TEXTS[1:2], EMPTY]))
    assert torch.equal(lazy.condition(None, 2).embedding, EMPTY.expand(2, -1, -1))
    assert asked == [[1, 0]], "the null class alone needs no prompt"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["text", "further", "unet", "dit"])
def test_cads_acts_on_every_kind_of_condition(kind: str) -> None:
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    if kind == "further":
        network, given, empty = sdxl()
        denoiser = denoiser_from_diffusers(pipeline(network, scheduler), condition=given, null_condition=empty)
    elif kind == "text":
        denoiser = denoiser_from_diffusers(pipeline(text_unet(), scheduler), condition=TEXTS, null_condition=EMPTY)
    elif kind == "unet":
        denoiser = denoiser_from_diffusers(pipeline(unet(num_class_embeds=10), scheduler), null_label=9)
    else:
        denoiser = denoiser_from_diffusers(pipeline(dit(), scheduler))
    labels, grid = [0, 1, 2], torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64)
    noise = randn(1, 3, 3 if kind == "unet" else 4, 8, 8)
    options = {"noise": noise, "grid": grid, "labels": labels}
    plain = ours(DDIM(), CFG(2.0).wrap(denoiser), **options)
    neutral = ours(DDIM(), CADS(tau1=1.0, tau2=1.0).wrap(CFG(2.0).wrap(denoiser)), **options)
    assert torch.equal(plain, neutral)
    inside = ours(DDIM(), CFG(2.0).wrap(CADS().wrap(denoiser)), **options)
    around = ours(DDIM(), CADS().wrap(CFG(2.0).wrap(denoiser)), **options)
    assert_same(inside, around, 1e-5)
    assert (inside - plain).abs().max() > 1e-3 * plain.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_keep_the_state_in_float32(dtype: torch.dtype) -> None:
    network, given, empty = sdxl()
    exact = denoiser_from_diffusers(pipeline(network, DDIMScheduler()), condition=given, null_condition=empty)
    noise = randn(1, 3, 4, 8, 8)
    x0 = exact(noise, 0.3, exact.condition(None, 3)).x0
    pipe = pipeline(network.to(dtype), DDIMScheduler())
    half = denoiser_from_diffusers(pipe, condition=given, null_condition=empty)
    close = half(noise, 0.3, half.condition(None, 3)).x0
    assert close.dtype == torch.float32
    assert 0 < (close - x0).abs().max() < 0.05 * x0.abs().max()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda: pipeline(unet(), LCMScheduler()),
            {},
            "a LCMScheduler does not show what the network was",
        ),
        (
            lambda: pipeline(unet(), EulerDiscreteScheduler(timestep_type="continuous")),
            {},
            "timestep_type = 'continuous' is not covered (accepted: 'discrete')",
        ),
        (
            lambda: pipeline(unet(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
            {},
            "use_dynamic_shifting = True is not covered",
        ),
        (
            lambda: pipeline(unet(), FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)),
            {},
            "num_train_timesteps = 500",
        ),
        (
            lambda: pipeline(unet(), DPMSolverMultistepScheduler(use_flow_sigmas=True)),
            {},
            "prediction_type = 'epsilon' is not covered (accepted: 'flow_prediction')",
        ),
        (
            lambda: pipeline(unet(), DPMSolverMultistepScheduler(prediction_type="flow_prediction")),
            {},
            "prediction_type = 'flow_prediction' is not covered",
        ),
        (
            lambda: pipeline(unet(), EDMEulerScheduler(prediction_type="v_prediction")),
            {},
            "prediction_type = 'v_prediction' is not covered",
        ),
        (
            lambda: pipeline(unet(out_channels=6), DDPMScheduler(variance_type="learned")),
            {},
            "variance_type = 'learned' is not covered",
        ),
        (lambda: pipeline(unet(in_channels=4), DDPMScheduler()), {}, "maps 4 channels to 3"),
        (lambda: pipeline(unet(class_embed_type="timestep"), DDPMScheduler()), {}, "class_embed_type = 'timestep'"),
        (
            lambda: pipeline(unet(time_embedding_type="fourier"), DDPMScheduler()),
            {},
            "'fourier' is not",
        ),
        (
            lambda: pipeline(unet(), DDPMScheduler()),
            {"null_label": 3},
            "takes no null_label (it has no",
        ),
        (lambda: pipeline(dit(), DDPMScheduler()), {"null_label": 3}, "takes no null_label"),
        (lambda: pipeline(unet(num_class_embeds=4), DDPMScheduler()), {"null_label": 4}, "in 0 .. 3"),
        (lambda: pipeline(unet(), DDPMScheduler()), {"condition": TEXTS}, "this network takes no text"),
        (lambda: pipeline(text_unet(), DDPMScheduler()), {}, "this network takes a text: give condition="),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": {"pooled_projections": TEXTS}},
            "a mapping of the network's arguments with 'encoder_hidden_states' in it",
        ),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": {"encoder_hidden_states": TEXTS, "pooled": TEXTS}},
            "UNet2DConditionModel has no argument pooled",
        ),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": {"encoder_hidden_states": TEXTS, "encoder_attention_mask": TEXTS[:2]}},
            "every argument needs as many rows",
        ),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": TEXTS, "null_condition": TEXTS},
            "null_condition has one row",
        ),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": TEXTS, "null_condition": EMPTY[:, :3]},
            "must have the arguments and shapes of",
        ),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": lambda labels: TEXTS[labels]},
            "a callable condition= needs num_classes=",
        ),
        (
            lambda: pipeline(text_unet(), DDPMScheduler()),
            {"condition": TEXTS, "num_classes": 7},
            "num_classes = 7 contradicts a condition of 3 rows",
        ),
    ],
)
def test_what_is_not_understood_is_refused(make: Any, options: dict[str, Any], message: str) -> None:
    pipe = make()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        denoiser_from_diffusers(pipe, **options)
    network = getattr(pipe, "unet", None) or pipe.transformer
    assert type(network).__name__ in str(caught.value)
    assert type(pipe.scheduler).__name__ in str(caught.value)


def test_a_pipeline_without_one_network_is_refused() -> None:
    with pytest.raises(ValueError, match="one of unet and transformer; found no network"):
        denoiser_from_diffusers(SimpleNamespace(scheduler=DDPMScheduler()))
    with pytest.raises(ValueError, match="found unet, transformer"):
        denoiser_from_diffusers(SimpleNamespace(scheduler=DDPMScheduler(), unet=unet(), transformer=dit()))
