"""Speed on a GPU: DiT-XL/2 against diffusers and the device's own rate of products, other backbones, training."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_checks import one_line
from gpu_common import (
    FIGURES,
    Job,
    Row,
    Setting,
    flops,
    forget,
    forward,
    inputs,
    milliseconds,
    network,
    peak_gigabytes,
    prepared,
    shown,
)
from torch import Tensor

from dinit.pipelines.generate import Pipeline
from dinit.samplers import DDIM
from dinit.samplers.guidance import CFG

BF16 = torch.bfloat16
IMAGENET = {"image_size": 32, "in_channels": 4, "num_classes": 1000}
# title, backbone, preset, overrides, and how many times as fast as DiT-XL/2 it is to be
FAMILIES: list[tuple[str, str, str, dict[str, Any], float | None]] = [
    ("DiCo-XL", "dico", "XL", {}, 2.5),
    ("DiC-XL", "dic", "XL", {}, 1.2),
    ("LightningDiT-XL/2", "lightningdit", "XL/2", {"image_size": 32, "in_channels": 4}, None),
    ("DiS-H/2", "dis", "H/2", {}, None),
    ("U-Net", "unet", "", {**IMAGENET, "channel_mult": (1, 2, 2), "attention_resolutions": (16, 8)}, None),
]
SAMPLING_STEPS = 20


def jobs(setting: Setting) -> list[Job]:
    return [
        Job("the rate of matrix products", matmul_rate, 5),
        Job("DiT-XL/2, one evaluation", evaluation, 120),
        Job("DiT-XL/2, sampling", sampling, 40),
        *(Job(f"{family[0]}, one evaluation", _family_job(*family), 15) for family in FAMILIES),
        *(
            Job(f"{title}, training step", _training_job(title, name, preset, overrides), 20)
            for title, name, preset, overrides, _ in [("DiT-XL/2", "dit", "XL/2", {}, None), *FAMILIES]
        ),
        *(
            Job(f"{family[0]}, compiled", _compiled_job(*family), 70)
            for family in (FAMILIES[:1] if setting.smoke else FAMILIES)
            if family[1] != "dis"  # the scan is a kernel already, and its loop unrolls under the compiler
        ),
    ]


def matmul_rate(setting: Setting) -> Iterator[Row]:
    """bf16 products of 8192 × 8192 matrices: the rate that a network's share is of."""
    size = 256 if setting.smoke else 8192
    a, b = (torch.randn(size, size, device=setting.device, dtype=BF16) for _ in range(2))
    times = milliseconds(lambda: a @ b, setting)
    FIGURES["rate"] = 2 * size**3 / statistics.median(times) * 1e3
    yield Row(f"bf16 product of {size} × {size}", f"{FIGURES['rate'] / 1e12:.4g} TFLOP/s, {shown(times)}")


def _peer(setting: Setting) -> Any:
    """diffusers' DiT of the same shape."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    heads, depth = (2, 2) if setting.smoke else (16, 28)
    model = prepared(
        lambda: DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=depth,
            attention_bias=True, sample_size=32, patch_size=2, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
        ),
        setting,
        BF16,
    )  # fmt: skip
    return model


def _dit(setting: Setting) -> Any:
    """Ours; in a smoke run as small as the peer."""
    from dinit.models.dit import DiT

    small = {"depth": 2, "hidden_size": 144, "num_heads": 2} if setting.smoke else {}
    return prepared(lambda: DiT.preset("XL/2", **small), setting, BF16)


def evaluation(setting: Setting) -> Iterator[Row]:
    """Eager, compiled and with CUDA graphs, and diffusers eager and compiled."""
    batch, what = setting.batch, f"DiT-XL/2, bf16, batch {setting.batch}, one evaluation"
    peer, dit = _peer(setting), _dit(setting)
    x, t, labels = inputs(dit, batch, setting, BF16)
    many = t.expand(batch)

    @torch.no_grad()
    def theirs(call: Any = peer) -> Tensor:
        return call(x, timestep=many, class_labels=labels, return_dict=False)[0]

    ours = forward(dit, batch, setting, BF16)
    work = FIGURES["dit flops"] = flops(ours)
    yield Row("operations of DiT-XL/2 at this batch", f"{work / 1e12:.4g} TFLOP")
    base = milliseconds(theirs, setting)
    yield Row(f"{what}, diffusers eager", shown(base))
    yield from _against(f"{what}, eager", milliseconds(ours, setting), base, work, None, None)
    FIGURES["dit"] = statistics.median(milliseconds(ours, setting, 0))
    if (peak := peak_gigabytes(ours, setting)) is not None:
        yield Row("memory at the most, eager, weights included (both networks)", f"{peak:.2f} GiB")
    for how, options in (("compiled", setting.compile_options), ("with CUDA graphs", setting.graph_options)):
        try:
            compiled = torch.compile(dit, **options)
            times = milliseconds(forward(dit, batch, setting, BF16, compiled), setting)
        except Exception as error:  # the compiler may miss something here: the rest is still of interest
            yield Row(f"{what}, {how}", one_line(error), False)
            continue
        best = how == "compiled"
        yield from _against(
            f"{what}, {how}",
            times,
            base,
            work,
            setting.target(2.0 if best else None),
            setting.target(0.55 if best else None),
        )
        if best:
            FIGURES["dit compiled"] = statistics.median(times)
        torch._dynamo.reset()


def _against(
    what: str, times: list[float], base: list[float], work: float, wanted: float | None, share_wanted: float | None
) -> Iterator[Row]:
    ratio = statistics.median(base) / statistics.median(times)
    share = work / statistics.median(times) * 1e3 / FIGURES["rate"]
    yield Row(what, shown(times))
    yield Row(
        f"{what}: diffusers' eager time over this",
        f"{ratio:.2f}",
        None if wanted is None else ratio >= wanted,
        "" if wanted is None else f"at least {wanted:g}",
    )
    yield Row(
        f"{what}: share of the rate of products",
        f"{share:.1%}",
        None if share_wanted is None else share >= share_wanted,
        "" if share_wanted is None else f"at least {share_wanted:.0%}",
    )


def sampling(setting: Setting) -> Iterator[Row]:
    """Whole calls of both libraries' pipelines: labels to latents, with guidance: 2 B images a step."""
    steps, batch = (2 if setting.smoke else SAMPLING_STEPS), setting.batch
    labels = [k % 1000 for k in range(batch)]
    dit, peer = _dit(setting), _peer(setting)
    theirs = _peer_pipeline(peer, setting)
    times = milliseconds(
        partial(theirs, labels, guidance_scale=4.0, num_inference_steps=steps, output_type="np"), _few(setting), 1
    )
    base = statistics.median(times)
    title = f"DDIM, {steps} steps, CFG 4, batch {batch}"
    yield Row(f"diffusers' DiTPipeline, {title}", f"{shown(times)}, {batch / base * 1e3:.4g} images/s")
    del theirs, peer  # their memory is not ours
    for how in ("eager", "compiled", "with CUDA graphs"):
        options = {"eager": False, "compiled": setting.compile_options or True}.get(how, setting.graph_options)
        pipe = Pipeline(dit, "vp-discrete", "epsilon", t_max=0.999, compile=options)
        pipe.set_progress_bar_config(disable=True)

        def call(pipe: Pipeline = pipe) -> Any:
            return pipe(
                labels,
                sampler=DDIM(),
                steps=steps,
                guidance=CFG(4.0),
                seed=0,
                output_type="latent",
                batch_size=batch,
            )

        try:
            found = milliseconds(call, _few(setting), 1)
        except Exception as error:
            yield Row(f"dinit, {how}, {title}", one_line(error), False)
            continue
        speed = base / statistics.median(found)
        wanted = setting.target(2.0 if how == "compiled" else None)
        yield Row(
            f"dinit, {how}, {title}",
            f"{shown(found)}, {batch / statistics.median(found) * 1e3:.4g} images/s, {speed:.2f} × diffusers",
            None if wanted is None else speed >= wanted,
            "" if wanted is None else f"at least {wanted:g} × diffusers eager",
        )
        if (peak := peak_gigabytes(call, setting)) is not None:
            yield Row(f"dinit, {how}, {title}: memory at the most", f"{peak:.2f} GiB")
        torch._dynamo.reset()


def _few(setting: Setting) -> Setting:
    """Fewer rounds, of what takes seconds."""
    return Setting(setting.device, setting.smoke, min(setting.rounds, 3), setting.deadline)


def _peer_pipeline(transformer: Any, setting: Setting) -> Any:
    """DiTPipeline with an autoencoder of one small convolution each way, whose time does not count."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    vae: Any = AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=32
    )
    scheduler: Any = DDIMScheduler()
    pipe: Any = DiTPipeline(transformer, vae.to(setting.device, BF16).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _family_job(title: str, name: str, preset: str, overrides: dict[str, Any], wanted: float | None) -> Any:
    def run(setting: Setting) -> Iterator[Row]:
        model = network(name, preset, setting, BF16, **overrides)
        call = forward(model, setting.batch, setting, BF16)
        yield from _beside(
            f"{title}, bf16, batch {setting.batch}, eager",
            milliseconds(call, setting),
            "dit",
            setting.target(wanted),
        )
        work = flops(call)
        share = work / statistics.median(milliseconds(call, setting, 0)) * 1e3 / FIGURES["rate"]
        yield Row(f"{title}, share of the rate of products (the scan does not count)", f"{share:.1%}")
        if (peak := peak_gigabytes(call, setting)) is not None:
            yield Row(f"{title}, memory at the most", f"{peak:.2f} GiB")

    return run


def _compiled_job(title: str, name: str, preset: str, overrides: dict[str, Any], wanted: float | None) -> Any:
    def run(setting: Setting) -> Iterator[Row]:
        model = network(name, preset, setting, BF16, **overrides)
        compiled = torch.compile(model, **setting.compile_options)
        times = milliseconds(forward(model, setting.batch, setting, BF16, compiled), setting)
        yield from _beside(
            f"{title}, bf16, batch {setting.batch}, compiled", times, "dit compiled", setting.target(wanted)
        )

    return run


def _beside(what: str, times: list[float], of: str, wanted: float | None) -> Iterator[Row]:
    base = FIGURES.get(of)
    if base is None:
        yield Row(what, shown(times))
        return
    ratio = base / statistics.median(times)
    yield Row(
        what,
        f"{shown(times)}, {ratio:.2f} × DiT-XL/2",
        None if wanted is None else ratio >= wanted,
        "" if wanted is None else f"at least {wanted:g} × DiT-XL/2",
    )


class _Latents:
    """In place of a data set: its shape."""

    image_size, channels, num_classes = 32, 4, 1000

    def __init__(self, size: int, channels: int, classes: int) -> None:
        self.image_size, self.channels, self.num_classes = size, channels, classes


def _training_job(title: str, name: str, preset: str, overrides: dict[str, Any]) -> Any:
    def run(setting: Setting) -> Iterator[Row]:
        for batch in (setting.batch, setting.batch // 2, setting.batch // 4):
            try:
                yield from _training(title, name, preset, overrides, batch, setting)
                return
            except torch.OutOfMemoryError as error:
                yield Row(f"{title}, training step, batch {batch}", one_line(error))
            forget(setting)

    return run


def _training(
    title: str, name: str, preset: str, overrides: dict[str, Any], batch: int, setting: Setting
) -> Iterator[Row]:
    """dinit's own step: bf16 autocast, AdamW, gradient clipping, EMA, in float32 weights."""
    from dinit.pipelines.launch import training_processes
    from dinit.training.batches import Share
    from dinit.training.build import make_backbone, make_network, make_objective
    from dinit.training.recipe.file import parse_recipe
    from dinit.training.run.health import NoiseBins
    from dinit.training.run.profile import Profile
    from dinit.training.state import TrainState
    from dinit.training.step import TrainingStep

    data: Any = _Latents(8, 1, 10) if setting.smoke else _Latents(32, 4, 1000)
    shape = {"preset": "tiny"} if setting.smoke else {**({"preset": preset} if preset else {}), **overrides}
    backbone = {"name": name, **shape, "learn_sigma": False}
    recipe = parse_recipe(yaml.safe_dump({
        "name": "speed", "data": "digits", "backbone": _plain(backbone), "process": "flow",
        "parameterization": "velocity", "tracker": None,
        "training": {"steps": 1000, "batch_size": batch, **({} if setting.smoke else {"precision": "bf16"})},
    }))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, training_processes(recipe, Path(folder)) as accelerator:
        device = accelerator.device
        with torch.device(device):
            model = make_backbone(recipe, data)
        state = TrainState(recipe, make_network(recipe, model), accelerator)
        share = Share(batch)
        step = TrainingStep(
            recipe, data, make_objective(recipe), state, share, NoiseBins(device), Profile(False, device)
        )
        x = torch.randn(batch, data.channels, data.image_size, data.image_size)
        labels = torch.arange(batch) % data.num_classes
        source = itertools.repeat((x.pin_memory(), labels.pin_memory()) if setting.cuda else (x, labels))
        numbers = itertools.count(1)
        state.network.train()

        call = partial(_one_step, step, numbers, source)
        times = milliseconds(call, setting)
        seconds = statistics.median(times) / 1e3
        work = 3 * _forward_flops(model, data, batch, device)
        yield Row(
            f"{title}, training step, batch {batch}",
            f"{shown(times)}, {batch / seconds:.4g} images/s, "
            f"{work / seconds / FIGURES['rate']:.1%} of the rate of products",
        )
        if (peak := peak_gigabytes(call, setting)) is not None:
            yield Row(f"{title}, training step, batch {batch}: memory at the most", f"{peak:.2f} GiB")
        state.release()


def _one_step(step: Any, numbers: Iterator[int], source: Iterator[tuple[Tensor, Tensor]]) -> None:
    step(next(numbers), source)


def _forward_flops(model: Any, data: Any, batch: int, device: torch.device) -> float:
    x = torch.randn(batch, data.channels, data.image_size, data.image_size, device=device)
    labels = torch.arange(batch, device=device) % data.num_classes

    @torch.no_grad()
    def run() -> None:
        with torch.autocast(device.type, BF16, enabled=device.type == "cuda"):
            model(x, torch.full((batch,), 400.0, device=device), model.embed(labels))

    return flops(run)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which YAML has."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
