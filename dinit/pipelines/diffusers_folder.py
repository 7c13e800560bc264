"""Pipeline folders of diffusers, opened without conversion: unconditional or with classes, on pixels or latents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinit.checkpoints.from_diffusers import check_variance
from dinit.checkpoints.interop.networks import class_backbone
from dinit.checkpoints.interop.schedule import SCHEDULERS, read_scheduler
from dinit.compat import dtype_option
from dinit.contents import usual_variant
from dinit.diffusion import Process
from dinit.diffusion.discrete import BetaChain
from dinit.pipelines.loading import INDEX, check_tensors, expected_shapes, read_json, weight_shapes

OPTIONS = ("dtype", "torch_dtype", "null_label", "variant")
STEPS = 50
DIT_GUIDANCE = 4.0  # DiTPipeline's own, on all channels

# What each component may be; pipelines with other components are not covered.
_COMPONENTS = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": SCHEDULERS,
}
# Names of attention's weights before diffusers 0.12, which diffusers still reads.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_diffusers_folder(folder: Path) -> bool:
    """Whether it is a pipeline folder of diffusers, and not of dinit: one with a scheduler."""
    if not (folder / INDEX).is_file():
        return False
    index = read_json(folder / INDEX)
    return index.get("_class_name") != "Pipeline" and "scheduler" in _components(index)


def read_diffusers_folder(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of dinit's Pipeline for it. Only safetensors are read, and only known classes are made.

    options: dtype, as diffusers takes it; null_label, as denoiser_from_diffusers does. The defaults are DDIM
    in 50 steps, with the scheduler's spacing, its clipping of pixels and DiTPipeline's guidance scale.
    FileNotFoundError or ValueError, with the classes of the pipeline and of the part, for what is not covered.
    """
    index = read_json(folder / INDEX)
    parts, owner = _components(index), f"{folder} ({index.get('_class_name')})"
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"{owner}: a diffusers folder takes {', '.join(OPTIONS)} only, got {name}")
    _check_components(owner, parts)
    try:
        made = {
            name: _load(kind, folder / name, options.get("dtype"), options.get("variant"))
            for name, kind in parts.items()
        }
        network, scheduler = made.get("unet") or made["transformer"], made["scheduler"]
        check_variance(network, scheduler)
        backbone = class_backbone(network, options.get("null_label"))
        process, parameterization = read_scheduler(scheduler)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error
    if not backbone.image_size:
        raise ValueError(f"{owner}: the config of {type(network).__name__} has no sample_size; give it one")
    return {
        "backbone": backbone.eval(),
        "process": process,
        "parameterization": parameterization,
        "vae": made.get("vae"),
        "class_names": _class_names(owner, index.get("id2label"), backbone.num_classes),
        "defaults": _defaults(scheduler, process, guided="transformer" in parts, pixels="vae" not in parts),
    }


def _components(index: Mapping[str, Any]) -> dict[str, str]:
    """{component: class name} of what is there."""
    pairs = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    return {name: str(entry[1]) for name, entry in pairs.items() if entry[1] is not None}


def _check_components(owner: str, parts: Mapping[str, str]) -> None:
    odd = [f"{name} ({kind})" for name, kind in parts.items() if kind not in _COMPONENTS.get(name, ())]
    if odd:
        raise ValueError(
            f"{owner} does not load directly: {', '.join(odd)} is not covered. Open it with diffusers and hand it "
            "to denoiser_from_diffusers of dinit.checkpoints.from_diffusers, which takes texts by condition="
        )
    if ("unet" in parts) == ("transformer" in parts):
        raise ValueError(f"{owner} must have one of unet and transformer, got {', '.join(parts)}")


def _load(kind: str, folder: Path, dtype: Any, variant: str | None) -> Any:
    import diffusers

    class_: Any = getattr(diffusers, kind)
    if kind in SCHEDULERS:
        return class_.from_config(read_json(folder / "scheduler_config.json"))
    expected = expected_shapes(class_, folder)
    variant = usual_variant(folder, variant)
    found = {_renamed(name, expected): shape for name, shape in weight_shapes(folder, variant).items()}
    check_tensors(folder, expected, found)
    return class_.from_pretrained(folder, use_safetensors=True, variant=variant, **dtype_option(dtype))


def _renamed(name: str, expected: Mapping[str, Any]) -> str:
    """The current name of a tensor that was saved under an old one."""
    new = re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda m: _RENAMED[m[0]], name)
    return new if name not in expected and new in expected else name


def _class_names(owner: str, table: Any, num_classes: int) -> list[str] | None:
    if not isinstance(table, Mapping) or not num_classes:
        return None
    if sorted(table) != sorted(map(str, range(num_classes))):
        raise ValueError(f"{owner}: id2label names {len(table)} classes, the network has {num_classes}")
    return [str(table[str(label)]) for label in range(num_classes)]


def _defaults(scheduler: Any, process: Process, guided: bool, pixels: bool) -> dict[str, Any]:
    config, defaults = scheduler.config, {"sampler": "ddim", "steps": STEPS}
    if isinstance(process, BetaChain):
        spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
        defaults["steps"] = min(STEPS, process.num_steps)
        defaults["grid"] = {"name": "timesteps", "spacing": spacing, "offset": offset}
    if guided:
        defaults["guidance"] = [{"name": "cfg", "scale": DIT_GUIDANCE}]
    elif pixels and config.get("clip_sample", False):
        defaults["guidance"] = [{"name": "clip-x0", "limit": config.get("clip_sample_range", 1.0)}]
    return defaults
