"""Checks of a pipeline's folder and of the options of loading, before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from dinit.checkpoints.folders import shards
from dinit.checkpoints.locating import INDEX, PICKLES, SHIPPED, is_own_class, locate, read_json, shipped
from dinit.contents import unfit, usual_variant, weight_variants, wrong_folder, wrong_weights
from dinit.models.base import BACKBONES, Backbone
from dinit.models.codec import VAE_FOLDER
from dinit.pipelines.advice import LOADING, unknown_keywords
from dinit.pipelines.index_checks import check_config, check_index
from dinit.registry import suggest

__all__ = [
    "BACKBONE",
    "INDEX",
    "SHIPPED",
    "LoadOptions",
    "check_folder",
    "is_own_class",
    "load_options",
    "locate",
    "read_json",
    "shipped",
]

BACKBONE = "backbone"
_WEIGHTS = "diffusion_pytorch_model"


def check_folder(folder: Path, given: Sequence[str] = (), variant: str | None = None) -> str | None:
    """Whether `folder` is a whole dinit pipeline; given: components that the caller brings, left unchecked.

    variant: of the weights, as diffusers has it. Returns the one to load: the only one, where there is no usual.

    FileNotFoundError or ValueError: a missing or damaged file, a class that is not registered, pickled weights,
    or weights whose tensors are not the configured backbone's (missing, unexpected and mis-shaped are named).
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(unfit(folder, f"a pipeline, and {folder / INDEX} is missing"))
    index = read_json(folder / INDEX)
    if not is_own_class(index):
        raise ValueError(f"{folder / INDEX} is of the class {index.get('_class_name')!r}, not of a dinit Pipeline")
    for key in ("process", "parameterization"):
        if not isinstance(index.get(key), dict):
            raise ValueError(f"{folder / INDEX} has no {key!r}, which every dinit pipeline has")
    check_index(index, folder / INDEX)
    vae = folder / VAE_FOLDER
    if VAE_FOLDER not in given and vae.is_dir():
        if (reason := wrong_folder(vae)) is not None:
            raise ValueError(reason)
        if variant is None:
            variant = usual_variant(vae)
    if BACKBONE in given:
        return variant
    entry = index.get(BACKBONE)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(one, str) for one in entry):
        raise ValueError(f"{folder / INDEX} names no backbone class")
    backbone = backbone_class(str(entry[1]))
    check_config(read_json(folder / BACKBONE / "config.json"), backbone, folder / BACKBONE / "config.json")
    expected = expected_shapes(backbone, folder / BACKBONE)
    own = _own_variant(folder / BACKBONE, variant)
    check_tensors(folder / BACKBONE, expected, weight_shapes(folder / BACKBONE, own))
    return own or variant


def _own_variant(folder: Path, variant: str | None) -> str | None:
    """The backbone's variant: the given one, unless only the autoencoder has that; else its usual or only one."""
    elsewhere = variant in weight_variants(folder.parent / VAE_FOLDER)
    return usual_variant(folder, None if elsewhere and variant not in weight_variants(folder) else variant)


def backbone_class(name: str) -> type[Backbone]:
    classes = {BACKBONES[entry].__name__: BACKBONES[entry] for entry in BACKBONES}
    if name not in classes:
        raise ValueError(f"unknown backbone class {name!r}{suggest(name, sorted(classes))}")
    return classes[name]


def expected_shapes(backbone: Any, folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors that a network of this class has with the config in `folder`."""
    config = read_json(folder / "config.json")
    try:
        with torch.device("meta"), _WithoutDraws():  # shapes without memory
            model = backbone.from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} makes no {backbone.__name__}: {error}") from error
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}  # type: ignore[union-attr]


class _WithoutDraws(TorchFunctionMode):
    """Leaves random initial values out: on the device meta, torch imports its compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def weight_shapes(folder: Path, variant: str | None = None) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a component's safetensors files. ValueError for a damaged file."""
    found: dict[str, list[int]] = {}
    for path in weight_files(folder, variant):
        if (reason := wrong_weights(path)) is not None:
            raise ValueError(reason)
        try:
            with safe_open(path, framework="pt") as weights:
                found |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or no safetensors file: {error}; copy or download it again"
            ) from error
    return found


def check_tensors(folder: Path, expected: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """ValueError names every missing, unexpected or mis-shaped tensor of the weights in `folder`."""
    shared = expected.keys() & found.keys()
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {found[name]} (expected {expected[name]})"
            for name in sorted(shared)
            if found[name] != expected[name]
        ],
    }
    listed = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if listed:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {'; '.join(listed)}")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a component, shards in order. ValueError for pickles or where one is missing."""
    found = weight_variants(folder, (".safetensors",))
    if found:
        file = found[usual_variant(folder, variant) or ""]
        return list(shards(file)) if file.suffix == ".json" else [file]
    pickles = [path.name for path in folder.glob("*") if path.suffix.lower() in PICKLES]
    if pickles:
        raise ValueError(
            f"{folder} holds pickled weights ({', '.join(sorted(pickles))}), which can run code when they are "
            "opened; save them as safetensors"
        )
    raise FileNotFoundError(f"{folder / _WEIGHTS}.safetensors is missing")


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")


# What from_pretrained hands to the download of a hub repository, and not to diffusers' loading.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class LoadOptions(TypedDict, total=False):
    """Keywords of `Pipeline.from_pretrained`.

    Components and settings in place of the saved ones (see Pipeline), and what diffusers' downloading and loading
    take. null_label is for folders of diffusers.
    """

    backbone: Any
    vae: Any
    process: Any
    parameterization: Any
    class_names: Sequence[str] | None
    t_max: float
    defaults: Mapping[str, Any]
    vae_reference: str | None
    pixel_range: Sequence[float]
    latent_normalization: Mapping[str, Any] | None
    compile: bool | Mapping[str, Any]
    null_label: int | None
    torch_dtype: torch.dtype | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None
    revision: str | None
    variant: str | None
    use_safetensors: bool
    device_map: str | None
    max_memory: Mapping[Any, Any] | None
    offload_folder: str | Path | None
    offload_state_dict: bool | None
    low_cpu_mem_usage: bool
    quantization_config: Any
    disable_mmap: bool


def load_options(
    options: Mapping[str, Any], dtype: torch.dtype | None
) -> tuple[dict[str, Any], dict[str, Any], torch.dtype | None]:
    """Keywords of `Pipeline.from_pretrained`, checked.

    Args:
        options: those of LoadOptions.
        dtype: as given; None is torch_dtype's.

    Returns:
        What is left for the loading, what the download takes, and the dtype.

    Raises:
        ValueError: an unknown keyword, with the nearest one; two dtypes; pickled weights.
    """
    known = ("device", "dtype", *LoadOptions.__annotations__)
    if unknown := [name for name in options if name not in known]:
        raise unknown_keywords("from_pretrained", unknown, known, LOADING)
    given: dict[str, Any] = dict(options)
    if dtype is None:
        dtype = given.get("torch_dtype")
    elif given.get("torch_dtype", dtype) != dtype:
        raise ValueError(f"dtype = {dtype} and torch_dtype = {given['torch_dtype']} differ; give one of them")
    given.pop("torch_dtype", None)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch.dtype such as torch.bfloat16, got {dtype!r}")
    if not given.pop("use_safetensors", True):
        raise ValueError("use_safetensors=False is not covered: pickled weights can run code when opened")
    hub = {key: given.pop(key) for key in _HUB_OPTIONS if key in given}
    return given, hub, dtype
