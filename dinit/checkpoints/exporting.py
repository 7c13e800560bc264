"""Weight export: dinit's weights under the names and in the file formats of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.checkpoints.keymap import KeyMap, Rule, map_keys
from dinit.checkpoints.layouts import LAYOUTS
from dinit.checkpoints.layouts.diffusers_dit import to_diffusers
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.base import BACKBONES
from dinit.models.layers.embedding import sincos_positions
from dinit.registry import suggest

_TO_DIT: KeyMap = (
    Rule(r"stem\.proj\.(.+)", r"x_embedder.proj.\1"),
    Rule(r"time_embedding\.mlp\.(.+)", r"t_embedder.mlp.\1"),
    Rule(r"label_embedding\.table\.weight", r"y_embedder.embedding_table.weight"),
    Rule(r"blocks\.(\d+)\.modulation\.linear\.(.+)", r"blocks.\1.adaLN_modulation.1.\2"),
    Rule(r"blocks\.(\d+)\.attention\.(qkv|proj)\.(.+)", r"blocks.\1.attn.\2.\3"),
    Rule(r"blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"blocks.\1.mlp.\2.\3"),
    Rule(r"head\.modulation\.linear\.(.+)", r"final_layer.adaLN_modulation.1.\1"),
    Rule(r"head\.linear\.(.+)", r"final_layer.linear.\1"),
)

# dinit's names -> those of a diffusers scheduler.
_SCHEDULES = {
    "linear": "linear",
    "scaled-linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "squared-cosine": "squaredcos_cap_v2",
}
_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class Format:
    """What a program reads. layout: in LAYOUTS, what its weights are of and trained on. fixed: arguments of our
    backbone that are built into the program's class, with their only values. free: whether the program takes
    process and parameterization, which may then differ from the layout's. folder: a folder, or one file."""

    program: str
    layout: str
    fixed: Mapping[str, Any]
    free: bool = False
    folder: bool = False


FORMATS: dict[str, Format] = {
    "dit": Format("facebookresearch/DiT", "dit", {"freq_shift": 0.0, "mlp_norm_eps": 1e-6}),
    "sit": Format("willisma/SiT", "sit", {"freq_shift": 0.0, "mlp_norm_eps": 1e-6}),
    "diffusers": Format("diffusers' DiTPipeline", "diffusers-dit", {"freq_shift": 1.0}, free=True, folder=True),
}


def check_export(
    backbone: Any, process: Mapping[str, Any], parameterization: Mapping[str, Any], name: str
) -> Format:
    """The format. ValueError, with the reason, where its program would give other images than this pipeline.

    process, parameterization: configs of what the backbone was trained on.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}{suggest(str(name), list(FORMATS))}")
    wanted = FORMATS[name]
    layout = LAYOUTS[wanted.layout]
    own, theirs = type(backbone), BACKBONES[layout.backbone]
    if own is not theirs:
        raise ValueError(
            f"{wanted.program} runs a {theirs.__name__}, this backbone is a {own.__name__}; "
            f"{_fitting(backbone, name)}"
        )
    for argument, value in wanted.fixed.items():
        given = getattr(backbone.config, argument, value)
        if given != value:
            raise ValueError(
                f"{wanted.program} has {argument} = {value:g} built in, this backbone was trained with {given:g}, "
                f"so its images would be others; {_fitting(backbone, name)}"
            )
    if not wanted.free:
        pairs = {
            "process": (process, layout.process),
            "parameterization": (parameterization, layout.parameterization),
        }
        for noun, (given, published) in pairs.items():
            if any(given.get(key) != value for key, value in published.items()):
                raise ValueError(
                    f"{wanted.program} samples with the {noun} {published}, this pipeline was trained on {given}; "
                    "its images would be noise"
                )
    return wanted


def _fitting(backbone: Any, refused: str) -> str:
    """The formats whose built-in arguments this backbone has, in words."""
    fits = [
        name
        for name, one in FORMATS.items()
        if name != refused
        and BACKBONES[LAYOUTS[one.layout].backbone] is type(backbone)
        and all(getattr(backbone.config, argument) == value for argument, value in one.fixed.items())
    ]
    return f"it fits the format {' or '.join(fits)}" if fits else "it fits no other format"


def published_state(backbone: Any) -> dict[str, Tensor]:
    """The state of DiT's and SiT's own classes: their names, with the position table that they keep."""
    side = backbone.image_size // backbone.patch_size
    table = sincos_positions(backbone.hidden_size, side, side)[None]
    mapped = map_keys(backbone.state_dict(), _TO_DIT)
    return {"pos_embed": table, **{key: tensor.detach().cpu().contiguous() for key, tensor in mapped.items()}}


def diffusers_model(backbone: Any) -> Any:
    """The same network as a DiTTransformer2DModel."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    config = backbone.config
    if config.mlp_ratio != 4:
        raise ValueError(f"diffusers' DiT has mlp_ratio = 4 built in, this one was trained with {config.mlp_ratio}")
    model = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels,
        out_channels=backbone.out_channels,
        num_layers=config.depth,
        sample_size=config.image_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=config.mlp_norm_eps,
    )
    model.load_state_dict(to_diffusers(backbone.state_dict()), strict=True)
    return model.eval()


def scheduler_arguments(process: Any, parameterization: Any) -> dict[str, Any]:
    """Arguments of diffusers' DDIMScheduler for this training. ValueError where it has none."""
    name = parameterization.registry_name
    if not isinstance(process, VPDiscrete) or name not in _PREDICTIONS:
        raise ValueError(
            f"diffusers' DiTPipeline supports discrete VP with {', '.join(_PREDICTIONS)}; this pipeline was "
            f"trained on {process} with {name}"
        )
    return {**beta_arguments(process), "prediction_type": _PREDICTIONS[name], "clip_sample": False}


def beta_arguments(process: VPDiscrete) -> dict[str, Any]:
    """The noise schedule as arguments of diffusers' schedulers for a chain of betas."""
    scale = 1000 / process.num_steps
    start, end = (1e-4 * scale, 0.02 * scale) if process.schedule == "linear" else (0.00085, 0.012)
    return {
        "num_train_timesteps": process.num_steps,
        "beta_schedule": _SCHEDULES[process.schedule],
        "beta_start": process.beta_start or start,
        "beta_end": process.beta_end or end,
        "rescale_betas_zero_snr": process.zero_terminal_snr,
    }
