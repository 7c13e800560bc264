"""Folders that diffusers wrote, opened by Pipeline.from_pretrained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from fuzzing import edited
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinit.checkpoints.from_diffusers import denoiser_from_diffusers
from dinit.checkpoints.interop.networks import DiffusersBackbone
from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.parameterization import Epsilon
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.manifest import describe
from dinit.samplers import NoiseSource
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.guidance.threshold import DynamicThreshold

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = {str(i): f"thing {i}, synonym" for i in range(10)}


def filled(model: Any) -> Any:
    """Every tensor random, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (parameter.ndim < 2) * parameter.data + 0.2 * noise
    return model.eval()


def unet(**options: Any) -> UNet2DModel:
    return filled(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **options,
        )
    )


def dit_pipeline() -> DiTPipeline:
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    return DiTPipeline(filled(network), filled(autoencoder), DDIMScheduler(clip_sample=False))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def network() -> UNet2DModel:
    return unet()


@pytest.fixture
def ddpm(tmp_path: Path) -> Path:
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_an_unconditional_folder(ddpm: Path) -> None:
    pipe = Pipeline.from_pretrained(ddpm)
    assert isinstance(pipe.backbone, DiffusersBackbone)
    assert not pipe.backbone.training
    images = pipe(num_images=4, steps=3).images
    assert [image.size for image in images] == [(8, 8)] * 4
    short = pipe(num_images=2, sampler="dpmpp-2m", steps=3, output_type="pt")
    assert short.images.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="this pipeline is unconditional"):
        pipe([3])
    with pytest.raises(ValueError, match="needs a model with classes"):
        pipe(num_images=1, steps=3, guidance=CFG(2.0))


# Folders of unconditional pixels: the pipeline's class, the scheduler's, and its settings.
DEFAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddpm": ("DDPMPipeline", "DDPMScheduler", {}),
    "ddpm threshold": ("DDPMPipeline", "DDPMScheduler", {"thresholding": True, "sample_max_value": 2.0}),
    "ddpm large": ("DDPMPipeline", "DDPMScheduler", {"variance_type": "fixed_large", "clip_sample_range": 0.5}),
    "ddim": ("DDIMPipeline", "DDIMScheduler", {"clip_sample": False}),
    "ddim clip": ("DDIMPipeline", "DDIMScheduler", {}),
    "ddim threshold": ("DDIMPipeline", "DDIMScheduler", {"clip_sample": False, "thresholding": True}),
    "ddim first level": ("DDIMPipeline", "DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    "ddim of ddpm": ("DDIMPipeline", "DDPMScheduler", {"clip_sample_range": 0.7}),
    "pndm": ("PNDMPipeline", "PNDMScheduler", {}),
    "plms": ("PNDMPipeline", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "dpm++": ("DDPMPipeline", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ threshold": ("DDPMPipeline", "DPMSolverMultistepScheduler", {"thresholding": True}),
    "euler": ("DDPMPipeline", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler karras": ("DDPMPipeline", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "heun": ("DDPMPipeline", "HeunDiscreteScheduler", {"clip_sample": True}),
    "unipc": ("DDPMPipeline", "UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
    "flow": ("DDPMPipeline", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "edm": ("DDPMPipeline", "EDMEulerScheduler", {}),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_a_default_call_is_the_diffusers_pipelines(
    case: str, tmp_path: Path, network: UNet2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images: its scheduler with all its settings, clipping with or without the network's eps."""
    pipeline, name, settings = DEFAULTS[case]
    DDPMPipeline(network, getattr(diffusers, name)(**settings)).save_pretrained(tmp_path)
    edit(tmp_path / "model_index.json", _class_name=pipeline)
    pipe = Pipeline.from_pretrained(tmp_path)
    scheduler = getattr(diffusers, pipeline)(network, getattr(diffusers, name)(**settings)).scheduler
    assert pipe.steps == (1000 if pipeline == "DDPMPipeline" else 50)
    draws: list[Tensor] = []
    normal = NoiseSource.normal

    def kept(self: NoiseSource, stream: str, number: int, like: Tensor) -> Tensor:
        draws.append(normal(self, stream, number, like))
        return draws[-1]

    monkeypatch.setattr(NoiseSource, "normal", kept)
    ours = pipe(num_images=2, steps=6, seed=1, output_type="raw").images
    scheduler.set_timesteps(6)
    left = iter(draws)
    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", lambda *a, **o: next(left), raising=False)
    x = next(left) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        with torch.no_grad():
            output = network(x_in, t).sample
        x = scheduler.step(output, t, x).prev_sample
    assert next(left, None) is None
    assert x.isfinite().all()
    assert (ours - x).abs().max() <= 1e-4 * x.abs().max()


def test_another_sampler_clips_as_the_scheduler(ddpm: Path) -> None:
    """What the scheduler clips is in the default guidance; a scheduler that clips by itself needs none."""
    config = ddpm / "scheduler" / "scheduler_config.json"

    def guidance_of(**options: Any) -> list[Any]:
        return list(Pipeline.from_pretrained(ddpm).prepare(None, num_images=1, **options).guidance)

    assert guidance_of() == []
    assert guidance_of(sampler="dpmpp-2m") == [ClipX0(1.0)]
    assert guidance_of(sampler=DDIMScheduler(clip_sample=False)) == [ClipX0(1.0)]
    assert guidance_of(guidance="cfg:scale=2") == [CFG(2.0)]
    edit(config, clip_sample_range=2.5)
    assert guidance_of(sampler="dpmpp-2m") == [ClipX0(2.5)]
    edit(config, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
    assert guidance_of(sampler="dpmpp-2m") == [DynamicThreshold(0.9, largest=1.5)]
    edit(config, thresholding=False, clip_sample=False)
    assert guidance_of(sampler="dpmpp-2m") == []


def test_other_samplers_take_the_schedulers_times(ddpm: Path) -> None:
    edit(
        ddpm / "scheduler" / "scheduler_config.json",
        timestep_spacing="trailing",
        num_train_timesteps=20,
        beta_end=0.5,
    )
    pipe = Pipeline.from_pretrained(ddpm)
    assert pipe.steps == 20
    assert pipe.grid is not None
    times = pipe.grid.times(pipe.process, 5, 0.05, 1.0)
    assert times.tolist() == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert pipe(num_images=1, sampler="ddim", steps=5).call.grid == pipe.grid


def test_a_dit_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against DiTPipeline itself: guided on all channels, decoded with the scaling factor."""
    theirs = dit_pipeline()
    theirs.save_pretrained(tmp_path)
    names = {str(i): f"thing {i}, synonym" for i in range(1000)}
    edit(tmp_path / "model_index.json", id2label=names)
    pipe = Pipeline.from_pretrained(tmp_path)
    assert pipe.class_names is not None
    assert pipe.class_names[7] == "thing 7, synonym"
    assert pipe.defaults["guidance"] == [{"name": "cfg", "scale": 4.0}]
    ours = pipe([3, 1], steps=5, seed=1, output_type="pt")
    start = NoiseSource(ours.call.keys).normal("initial", 0, torch.empty(2, 4, 8, 8))
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *args, **options: start)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs([3, 1], num_inference_steps=5, output_type="pt").images
    assert expected.std() > 0.05
    assert (ours.images - expected).abs().max() <= 1e-4
    named = pipe(["thing 3, synonym", 1], steps=5, seed=1, output_type="pt")
    assert torch.equal(named.images, ours.images)
    assert pipe([3, 1], sampler="dpmpp-2m", steps=10, guidance=CFG(2.0, channels=3)).images[0].size == (16, 16)


def test_a_folder_with_classes_and_a_null_label(tmp_path: Path) -> None:
    DDPMPipeline(unet(num_class_embeds=10), DPMSolverMultistepScheduler()).save_pretrained(tmp_path)
    edit(tmp_path / "model_index.json", id2label=NAMES)
    pipe = Pipeline.from_pretrained(tmp_path)
    assert pipe(["thing 3, synonym", 1], sampler="dpmpp-2m", steps=10).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="null class"):
        pipe([3], steps=3, guidance=CFG(2.0))
    with pytest.raises(ValueError, match="id2label names 10 classes, the network has 9"):
        Pipeline.from_pretrained(tmp_path, null_label=9)
    edit(tmp_path / "model_index.json", id2label=None)
    guided = Pipeline.from_pretrained(tmp_path, null_label=9)
    assert guided.backbone.num_classes == 9
    assert guided([3, 8], steps=3, guidance=CFG(2.0)).images[0].size == (8, 8)


def test_dtype_and_manifest(ddpm: Path) -> None:
    pipe = Pipeline.from_pretrained(ddpm, torch_dtype=torch.bfloat16)
    assert pipe.backbone.dtype == torch.bfloat16
    pipe = Pipeline.from_pretrained(ddpm)
    record = describe(pipe, pipe(num_images=1, steps=2))
    assert record.pipeline == str(ddpm)
    assert record.process["name"] == "vp-discrete"
    assert set(record.weights) == {"backbone"}


def test_weights_under_their_old_names(ddpm: Path) -> None:
    """As in google/ddpm-cifar10-32, saved before diffusers renamed attention's weights."""
    path = ddpm / "unet" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        return next((name.replace(f".{new}.", f".{was}.") for new, was in old.items() if f".{new}." in name), name)

    pipe = Pipeline.from_pretrained(ddpm)
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert any(".query." in name for name in load_file(path))
    again = Pipeline.from_pretrained(ddpm)
    for name, tensor in pipe.backbone.state_dict().items():
        assert torch.equal(tensor, again.backbone.state_dict()[name]), name


def test_it_is_not_saved_as_a_dinit_folder(ddpm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wraps diffusers' UNet2DModel and is not saved as a dinit folder"):
        Pipeline.from_pretrained(ddpm).save_pretrained(tmp_path / "copy")


def drop_one(weights: dict) -> None:
    del weights["conv_in.weight"]


def reshape_two(weights: dict) -> None:
    for name in ("conv_in.bias", "conv_out.bias"):
        weights[name] = torch.zeros(3, 3)


def edit_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    change(weights)
    save_file(weights, folder / "unet" / WEIGHTS)


def pickle_instead(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def another_scheduler(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_weights(f, drop_one), "1 missing: conv_in.weight"),
        (lambda f: edit_weights(f, reshape_two), "2 of another shape: conv_in.bias [3, 3] (expected [8])"),
        (pickle_instead, "holds pickled weights (diffusion_pytorch_model.bin), which can run code"),
        (lambda f: (f / "unet" / WEIGHTS).write_bytes(b"nothing"), "damaged or no safetensors file"),
        (lambda f: (f / "unet" / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
        (another_scheduler, "scheduler (LCMScheduler) is not covered"),
        (
            lambda f: edit(f / "model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
            "text_encoder (CLIPTextModel) is not covered. Open it with diffusers",
        ),
        (
            lambda f: edit(f / "model_index.json", _class_name=3),
            "_class_name = 3 must be the name",
        ),
        (
            lambda f: edit(f / "model_index.json", unet="UNet2DModel"),
            "unet = 'UNet2DModel' must be [library",
        ),
        (lambda f: edit(f / "model_index.json", scheduler=None), "scheduler = None must be [library"),
        (
            lambda f: edit(f / "model_index.json", scheduler=[None, None]),
            "has no scheduler in its model_index",
        ),
        (
            lambda f: edit(f / "model_index.json", unet=["mine", "UNet2DModel"]),
            "is a class of 'mine'; only diff",
        ),
        (lambda f: edit(f / "model_index.json", unet=["os", "system"]), "unet (system) is not covered"),
        (lambda f: edit(f / "model_index.json", unet=[None, None]), "must have one of unet and transformer"),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="noise"),
            "DDPMScheduler with prediction_type = 'noise' is not covered",
        ),
        (lambda f: edit(f / "unet" / "config.json", sample_size=None), "has no sample_size"),
    ],
)
def test_a_broken_or_unknown_folder_is_refused(ddpm: Path, damage: Any, message: str) -> None:
    damage(ddpm)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Pipeline.from_pretrained(ddpm)
    assert message in str(caught.value)


def test_quantised_latents_and_unknown_options_are_refused(ddpm: Path, tmp_path: Path) -> None:
    vqvae = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, sample_size=8)
    LDMPipeline(vqvae, unet(), DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    with pytest.raises(ValueError, match=r"LDMPipeline\) does not load directly: vqvae \(VQModel\) is not covered"):
        Pipeline.from_pretrained(tmp_path / "ldm")
    with pytest.raises(ValueError, match=r"takes dtype, .*, t_max only, got pixel_range"):
        Pipeline.from_pretrained(ddpm, pixel_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="no weights of the variant 'fp16', it has the usual one"):
        Pipeline.from_pretrained(ddpm, variant="fp16")
    usual = ddpm / "unet" / WEIGHTS
    usual.rename(usual.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert Pipeline.from_pretrained(ddpm)(num_images=1, steps=2).images


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample_size": "8"},
        {"sample_size": 8.0},
        {"sample_size": [8, 8]},
        {"layers_per_block": 1.0},
        {"layers_per_block": "1", "freq_shift": 0.0},
        {"block_out_channels": ["8", 16.0]},
        {"norm_eps": "1e-05", "add_attention": "true"},
        {"center_input_sample": 0, "dropout": 0},
        {"_note": "private"},
        {"_class_name": "UNet2DModel"},
    ],
)
def test_network_configs_of_other_types_are_read(ddpm: Path, changes: dict[str, Any]) -> None:
    expected = Pipeline.from_pretrained(ddpm)(num_images=1, steps=2, output_type="raw").images
    edit(ddpm / "unet" / "config.json", **changes)
    assert torch.equal(Pipeline.from_pretrained(ddpm)(num_images=1, steps=2, output_type="raw").images, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_size": "8x8"}, "sample_size = '8x8' is not usable"),
        ({"sample_size": [8, 16]}, "made for 8×16; only square images are covered"),
        ({"sample_size": [8, 8, 8]}, "sample_size = [8, 8, 8] is not usable"),
        ({"sample_size": 0}, "sample_size = 0: it must be a positive number"),
        ({"sample_size": True}, "sample_size = True is not usable"),
        ({"layers_per_block": 1.5}, "layers_per_block = 1.5 is not usable"),
        ({"in_channels": None}, "in_channels = None is not usable"),
        ({"norm_eps": float("nan")}, "norm_eps = nan is not usable"),
        ({"norm_num_groups": 3}, "makes no UNet2DModel with norm_num_groups = 3"),
        ({"act_fn": "sluu"}, "act_fn = 'sluu': activation function sluu not found"),
        (
            {"down_block_types": ["DownBlock2D", "DownBlock3D"]},
            "down_block_types = ('DownBlock2D', 'DownBlock3D'): DownBlock3D does not exist",
        ),
        ({"time_embedding_type": "fouriers"}, "makes no UNet2DModel with time_embedding_type = 'fouriers'"),
        ({"in_channels": -3}, "in_channels = -3"),
        (
            {"layers_per_blocks": 1},
            "layers_per_blocks = 1 is no setting of UNet2DModel; did you mean 'layers_per_block'",
        ),
        (
            {"_class_name": "UNet2DConditionModel"},
            "is of the class 'UNet2DConditionModel'; model_index.json has UNet2DModel",
        ),
        ({"flip_sin_to_coss": False}, "flip_sin_to_coss = False is no setting of UNet2DModel"),
        ({"_class_name": None}, "is of the class None"),
        ({"layers_per_block": 2}, "the weights in"),
    ],
)
def test_network_configs_that_are_not_understood_are_refused(
    ddpm: Path, changes: dict[str, Any], message: str
) -> None:
    edit(ddpm / "unet" / "config.json", **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Pipeline.from_pretrained(ddpm)
    assert str(ddpm) in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json", "scheduler/scheduler_config.json"])
def test_an_edited_folder_opens_right_or_gives_a_short_error(ddpm: Path, name: str) -> None:
    """20 edits of each file, in all 60: what opens has the values that were written, and makes images."""
    edit(ddpm / "model_index.json", id2label=None)
    whole, right = json.loads((ddpm / name).read_text()), 0
    for what, content in edited(6, whole, 20):
        (ddpm / name).write_text(json.dumps(content))
        try:
            pipe = Pipeline.from_pretrained(ddpm)
            ours = pipe(num_images=1, steps=3, output_type="raw").images
        except (ValueError, OSError) as error:
            assert len(str(error)) < 1800, what
            continue
        right += 1
        config: Any = pipe.backbone.network.config
        made: Any = pipe.scheduler.config if isinstance(pipe.sampler, SchedulerSampler) else {}
        for key, value in content.items():
            read = made if name.startswith("scheduler") else config
            if not key.startswith("_") and key in read and name != "model_index.json":
                assert as_text(read[key]) == as_text(value), what
        assert ours.isfinite().all()
    assert 1 <= right <= 18


def as_text(value: Any) -> str:
    """8, 8.0, "8" and [8, 8] of a square alike; null and false too."""
    if isinstance(value, list | tuple):
        return str([as_text(one) for one in value])
    if value in (None, False, 0, "false"):
        return "0"
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(value)


def test_an_older_dit_folder(tmp_path: Path) -> None:
    """As facebook/DiT-XL-2-256 was written: of the class Transformer2DModel, with settings of other uses."""
    dit_pipeline().save_pretrained(tmp_path)
    expected = Pipeline.from_pretrained(tmp_path)([3], steps=2, output_type="pt").images
    edit(tmp_path / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    older = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "double_self_attention": False}
    edit(tmp_path / "transformer" / "config.json", **older, num_vector_embeds=None, attention_type="default")
    assert torch.equal(Pipeline.from_pretrained(tmp_path)([3], steps=2, output_type="pt").images, expected)
    edit(tmp_path / "transformer" / "config.json", cross_attention_dim=16)
    with pytest.raises(ValueError, match="cross_attention_dim = 16 is no setting of DiTTransformer2DModel"):
        Pipeline.from_pretrained(tmp_path)
    edit(tmp_path / "transformer" / "config.json", norm_type="layer_norm")
    with pytest.raises(ValueError, match="norm_type = 'layer_norm'; only 'ada_norm_zero'"):
        Pipeline.from_pretrained(tmp_path)


def test_the_advice_of_a_folder_works(ddpm: Path, tmp_path: Path) -> None:
    """Each error is provoked, and what it names is done."""
    edit(ddpm / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    with pytest.raises(ValueError, match=r"Give process= and parameterization= if you know it"):
        Pipeline.from_pretrained(ddpm)
    pipe = Pipeline.from_pretrained(ddpm, process="vp-discrete", parameterization="epsilon")
    assert pipe(num_images=1, steps=2).images[0].size == (8, 8)
    edit(ddpm / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    edit(ddpm / "scheduler" / "scheduler_config.json", prediction_type="noise")
    with pytest.raises(ValueError, match=r"'noise' is not covered .* give process= and parameterization= yourself"):
        Pipeline.from_pretrained(ddpm)
    pipe = Pipeline.from_pretrained(ddpm, process="vp-discrete", parameterization="epsilon")
    assert pipe(num_images=1, steps=2).images[0].size == (8, 8)
    edit(ddpm / "scheduler" / "scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match=r"stop short of pure noise with t_max = 0\.999"):
        Pipeline.from_pretrained(ddpm)
    pipe = Pipeline.from_pretrained(ddpm, t_max=0.999)
    assert pipe(num_images=1, steps=2, sampler="ddim", grid="uniform").images[0].size == (8, 8)
    vqvae = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, sample_size=8)
    theirs = LDMPipeline(vqvae, unet(), DDIMScheduler())
    theirs.save_pretrained(tmp_path / "ldm")
    with pytest.raises(ValueError, match="hand it to denoiser_from_diffusers"):
        Pipeline.from_pretrained(tmp_path / "ldm")
    assert denoiser_from_diffusers(LDMPipeline.from_pretrained(tmp_path / "ldm")).num_classes == 0
    edit(tmp_path / "ldm" / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    with pytest.raises(ValueError, match="and for this scheduler process= and parameterization="):
        Pipeline.from_pretrained(tmp_path / "ldm")
    theirs.scheduler = diffusers.LCMScheduler()
    with pytest.raises(ValueError, match="give process= and parameterization= yourself"):
        denoiser_from_diffusers(theirs)
    read = denoiser_from_diffusers(theirs, process=VPDiscrete("linear"), parameterization=Epsilon())
    assert read.process == VPDiscrete("linear")


def test_a_folder_of_a_scheduler_that_needs_torchsde(ddpm: Path) -> None:
    edit(ddpm / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    config = {"_class_name": "DPMSolverSDEScheduler", "beta_start": 0.001, "noise_sampler_seed": None}
    (ddpm / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="the default sampler is dinit's 'dpmpp-sde'"):
        pipe = Pipeline.from_pretrained(ddpm)
    assert pipe.process == VPDiscrete("linear", beta_start=0.001, beta_end=0.012)
    assert pipe(num_images=1, steps=4).images[0].size == (8, 8)


def test_a_pipeline_of_another_name_is_said(ddpm: Path) -> None:
    edit(ddpm / "model_index.json", _class_name="DDPMPipelines")
    with pytest.warns(UserWarning, match=r"'DDPMPipelines' is no pipeline of diffusers; .* in 50 steps"):
        assert Pipeline.from_pretrained(ddpm).steps == 50
