"""Pipeline folders of diffusers, opened without conversion: unconditional or with classes, on pixels or latents."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinit.checkpoints.from_diffusers import check_variance
from dinit.checkpoints.interop.network_config import checked_network, shapes_of
from dinit.checkpoints.interop.networks import class_backbone
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_config import (
    SCHEDULERS,
    TREE,
    checked,
    clipping_of,
    scheduler_of,
    settings_of,
    shortened,
)
from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler
from dinit.compat import dtype_option
from dinit.contents import usual_variant
from dinit.diffusion import Process
from dinit.diffusion.discrete import BetaChain
from dinit.pipelines.call import to_spec
from dinit.pipelines.loading import INDEX, check_tensors, is_own_class, read_json, weight_shapes

OPTIONS = ("dtype", "torch_dtype", "null_label", "variant", "process", "parameterization", "t_max")
DIT_GUIDANCE = 4.0  # DiTPipeline's own, on all channels

# What each component may be; pipelines with other components are not covered.
_COMPONENTS = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
    "vae": ("AutoencoderKL",),
}
_NETWORKS = ("unet", "transformer")
_OLDER = {"Transformer2DModel": "DiTTransformer2DModel"}  # the name of DiT's class before diffusers 0.28
_STEPS = 50
_STEPS_OF = {"DDPMPipeline": 1000}  # of a call without a number
# These pipelines make their own scheduler of whatever the folder has.
_SCHEDULER_OF = {"DDIMPipeline": "DDIMScheduler", "PNDMPipeline": "PNDMScheduler"}
# Names of attention's weights before diffusers 0.12, which diffusers still reads.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_diffusers_folder(folder: Path) -> bool:
    """Whether it is a pipeline folder of diffusers, and not of dinit: one with a network or a scheduler."""
    if not (folder / INDEX).is_file():
        return False
    index = read_json(folder / INDEX)
    return not is_own_class(index) and any(name in index for name in (*_NETWORKS, "scheduler"))


def read_diffusers_folder(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of dinit's Pipeline for it. Only safetensors are read, and only known classes are made.

    options: dtype, as diffusers takes it; null_label, process, parameterization and t_max, as
    denoiser_from_diffusers does. The defaults are those of the diffusers pipeline: its scheduler, its number of
    steps and DiTPipeline's guidance scale. What the scheduler clips is also in the default guidance, for other
    samplers.
    FileNotFoundError or ValueError, with the classes of the pipeline and of the part, for what is not covered.
    """
    index = read_json(folder / INDEX)
    pipeline = _pipeline_class(folder / INDEX, index)
    parts, owner = _components(folder / INDEX, index), f"{folder} ({pipeline})"
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"{owner}: a diffusers folder takes {', '.join(OPTIONS)} only, got {name}")
    given = {name: options[name] for name in ("process", "parameterization") if options.get(name) is not None}
    _check_components(owner, parts, given)
    try:
        networks = {
            name: _load(kind, folder / name, options.get("dtype"), options.get("variant"))
            for name, kind in parts.items()
            if name != "scheduler"
        }
        network: Any = networks.get("unet") or networks["transformer"]
        backbone = class_backbone(network, options.get("null_label"))
        trained_on, defaults = given, {"sampler": "ddim", "steps": _STEPS}
        if len(given) < 2:
            scheduler = _Scheduler(folder / "scheduler" / "scheduler_config.json", pipeline, parts["scheduler"])
            check_variance(network, scheduler.made)
            process, parameterization = read_scheduler(scheduler.made)
            trained_on = {"process": process, "parameterization": parameterization, **given}
            if not given:
                defaults = scheduler.defaults(process)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error
    if not backbone.image_size:
        raise ValueError(f"{owner}: the config of {type(network).__name__} has no sample_size; give it one")
    if "transformer" in parts:
        defaults["guidance"] = [{"name": "cfg", "scale": DIT_GUIDANCE}, *defaults.get("guidance", [])]
    made = {
        "backbone": backbone.eval(),
        **trained_on,
        "vae": networks.get("vae"),
        "class_names": _class_names(owner, index.get("id2label"), backbone.num_classes),
        "defaults": defaults,
    }
    return made if options.get("t_max") is None else {**made, "t_max": options["t_max"]}


def _pipeline_class(path: Path, index: Mapping[str, Any]) -> str:
    """The pipeline's class, which decides the defaults. ValueError where there is none."""
    import diffusers

    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{path}: _class_name = {shortened(name)} must be the name of the pipeline's class")
    if not (name.endswith("Pipeline") and hasattr(diffusers, name)):
        warnings.warn(
            f"{path}: _class_name = {name!r} is no pipeline of diffusers; the defaults are the folder's scheduler "
            f"in {_STEPS} steps",
            UserWarning,
            stacklevel=4,
        )
    return name


def _components(path: Path, index: Mapping[str, Any]) -> dict[str, str]:
    """{component: class name} of what is there. ValueError for an entry of another form."""
    found: dict[str, str] = {}
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            found[name] = entry[1]
            if entry[1] in _COMPONENTS.get(name, SCHEDULERS) and entry[0] != "diffusers":
                raise ValueError(
                    f"{path}: {name} = {entry!r} is a class of {entry[0]!r}; only diffusers' own is covered"
                )
        elif name in (*_COMPONENTS, "scheduler") and entry != [None, None]:
            raise ValueError(f"{path}: {name} = {shortened(entry)} must be [library, class name]")
    return found


def _check_components(owner: str, parts: Mapping[str, str], given: Mapping[str, Any]) -> None:
    odd = [name for name, kind in parts.items() if name != "scheduler" and kind not in _COMPONENTS.get(name, ())]
    if odd:
        named = ", ".join(f"{name} ({parts[name]})" for name in odd)
        networks = [name for name in _NETWORKS if name in parts]
        advice = ""
        if len(networks) == 1 and "scheduler" in parts:
            advice = (
                ". Open it with diffusers and hand it to denoiser_from_diffusers of "
                "dinit.checkpoints.from_diffusers, which reads the network without the other parts; it takes "
                "encoded texts by condition="
            )
            if parts["scheduler"] not in SCHEDULERS:
                advice += ", and for this scheduler process= and parameterization="
        raise ValueError(f"{owner} does not load directly: {named} is not covered{advice}")
    if ("unet" in parts) == ("transformer" in parts):
        raise ValueError(f"{owner} must have one of unet and transformer, got {', '.join(parts)}")
    if "scheduler" not in parts:
        raise ValueError(f"{owner} has no scheduler in its {INDEX}")
    if parts["scheduler"] not in SCHEDULERS and len(given) < 2:
        raise ValueError(
            f"{owner} does not load directly: scheduler ({parts['scheduler']}) is not covered, as it does not show "
            "what the network was trained on. Give process= and parameterization= if you know it"
        )


def _load(kind: str, folder: Path, dtype: Any, variant: str | None) -> Any:
    import diffusers

    class_: Any = getattr(diffusers, _OLDER.get(kind, kind))
    path = folder / "config.json"
    config = read_json(path)
    if config.get("_class_name", kind) not in (kind, _OLDER.get(kind, kind)):
        raise ValueError(f"{path} is of the class {config['_class_name']!r}; {INDEX} has {kind} for it")
    older = getattr(diffusers, kind) if kind in _OLDER else None
    if older is not None and config.get("norm_type") != "ada_norm_zero":
        raise ValueError(
            f"{path} is of the class {kind} with norm_type = {config.get('norm_type')!r}; only 'ada_norm_zero', a "
            "DiT, is covered"
        )
    made = checked_network(class_, config, str(path), older)
    expected = shapes_of(class_, made, str(path))
    variant = usual_variant(folder, variant)
    found = {_renamed(name, expected): shape for name, shape in weight_shapes(folder, variant).items()}
    check_tensors(folder, expected, found)
    options = {**made, **dtype_option(dtype)}  # the config's values in their own types, in place of the file's
    return class_.from_pretrained(folder, use_safetensors=True, variant=variant, **options)


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


class _Scheduler:
    """The scheduler of a pipeline folder: what the network was trained on, and how its pipeline samples by default.

    path: its scheduler_config.json. pipeline: the pipeline's class. kind: the scheduler's class.
    ValueError where a key of the config is not usable.
    """

    def __init__(self, path: Path, pipeline: str, kind: str) -> None:
        self.path, self.pipeline, self.kind = path, pipeline, kind
        self.config = read_json(path)
        self.made = scheduler_of(self.config, str(path), kind)

    def defaults(self, process: Process) -> dict[str, Any]:
        """Those of a call of the pipeline, on the scheduler's process. ValueError where it cannot run."""
        name, steps = _SCHEDULER_OF.get(self.pipeline, self.kind), _STEPS_OF.get(self.pipeline, _STEPS)
        if isinstance(process, BetaChain):
            steps = min(steps, process.num_steps)
        if name == TREE:
            warnings.warn(
                f"{self.path}: the noise of {name} depends on no image's seed; the default sampler is dinit's "
                "'dpmpp-sde'",
                UserWarning,
                stacklevel=4,
            )
            return {"sampler": "dpmpp-sde", "steps": steps}
        settings = settings_of(self.made) if name == self.kind else checked(name, self.config, str(self.path))
        try:
            sampler = SchedulerSampler(name, settings)
            sampler.run(process, steps)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        made: dict[str, Any] = {"sampler": to_spec(sampler), "steps": steps, "grid": to_spec(sampler.own_grid)}
        return {**made, "guidance": [guidance]} if (guidance := clipping_of(name, settings)) else made
