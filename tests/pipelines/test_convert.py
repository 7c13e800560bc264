"""Published weights become pipelines: every layout from its golden files, and back to what other programs read."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference, null_labels, references, relative_error

from dinit.checkpoints.imagenet import imagenet_names
from dinit.checkpoints.layouts import candidates
from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.convert import RECORD, convert
from dinit.pipelines.weights.export import export

# Not whole denoisers, or with more inputs than a pipeline has.
ELSEWHERE = ("SuperResModel", "EncoderUNetModel", "UNetBlock", "ResnetBlockBigGANpp")
CONTAINERS = ("bare", "training", "safetensors")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        files = references(metafunc.config.getoption("--parity"))
        usable = [file for file in files if file.layout is not None and file.name not in ELSEWHERE]
        metafunc.parametrize("golden", usable, ids=lambda file: file.path.stem)


@pytest.fixture
def dit() -> Reference:
    return Reference(GOLDEN / "dit_sigma.safetensors")


@pytest.fixture
def sit() -> Reference:
    return Reference(GOLDEN / "sit.safetensors")


@pytest.fixture
def diffusers_dit() -> Reference:
    return Reference(GOLDEN / "diffusers_dit.safetensors")


def write(file: Reference, folder: Path, container: str) -> Path:
    """The golden weights as a repository would publish them."""
    state = {key: tensor.contiguous() for key, tensor in file.state.items()}
    if container == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    wrapped: Any = state
    if container == "training":
        worse = {f"module.{key}": tensor + 1 for key, tensor in state.items()}
        ema = {f"module.{key}": tensor for key, tensor in state.items()}
        wrapped = {"model": worse, "ema": ema, "opt": {"lr": 0.1}, "args": argparse.Namespace(seed=0)}
    torch.save(wrapped, folder / "weights.pt")
    return folder / "weights.pt"


def untold(file: Reference) -> dict[str, Any]:
    """What leaves no trace in the tensors of this file: its layout, if others are alike, and some arguments."""
    found = candidates(file.shapes)
    named = file.layout.registry_name  # type: ignore[union-attr]
    model = file.arguments.get("model", {})
    if named not in found:  # one published class, several trainings
        named = "ncsnpp-ve-discrete" if model.get("scale_by_sigma") else "ncsnpp-vp"
    backbone = file.build()
    told = file.layout.options(file.shapes)  # type: ignore[union-attr]
    accepted = list(inspect.signature(type(backbone).__init__).parameters)[1:]
    options = {name: backbone.config[name] for name in accepted if told.get(name) is None}
    return {"layout": named if len(found) > 1 else None, "options": options}


@pytest.mark.parametrize("container", CONTAINERS)
@torch.no_grad()
def test_golden_weights_become_a_pipeline(golden: Reference, container: str, tmp_path: Path) -> None:
    given = golden.tensors
    made = convert(write(golden, tmp_path, container), tmp_path / "pipe", **untold(golden))
    assert made.weights == ("ema" if container == "training" else "")
    assert made.parameters == sum(parameter.numel() for parameter in golden.build().parameters())
    pipe = Pipeline.from_pretrained(tmp_path / "pipe")
    if "out.sample" in given:
        labels = given["in.y"] if "in.y" in given else null_labels(pipe.backbone, len(given["in.x"]))
        channels = given["out.sample"].shape[1]
        out = pipe.backbone(given["in.x"], given["in.t"], pipe.backbone.embed(labels))[:, :channels]
        assert relative_error(out, given["out.sample"]) <= golden.tolerance
    # A plain call, with the pipeline's own sampler and guidance.
    last = pipe.backbone.num_classes - 1
    chosen: Any = {"labels": [last, 0]} if pipe.backbone.num_classes else {"num_images": 2}
    latents = pipe(**chosen, steps=2, output_type="latent").images
    assert latents.shape == (2, pipe.backbone.in_channels, pipe.backbone.image_size, pipe.backbone.image_size)
    assert bool(latents.isfinite().all())


def options_of(file: Reference) -> dict[str, Any]:
    return {"options": {"num_heads": file.build().config["num_heads"]}}


# --- which family ---


def test_dit_and_sit_are_told_apart_by_the_values_of_the_head(dit: Reference, tmp_path: Path) -> None:
    state = dit.state
    torch.save(state, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit)).recognised.name == "dit"
    # Rows of the last Linear are (patch position, channel), and SiT's second half of the channels never learned.
    for name in ("weight", "bias"):
        state[f"final_layer.linear.{name}"].unflatten(0, (4, 8))[:, 4:] = 0
    torch.save(state, tmp_path / "b.pt")
    made = convert(tmp_path / "b.pt", tmp_path / "q", **options_of(dit))
    assert made.recognised.name == "sit"
    assert "never trained" in made.recognised.evidence
    pipe = Pipeline.from_pretrained(tmp_path / "q")
    assert (pipe.process.registry_name, pipe.parameterization.registry_name) == ("flow", "reversed-velocity")


def test_the_checkpoints_own_arguments_decide_before_the_values(sit: Reference, tmp_path: Path) -> None:
    torch.save({"ema": sit.state, "args": argparse.Namespace(model="SiT-XL/2")}, tmp_path / "a.pt")
    made = convert(tmp_path / "a.pt", tmp_path / "p", **options_of(sit))
    assert (made.recognised.name, made.recognised.evidence) == ("sit", "the checkpoint's arguments name SiT-XL/2")


def test_a_name_that_contradicts_the_values_is_refused(sit: Reference, tmp_path: Path) -> None:
    torch.save(sit.state, tmp_path / "SiT-XL-2-256.pt")  # random weights: the head looks like DiT's
    with pytest.raises(ValueError, match="is named as sit, but the second half of its head was trained"):
        convert(tmp_path / "SiT-XL-2-256.pt", tmp_path / "p", **options_of(sit))


def test_an_undoubled_head_is_sits_unless_the_name_says_dit(tmp_path: Path) -> None:
    file = Reference(GOLDEN / "sit_nosigma.safetensors")
    for name, family in (("a.pt", "sit"), ("dit-s-2.pt", "dit")):
        torch.save(file.state, tmp_path / name)
        assert convert(tmp_path / name, tmp_path / name[:-3], **options_of(file)).recognised.name == family


def test_weights_that_nothing_tells_need_the_layout(dit: Reference, tmp_path: Path) -> None:
    state = dit.state
    for name in ("weight", "bias"):
        state[f"final_layer.linear.{name}"].zero_()
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"could be of dit or sit.*give the layout"):
        convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))
    torch.save(state, tmp_path / "my-sit.pt")
    assert convert(tmp_path / "my-sit.pt", tmp_path / "p", **options_of(dit)).recognised.name == "sit"


def test_wrong_layouts_are_refused(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="has not the tensors of layout 'dico'; they are of dit or sit"):
        convert(tmp_path / "a.pt", tmp_path / "p", layout="dico")
    with pytest.raises(ValueError, match="unknown checkpoint layout 'dti'; did you mean 'dit'"):
        convert(tmp_path / "a.pt", tmp_path / "p", layout="dti")
    torch.save({"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match=r"no known checkpoint layout .* \(first: conv1.weight, fc.bias\)"):
        convert(tmp_path / "resnet.pt", tmp_path / "p")
    assert not (tmp_path / "p").exists()


# --- what does not fit ---


def test_all_misfits_are_named_at_once(dit: Reference, tmp_path: Path) -> None:
    state = dit.state
    del state["blocks.1.attn.qkv.weight"]
    state["blocks.0.mlp.fc2.bias"] = torch.zeros(7)
    state["blocks.0.surplus.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="read as dit") as caught:
        convert(tmp_path / "a.pt", tmp_path / "p", layout="dit", **options_of(dit))
    for part in (
        "blocks.1.attention.qkv.weight",
        "blocks.0.mlp.fc2.bias has shape (7,)",
        "blocks.0.surplus.weight",
    ):
        assert part in str(caught.value)


def test_a_tensor_that_tells_the_size_is_lost(dit: Reference, tmp_path: Path) -> None:
    state = dit.state
    del state["x_embedder.proj.weight"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"cannot be inferred from it: tensor 'x_embedder.proj.weight' is missing"):
        convert(tmp_path / "a.pt", tmp_path / "p", layout="dit")


def test_another_position_table_is_refused(dit: Reference, tmp_path: Path) -> None:
    state = dit.state
    state["pos_embed"] += 0.01
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        ValueError,
        match=r"pos_embed is not the table of 16 patches that the published network has \(a difference of 0\.01\)",
    ):
        convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))


def test_options(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"num_heads cannot be inferred .* --option num_heads="):
        convert(tmp_path / "a.pt", tmp_path / "p")
    for options, told in (
        ({"num_head": 4}, "no argument 'num_head'; did you mean 'num_heads'"),
        ({"num_heads": 5}, "num_heads must divide hidden_size"),
        ({"num_heads": "four"}, "num_heads must be a whole number, got 'four'"),
        ({"num_heads": 4, "depth": 5}, "missing .*blocks.3.attention"),
    ):
        with pytest.raises(ValueError, match=told):
            convert(tmp_path / "a.pt", tmp_path / "p", options=options)


def test_blocks_with_different_embeddings_are_refused(diffusers_dit: Reference, tmp_path: Path) -> None:
    state = diffusers_dit.state
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    state[name] = state[name] + 1e-3
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"1 time or label embeddings differ from the first block's: .*{name}"):
        convert(tmp_path / "a.pt", tmp_path / "p", **options_of(diffusers_dit))


# --- what the pipeline carries ---


def test_published_sampling_is_the_default(dit: Reference, sit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "dit.pt")
    convert(tmp_path / "dit.pt", tmp_path / "p", **options_of(dit))
    call = Pipeline.from_pretrained(tmp_path / "p").prepare([1])
    assert (call.sampler.registry_name, call.sampler.variance, call.steps) == ("ddpm", "learned-range", 250)
    assert (call.guidance[0].scale, call.guidance[0].channels) == (4.0, 3)
    torch.save(sit.state, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "q", layout="sit", **options_of(sit))
    call = Pipeline.from_pretrained(tmp_path / "q").prepare([1])
    assert (call.sampler.registry_name, call.guidance[0].channels) == ("heun", 3)


@torch.no_grad()
def test_an_adm_clips_as_its_program_does(tmp_path: Path) -> None:
    """guided-diffusion's samplers have clip_denoised = True; DiT's and SiT's programs switch it off."""
    file = Reference(GOLDEN / "adm_cond_neworder.safetensors")
    torch.save(file.state, tmp_path / "a.pt")
    heads = {key: file.build().config[key] for key in ("num_heads", "head_dim", "attention_order")}
    convert(tmp_path / "a.pt", tmp_path / "p", options={**heads, "image_size": 8})
    pipe = Pipeline.from_pretrained(tmp_path / "p")
    assert [one.registry_name for one in pipe.guidance] == ["clip-x0"]
    clipped = pipe([1, 2], steps=4, output_type="latent")
    free = pipe([1, 2], steps=4, output_type="latent", guidance=None).images
    assert float(clipped.images.abs().max()) <= 1 < float(free.abs().max())
    assert torch.equal(pipe([1, 2], steps=4, output_type="latent", guidance_scale=1.0).images, clipped.images)


def test_process_and_parameterization_can_be_given(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    given = {"process": {"name": "vp-discrete", "schedule": "cosine"}, "parameterization": "v"}
    convert(tmp_path / "a.pt", tmp_path / "p", **given, **options_of(dit))
    pipe = Pipeline.from_pretrained(tmp_path / "p")
    assert pipe.process.schedule == "cosine"
    assert pipe.parameterization.registry_name == "v"
    with pytest.raises(ValueError, match="unknown process 'vpp'"):
        convert(tmp_path / "a.pt", tmp_path / "q", process="vpp", **options_of(dit))


def tiny_vae(channels: int = 4) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(latent_channels=channels, block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.2)


def test_without_an_autoencoder_there_are_latents_and_a_reference(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    made = convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))
    assert any("stabilityai/sd-vae-ft-ema" in note for note in made.notes)
    pipe = Pipeline.from_pretrained(tmp_path / "p")
    for output_type in ("pil", "np", "pt", "raw"):
        with pytest.raises(ValueError, match="autoencoder stabilityai/sd-vae-ft-ema, which is not in it"):
            pipe([1], steps=1, output_type=output_type)
    latents = pipe([1], steps=2, output_type="latent").images
    vae = tiny_vae()
    images = Pipeline.from_pretrained(tmp_path / "p", vae=vae)([1], steps=2, output_type="raw").images
    torch.testing.assert_close(images, vae.decode(latents / 0.2).sample)


@pytest.mark.parametrize("place", ["model", "pipeline"])
def test_an_autoencoder_goes_with_it(dit: Reference, tmp_path: Path, place: str) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    tiny_vae().save_pretrained(tmp_path / "v" / ("vae" if place == "pipeline" else ""))
    convert(tmp_path / "a.pt", tmp_path / "p", vae=tmp_path / "v", **options_of(dit))
    assert Pipeline.from_pretrained(tmp_path / "p")([1], steps=2, output_type="pt").images.shape == (1, 3, 8, 8)


def test_wrong_autoencoders_are_refused(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    tiny_vae(channels=3).save_pretrained(tmp_path / "v")
    with pytest.raises(ValueError, match="the vae has 3 latent channels, the backbone takes 4"):
        convert(tmp_path / "a.pt", tmp_path / "p", vae=tmp_path / "v", **options_of(dit))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="gave no AutoencoderKL"):
        convert(tmp_path / "a.pt", tmp_path / "p", vae=tmp_path / "nothing", **options_of(dit))
    assert not (tmp_path / "p").exists()


def test_imagenet_names_come_with_a_thousand_classes(tmp_path: Path) -> None:
    names = imagenet_names()
    assert names is not None
    assert (len(set(names)), names[0], names[207]) == (1000, "tench", "golden retriever")
    assert [name for name in names if name.startswith("maillot")] == ["maillot", "maillot tank suit"]
    torch.manual_seed(0)
    network = BACKBONES["dit"].preset("tiny", num_classes=1000)
    pipe = Pipeline(network, "vp-discrete", "epsilon")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    export(pipe, tmp_path / "a.pt", "dit")
    convert(tmp_path / "a.pt", tmp_path / "p", layout="dit", options={"num_heads": 4})
    made = Pipeline.from_pretrained(tmp_path / "p")
    assert made.class_names == names
    assert made.prepare("golden retriever").labels == (207,)


def test_the_folder_remembers_where_it_came_from(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))
    record = json.loads((tmp_path / "p" / RECORD).read_text())
    assert (record["source"], record["layout"]) == ("a.pt", "dit")
    assert len(record["sha256"]["a.pt"]) == 64
    assert str(tmp_path) not in json.dumps(record)


def test_targets_that_are_taken(dit: Reference, tmp_path: Path) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))
    with pytest.raises(FileExistsError, match="is not empty"):
        convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))
    convert(tmp_path / "a.pt", tmp_path / "p", overwrite=True, **options_of(dit))
    with pytest.raises(FileExistsError, match="holds other files than a pipeline"):
        convert(tmp_path / "a.pt", tmp_path, overwrite=True, **options_of(dit))
    (tmp_path / "p" / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    with pytest.raises(ValueError, match="holds the source"):
        convert(tmp_path / "p" / "a.pt", tmp_path / "p", overwrite=True, **options_of(dit))
    assert (tmp_path / "a.pt").exists()


# --- and back ---


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["dit_sigma", "dit_nosigma_p4", "sit", "sit_nosigma"])
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    file = Reference(GOLDEN / f"{name}.safetensors")
    family = name[:3]
    torch.save(file.state, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "p", layout=family, **options_of(file))
    written = export(Pipeline.from_pretrained(tmp_path / "p"), tmp_path / "b.pt", family)
    assert equal(torch.load(written, weights_only=True), file.state)


def diffusers_folder(file: Reference, folder: Path, scheduler: dict[str, Any]) -> Any:
    """A DiTPipeline of the golden weights, written by diffusers."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    model = DiTTransformer2DModel(**file.arguments).eval()
    model.load_state_dict(file.state)
    names = {label: f"thing {label}, other {label}" for label in range(10)}
    pipe = DiTPipeline(model, tiny_vae(), DDIMScheduler(**scheduler), id2label=names)
    pipe.save_pretrained(folder)
    # DiTPipeline does not save its labels; published folders have them.
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps({**index, "id2label": {str(k): v for k, v in names.items()}})
    )
    return model


@torch.no_grad()
def test_diffusers_folder_there_and_back(diffusers_dit: Reference, tmp_path: Path) -> None:
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01}
    model = diffusers_folder(diffusers_dit, tmp_path / "theirs", {**scheduler, "prediction_type": "v_prediction"})
    made = convert(tmp_path / "theirs", tmp_path / "ours")
    assert made.arguments["num_heads"] == 4  # from its config.json
    pipe = Pipeline.from_pretrained(tmp_path / "ours")
    assert (pipe.process.schedule, pipe.process.beta_start) == ("scaled-linear", 0.001)
    assert pipe.parameterization.registry_name == "v"
    assert pipe.class_names == [f"thing {label}, other {label}" for label in range(10)]
    assert pipe([1], steps=2, output_type="pt").images.shape == (1, 3, 8, 8)
    export(pipe, tmp_path / "back", "diffusers")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert equal(load_file(tmp_path / "back" / weights), load_file(tmp_path / "theirs" / weights))
    back = DiTPipeline.from_pretrained(tmp_path / "back")
    given = diffusers_dit.tensors
    theirs = back.transformer(given["in.x"], given["in.t"], class_labels=given["in.y"]).sample
    assert torch.equal(theirs, model(given["in.x"], given["in.t"], class_labels=given["in.y"]).sample)
    ours = pipe.backbone(given["in.x"], given["in.t"], pipe.backbone.embed(given["in.y"]))
    assert relative_error(ours, theirs) < 2e-5  # float32: 2.0e-6
    assert (back.scheduler.config.beta_schedule, back.scheduler.config.beta_start) == ("scaled_linear", 0.001)
    assert back.scheduler.config.prediction_type == "v_prediction"
    assert equal(back.vae.state_dict(), dict(pipe.vae.state_dict()))
    assert back.labels["thing 3"] == 3


@torch.no_grad()
def test_exported_pipeline_without_an_autoencoder_loads(diffusers_dit: Reference, tmp_path: Path) -> None:
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

    torch.save(diffusers_dit.state, tmp_path / "a.pt")
    given = {"options": {"num_heads": 4, "image_size": 8}}
    convert(tmp_path / "a.pt", tmp_path / "p", **given)
    export(Pipeline.from_pretrained(tmp_path / "p"), tmp_path / "q", "diffusers")
    back = DiTPipeline.from_pretrained(tmp_path / "q", vae=tiny_vae())
    assert back.scheduler.config.beta_end == 0.02
    assert equal(dict(back.transformer.state_dict()), diffusers_dit.state)


def test_exports_that_would_give_other_images_are_refused(
    dit: Reference, diffusers_dit: Reference, tmp_path: Path
) -> None:
    torch.save(dit.state, tmp_path / "a.pt")
    torch.save(diffusers_dit.state, tmp_path / "b.pt")
    convert(tmp_path / "a.pt", tmp_path / "p", **options_of(dit))
    convert(tmp_path / "b.pt", tmp_path / "q", **options_of(diffusers_dit))
    convert(tmp_path / "a.pt", tmp_path / "v", parameterization="v", **options_of(dit))
    ours, hub, v = (Pipeline.from_pretrained(tmp_path / name) for name in "pqv")
    shipped = Pipeline.from_pretrained("digits-dico")
    for pipe, name, told in (
        (ours, "diffusers", "freq_shift = 1 built in.*it fits the format dit"),
        (hub, "dit", "freq_shift = 0 built in.*it fits the format diffusers"),
        (ours, "sit", "runs a SiT, this backbone is a DiT"),
        (shipped, "dit", "runs a DiT, this backbone is a DiCo"),
        (v, "dit", "samples with the parameterization"),
        (ours, "dti", "unknown format 'dti'; did you mean 'dit'"),
    ):
        with pytest.raises(ValueError, match=told):
            export(pipe, tmp_path / "out.pt", name)
    with pytest.raises(ValueError, match=r"must end in \.pt or \.pth"):
        export(ours, tmp_path / "out.bin", "dit")
    with pytest.raises(FileExistsError, match="is there already"):
        export(ours, tmp_path / "a.pt", "dit")


LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SCALED = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("average", [False, True])
def test_a_noise_schedule_next_to_the_weights_is_compared(
    dit: Reference, dtype: torch.dtype, average: bool, tmp_path: Path
) -> None:
    """As a module around the network keeps it."""
    state = {f"model.{key}": one for key, one in dit.state.items()}
    state |= {f"model_ema.{key}": one for key, one in dit.state.items()} if average else {}
    torch.save({"state_dict": {**state, "betas": LINEAR.to(dtype)}}, tmp_path / "a.ckpt")
    made = convert(tmp_path / "a.ckpt", tmp_path / "p", **options_of(dit))
    assert any("betas" in note for note in made.notes) == (not average)
    torch.save({"state_dict": {**state, "betas": SCALED.to(dtype)}}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"has 1000 betas from 0\.0015 to 0\.0195 next to its weights.*--process"):
        convert(tmp_path / "b.ckpt", tmp_path / "q", **options_of(dit))
    given = {"name": "vp-discrete", "schedule": "scaled-linear", "beta_start": 0.0015, "beta_end": 0.0195}
    convert(tmp_path / "b.ckpt", tmp_path / "q", process=given, **options_of(dit))
    assert Pipeline.from_pretrained(tmp_path / "q").process.beta_end == 0.0195
    with pytest.raises(ValueError, match="next to its weights, which are not those of"):
        convert(tmp_path / "a.ckpt", tmp_path / "r", layout="sit", **options_of(dit))
