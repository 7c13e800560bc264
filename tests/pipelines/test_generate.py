"""The generating pipeline: images are functions of seed and label, and survive saving."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dinit.diffusion import PROCESSES
from dinit.models.base import BACKBONES
from dinit.pipelines.call import Call
from dinit.pipelines.generate import Pipeline, Trajectory
from dinit.samplers import DDIM, Heun, NoiseSource
from dinit.samplers.guidance import CFG

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def make_pipeline(backbone: str = "dit", **options) -> Pipeline:
    """A tiny pipeline whose weights all matter: fresh networks have zero heads."""
    torch.manual_seed(0)
    network = BACKBONES[backbone].preset("tiny")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    settings = {
        "process": {"name": "vp-discrete", "schedule": "cosine"},
        "parameterization": {"name": "v"},
        "class_names": NAMES,
        "defaults": {
            "sampler": {"name": "ddim", "eta": 1.0},
            "steps": 4,
            "guidance": {"name": "cfg", "scale": 2.0},
        },
    }
    pipe = Pipeline(network, **{**settings, **options})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return make_pipeline()


def test_equals_the_sampler_run_by_hand(pipe: Pipeline) -> None:
    """The pipeline adds nothing to sampler, guidance, noise and denoiser."""
    images = pipe([3, 1], seed=5, output_type="latent").images
    source = NoiseSource.from_seed(5, 2)
    noise = source.normal("initial", 0, torch.empty(2, 1, 8, 8))
    denoiser = CFG(2.0).wrap(pipe.denoiser(["three", "one"]))
    with torch.no_grad():
        by_hand = DDIM(eta=1.0).sample(denoiser, noise, 4, noise_source=source)
    assert torch.equal(images, by_hand)


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_same_image_for_any_batch_size(backbone: str) -> None:
    pipe = make_pipeline(backbone)
    labels = [k % 10 for k in range(7)]
    whole = pipe(labels, seed=3, output_type="latent").images
    for size in (1, 3):
        parts = pipe(labels, seed=3, output_type="latent", batch_size=size).images
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    assert float((whole[0] - whole[1]).abs().max()) > 0.1, "different images, or the test shows nothing"


def test_same_image_in_any_order_and_by_any_split(pipe: Pipeline) -> None:
    """As several processes would share the work: by start_index, or by a seed an image."""
    labels, seeds = [4, 2, 9, 0], [11, 12, 13, 14]
    whole = pipe(labels, seed=3, output_type="pt").images
    halves = [pipe(labels[k : k + 2], seed=3, start_index=k, output_type="pt").images for k in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-4)
    ordered = pipe(labels, seed=seeds, output_type="pt").images
    backwards = pipe(labels[::-1], seed=seeds[::-1], output_type="pt").images
    torch.testing.assert_close(backwards.flip(0), ordered, rtol=0, atol=1e-4)
    assert float((ordered - whole).abs().max()) > 0.05


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_saved_and_loaded_images_are_equal_to_the_bit(backbone: str, tmp_path: Path) -> None:
    pipe = make_pipeline(backbone)
    pipe.save_pretrained(tmp_path / "folder")
    loaded = Pipeline.from_pretrained(tmp_path / "folder")
    assert torch.equal(
        loaded("seven", num_images=3, output_type="pt").images, pipe(7, num_images=3, output_type="pt").images
    )
    assert (loaded.process, loaded.parameterization) == (pipe.process, pipe.parameterization)
    assert (loaded.class_names, loaded.defaults, loaded.t_max) == (NAMES, pipe.defaults, 1.0)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["backbone"] == ["dinit", type(pipe.backbone).__name__]


def test_latents_are_decoded_by_the_vae_that_is_saved_with_them(tmp_path: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(1)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(
        3, 3, **blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, scaling_factor=0.3
    )
    network = BACKBONES["dit"](8, 2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=10)
    pipe = Pipeline(
        network, {"name": "flow"}, {"name": "velocity"}, vae=vae, defaults={"sampler": "euler", "steps": 2}
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    latents = pipe([1, 2], output_type="latent").images
    with torch.no_grad():
        decoded = vae.decode(latents / 0.3).sample
    assert decoded.shape == (2, 3, 16, 16)
    assert torch.equal(loaded([1, 2], output_type="raw").images, decoded)
    assert [picture.mode for picture in loaded([1, 2]).images] == ["RGB", "RGB"]
    with pytest.raises(ValueError, match="the vae has 4 latent channels, the backbone takes 1"):
        make_pipeline(vae=vae)


def test_sharded_weights_load(tmp_path: Path) -> None:
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list((tmp_path / "backbone").glob("*.safetensors"))) > 1
    assert torch.equal(
        Pipeline.from_pretrained(tmp_path)(1, output_type="pt").images, pipe(1, output_type="pt").images
    )


def test_output_types_are_one_picture(pipe: Pipeline) -> None:
    def made(kind: str):
        return pipe([1, 2], output_type=kind).images

    raw, pt, array, pictures = made("raw"), made("pt"), made("np"), made("pil")
    assert torch.equal(pt, ((raw + 1) / 2).clamp(0, 1))
    assert float(raw.abs().max()) > 1, "something to clip, or the test shows nothing"
    assert array.shape == (2, 8, 8, 1)
    assert np.array_equal(array[..., 0], pt[:, 0].numpy())
    assert [p.mode for p in pictures] == ["L", "L"]
    assert np.abs(np.asarray(pictures[1], dtype=float) - 255 * array[1, ..., 0]).max() <= 0.501


def test_sampler_and_guidance_by_object_name_and_mapping(pipe: Pipeline) -> None:
    def made(**options) -> torch.Tensor:
        return pipe([5], seed=1, output_type="latent", **options).images

    assert torch.equal(made(sampler="heun", guidance=[]), made(sampler=Heun(), guidance=()))
    assert torch.equal(made(sampler={"name": "ddim", "eta": 0.5}), made(sampler=DDIM(eta=0.5)))
    assert torch.equal(made(guidance={"name": "cfg", "scale": 2.0}), made())
    torch.testing.assert_close(made(guidance=CFG(1.0)), made(guidance=[]), rtol=0, atol=1e-5)
    assert float((made(guidance=[]) - made()).abs().max()) > 1e-3
    times = PROCESSES.create("vp-discrete").scales(torch.tensor([1.0, 0.75, 0.5, 0.25])).time
    assert torch.equal(made(grid=times), made(grid="uniform"))
    assert torch.equal(made(grid={"name": "times", "values": times.tolist()}), made(grid="uniform"))


def test_unconditional_is_the_null_class(pipe: Pipeline) -> None:
    none = pipe(num_images=2, output_type="latent").images
    assert torch.equal(none, pipe([None, None], output_type="latent").images)
    torch.testing.assert_close(none, pipe(num_images=2, output_type="latent", guidance=[]).images)


def test_callback_sees_every_step(pipe: Pipeline) -> None:
    trajectory = Trajectory()
    out = pipe([1, 2, 3], batch_size=2, output_type="latent", callback_on_step_end=trajectory, sampler="heun")
    frames = trajectory.frames
    assert [tuple(frame.shape) for frame in frames] == [(3, 1, 8, 8)] * 4
    assert torch.equal(frames[-1], out.images)
    assert out.nfe == Heun().nfe(4) == 7


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    pipe = make_pipeline()
    still = pipe(1, output_type="pt").images
    for module in pipe.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    pipe.backbone.train()
    assert torch.equal(pipe(1, output_type="pt").images, still)
    assert pipe.backbone.training


def test_bfloat16_stays_near_float32(pipe: Pipeline) -> None:
    half = make_pipeline()
    half.backbone = nn.Module.to(half.backbone, torch.bfloat16)
    exact, rough = (p([1, 2], guidance=[], output_type="latent").images for p in (pipe, half))
    assert rough.dtype == torch.float32
    assert 0 < float((exact - rough).abs().mean()) < 0.1


def test_call_survives_json(pipe: Pipeline) -> None:
    options = {"sampler": "heun", "guidance": [CFG(3.0), "cads"], "grid": "karras", "seed": [7, 8, 9]}
    call = pipe.prepare([1, "two", None], **options)
    assert Call.from_config(json.loads(json.dumps(call.to_config(), allow_nan=False))) == call


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([10],), {}, "class 10 is out of range: this pipeline has classes 0 .. 9"),
        (([-1],), {}, "out of range"),
        (("sevn",), {}, "unknown class 'sevn'; did you mean 'seven'"),
        (([True],), {}, "whole number"),
        (([1.5],), {}, "whole number"),
        (([],), {}, "labels are empty"),
        (([1, 2],), {"num_images": 3}, "num_images = 3 contradicts 2 labels"),
        ((1,), {"num_images": 0}, "num_images must be at least 1"),
        ((1,), {"steps": 0}, "steps must be at least 1, got 0"),
        ((1,), {"steps": 2.5}, "whole number"),
        ((1,), {"sampler": "dddim"}, "unknown sampler 'dddim'; did you mean 'ddim'"),
        ((1,), {"sampler": CFG(2.0)}, "sampler must be a Sampler"),
        ((1,), {"guidance": "cgf"}, "unknown guidance 'cgf'; did you mean 'cfg'"),
        ((1,), {"grid": "times"}, "grid 'times' needs a value for values"),
        ((1,), {"guidance": {"name": "cfg", "scale": -1.0}}, ">= 0"),
        ((1,), {"grid": "krras"}, "unknown grid 'krras'; did you mean 'karras'"),
        (([1, 2],), {"seed": [1]}, "one for each of 2 images; got 1"),
        (([1, 2],), {"seed": [1, 2], "start_index": 4}, "start_index"),
        ((1,), {"seed": "x"}, "seed must be a whole number"),
        ((1,), {"batch_size": 0}, "batch_size must be at least 1"),
        ((1,), {"output_type": "pill"}, "unknown output type 'pill'; did you mean 'pil'"),
    ],
)
def test_mistakes_are_told_before_the_network_is_asked(arguments, options, message: str) -> None:
    pipe = make_pipeline()
    pipe.backbone.forward = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": None}, "needs process="),
        ({"parameterization": {"name": "epsilon"}, "process": {"name": "flow"}}, "singular"),
        ({"class_names": ["a", "b"]}, "2 class names for a backbone of 10 classes"),
        ({"defaults": {"smapler": "ddim"}}, "unknown pipeline default 'smapler'; did you mean 'sampler'"),
        ({"defaults": {"sampler": "dddim"}}, "unknown sampler 'dddim'"),
        ({"defaults": {"steps": 0}}, "at least 1"),
    ],
)
def test_a_pipeline_that_cannot_run_is_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_pipeline(**options)
