"""Manifests: the call that made a picture, as JSON in a PNG's metadata and in a folder's manifest.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter, ValidationError

from dinit.contents import RECORDED, unfit
from dinit.files import user_path
from dinit.models.codec import AutoencoderKLCodec
from dinit.pipelines.call import to_spec
from dinit.pipelines.editing import EditedImages
from dinit.pipelines.generate import Generated, Pipeline
from dinit.pipelines.loading import read_json, shipped

KEY = "dinit"  # of the text in a PNG
FILE = "manifest.json"  # in a folder of PNGs
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The record of a picture.

    pipeline: name, folder or Hub id. weights: SHA-256 of each component's tensors. call: of Call.to_config.

    nfe: network evaluations an image. picture: what is in the file and where (see dinit.pipelines.outputs.files).
    """

    pipeline: str
    weights: dict[str, str]
    process: dict[str, Any]
    parameterization: dict[str, Any]
    codec: dict[str, Any]
    dtype: str
    device: str
    call: dict[str, Any]
    nfe: int
    versions: dict[str, str]
    created: str
    picture: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """JSON in plain ASCII, as PNG text requires."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: Path) -> Manifest:
        """ValueError for another format, keys that are not a manifest's, or values of another type."""
        if config.get("format") != FORMAT:
            raise ValueError(f"the manifest in {where} has format {config.get('format')!r}, this is for {FORMAT}")
        fields = {field.name for field in dataclasses.fields(cls)}
        if fields != set(config):
            odd = ", ".join(sorted(fields ^ set(config)))
            raise ValueError(f"the manifest in {where} is damaged: missing or unknown {odd}")
        try:
            return _reader().validate_json(json.dumps(dict(config)), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"the manifest in {where} is damaged: {key}: {first['msg'].lower()}") from error

    def with_picture(self, picture: Mapping[str, Any], **changes: Any) -> Manifest:
        """The same manifest for a certain file."""
        return dataclasses.replace(self, picture=dict(picture), **changes)


@cache
def _reader() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def describe(pipe: Pipeline, generated: Generated | EditedImages) -> Manifest:
    """The manifest of what a pipeline just generated or edited."""
    return Manifest(
        pipeline=pipeline_name(pipe),
        device=pipe.device.type,
        dtype=str(pipe.backbone.dtype).removeprefix("torch."),
        call=generated.call.to_config(),
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        nfe=generated.nfe,
        **provenance(pipe),
    )


def provenance(pipe: Pipeline) -> dict[str, Any]:
    """What a manifest records of the pipeline, and a replay compares: weights, process, parameterization, codec."""
    config: Any = pipe.config
    return {
        "weights": {name: weights_sha256(part) for name, part in pipe.components.items() if part is not None},
        "process": to_spec(config["process"]),
        "parameterization": to_spec(config["parameterization"]),
        "codec": _codec(pipe),
    }


def _codec(pipe: Pipeline) -> dict[str, Any]:
    """Every number that decides what is decoded; a missing autoencoder has its name, and the numbers given here."""
    config: Any = pipe.config
    reference, normalization = config["vae_reference"], config["latent_normalization"]
    if pipe.components["vae"] is None and reference is not None:
        own = {f"latents_{key}": list(value) for key, value in (normalization or {}).items()}
        plain = {"scaling_factor": 1.0, "shift_factor": 0.0} if own else {}
        return {"name": AutoencoderKLCodec.registry_name, "reference": reference, **plain, **own}
    options = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    given = {option: getattr(pipe.codec, option, None) for option in options}
    recorded = {option: value for option, value in given.items() if value is not None}
    return {"name": pipe.codec.registry_name, **recorded}


def pipeline_name(pipe: Pipeline) -> str:
    """What finds the pipeline again: a shipped name, an absolute folder, a hub id; '' where it has none."""
    config: Any = pipe.config
    name = config.get("_name_or_path") or ""
    if name and name not in shipped() and user_path(name).is_dir():
        return str(user_path(name).resolve())
    return str(name)


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over the tensors' names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the pixels depend on."""
    packages = ("dinit", "torch", "diffusers", "pillow")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def read_manifest(path: Path) -> Manifest:
    """The manifest of a PNG, of a folder of PNGs, or in a manifest.json. ValueError where there is none."""
    wanted = RECORDED
    if path.is_dir():
        if not (path / FILE).is_file():
            raise FileNotFoundError(unfit(path, f"{wanted}, and {path / FILE} is missing"))
        path = path / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    if path.suffix == ".json":
        return Manifest.from_config(read_json(path), path)
    try:
        with Image.open(path) as picture:
            picture.load()
            text = picture.info.get(KEY)
    except UnidentifiedImageError as error:
        raise ValueError(unfit(path, wanted)) from error
    except OSError as error:  # a PNG that ends early, with "Truncated File Read"
        raise ValueError(f"{path} is damaged: {error}; copy or download it again") from error
    if text is None:
        raise ValueError(f"{path} has no dinit manifest; only PNGs that `dinit generate` wrote have one")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the manifest in {path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the manifest in {path} is damaged: not a JSON object")
    return Manifest.from_config(config, path)
