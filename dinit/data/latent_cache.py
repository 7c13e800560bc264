"""Latent cache: the files in the folder that `dinit encode` writes.

plan.json: what is being encoded, written first. latents-00000.safetensors and so on: whole shards, each with its
own measurements. vae/: the autoencoder. manifest.json: everything above in one file, written last; a folder without
it is unfinished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dinit.files import write_atomically

FORMAT = 1
PLAN, MANIFEST, AUTOENCODER = "plan.json", "manifest.json", "vae"
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FACTS = "dinit"  # the key of a shard's metadata
_FREE = ("data", "autoencoder.name")  # names do not change the latents; hashes of the contents do
_MAKE = "make it with `dinit encode AUTOENCODER --data NAME --out FOLDER`"


@dataclass(frozen=True)
class CachePlan:
    """Plan of a cache: everything that is known before the first image is encoded.

    Attributes:
        data: the data set's spec.
        data_fingerprint: of the data set.
        features: name of the data set's feature extractor.
        images: how many.
        image_channels: of the images.
        image_size: height = width of the images.
        num_classes: of the data set.
        class_names: of the data set.
        autoencoder: its name, weights (SHA-256), and its own scale and shift.
        latent_shape: (C, h, w).
        flips: whether mirrored images are encoded too.
        network_dtype: of the autoencoder while it runs.
        dtype: of the stored numbers.
        shard_size: images of a shard.
        measured: number of images that the reconstruction is measured on.
    """

    data: dict[str, Any]
    data_fingerprint: str
    features: str
    images: int
    image_channels: int
    image_size: int
    num_classes: int
    class_names: tuple[str, ...]
    autoencoder: dict[str, Any]
    latent_shape: tuple[int, int, int]
    flips: bool
    network_dtype: str
    dtype: str
    shard_size: int
    measured: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_size)

    def bounds(self, shard: int) -> tuple[int, int]:
        """First image of a shard, and one past its last."""
        first = shard * self.shard_size
        return first, min(first + self.shard_size, self.images)

    def is_measured(self, image: int) -> bool:
        """Whether the reconstruction is measured on this image: `measured` of all, evenly spread."""
        return (image + 1) * self.measured // self.images > image * self.measured // self.images

    def identity(self) -> str:
        """Hash of everything that the shards depend on."""
        return hashlib.sha256(json.dumps(_flat(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: CachePlan) -> list[str]:
        """'key: that there, this now' for everything that changes the shards and differs."""
        ours, theirs = _flat(self), _flat(other)
        keys = sorted(ours.keys() | theirs.keys())
        return [f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} now" for k in keys if ours.get(k) != theirs.get(k)]

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> CachePlan:
        """Plan from what `to_json` gave, skipping further keys. ValueError for another format or missing keys."""
        if content.get("format") != FORMAT:
            found = content.get("format")
            raise ValueError(f"{where} is of format {found!r}, this version reads {FORMAT}; {_MAKE}")
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise ValueError(f"{where} is damaged: it has no {', '.join(missing)}; {_MAKE}")
        tuples = {key: tuple(content[key]) for key in ("class_names", "latent_shape")}
        return cls(**{**{name: content[name] for name in names}, **tuples})

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, and the format's number."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}


@dataclass(frozen=True)
class Measured:
    """Sums over a shard or a cache, in float64.

    Attributes:
        numbers: how many numbers of each channel were summed, mirrored copies included.
        mean: sum of the posterior mean, (C,).
        square: sum of its square, (C,).
        variance: sum of the posterior variance, (C,).
        reconstructed: number of images that psnr and ssim are sums over.
        psnr: sum of the PSNR in dB.
        ssim: sum of the SSIM.
    """

    numbers: int
    mean: tuple[float, ...]
    square: tuple[float, ...]
    variance: tuple[float, ...]
    reconstructed: int
    psnr: float
    ssim: float

    @classmethod
    def of(cls, means: Sequence[Tensor], stds: Sequence[Tensor], psnr: Tensor, ssim: Tensor) -> Measured:
        """Sums of posteriors (N, C, h, w), one tensor for each copy, and of PSNR and SSIM (k,)."""
        m, s = (torch.cat(list(parts)).double() for parts in (means, stds))

        def total(x: Tensor) -> tuple[float, ...]:
            return tuple(x.sum(dim=(0, 2, 3)).tolist())

        figures = float(psnr.double().sum()), float(ssim.double().sum())
        return cls(m.numel() // m.shape[1], total(m), total(m * m), total(s * s), len(psnr), *figures)

    @classmethod
    def together(cls, parts: Sequence[Measured]) -> Measured:
        """The sums of all parts; exact, so that their order does not matter."""

        def channels(name: str) -> tuple[float, ...]:
            return tuple(math.fsum(column) for column in zip(*(getattr(p, name) for p in parts), strict=True))

        return cls(
            numbers=sum(part.numbers for part in parts),
            mean=channels("mean"),
            square=channels("square"),
            variance=channels("variance"),
            reconstructed=sum(part.reconstructed for part in parts),
            psnr=math.fsum(part.psnr for part in parts),
            ssim=math.fsum(part.ssim for part in parts),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measured:
        """Sums from what `asdict` gave, through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)

    def normalisation(self, sampled: bool) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of z, drawn (mean + std · noise) or as the mean alone."""
        mean = [total / self.numbers for total in self.mean]
        spread = [total / self.numbers - m * m for total, m in zip(self.square, mean, strict=True)]
        if sampled:
            spread = [s + total / self.numbers for s, total in zip(spread, self.variance, strict=True)]
        return mean, [math.sqrt(max(s, 0.0)) for s in spread]


def shard_file(folder: Path, shard: int) -> Path:
    """File of a shard."""
    return folder / f"latents-{shard:05d}.safetensors"


def write_shard(folder: Path, plan: CachePlan, shard: int, tensors: dict[str, Tensor], measured: Measured) -> None:
    """Write a shard, whole or not at all. tensors: mean, std (and both _flipped), (n, C, h, w); labels (n,)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    facts = {
        "plan": plan.identity(),
        "shard": shard,
        "sha256": digest.hexdigest(),
        "measured": asdict(measured),
    }
    # Under one key: safetensors writes several in no fixed order, and the same shard has to be the same file.
    write_atomically(shard_file(folder, shard), save(tensors, {_FACTS: json.dumps(facts)}))


def is_whole(folder: Path, plan: CachePlan, shard: int) -> bool:
    """Whether the shard exists. ValueError where its file is damaged or of another cache."""
    path = shard_file(folder, shard)
    return path.exists() and bool(read_shard_facts(path, plan, shard))


def read_shard_facts(path: Path, plan: CachePlan, shard: int) -> dict[str, Any]:
    """Metadata of a shard, read without its tensors. ValueError unless it is whole and of this plan."""
    first, last = plan.bounds(shard)
    shape = [last - first, *plan.latent_shape]
    names = ["mean", "std", *(["mean_flipped", "std_flipped"] if plan.flips else [])]
    again = "remove it and run the same `dinit encode` again"
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {again}") from error
    if facts.get("plan") != plan.identity() or facts.get("shard") != shard:
        raise ValueError(f"{path} is not shard {shard} of this cache; {again}")
    if found != {**dict.fromkeys(names, shape), "labels": [last - first]}:
        raise ValueError(f"{path} has tensors {found}, expected {', '.join(names)} of {shape}; {again}")
    return facts


def finish(folder: Path, plan: CachePlan, versions: Mapping[str, str]) -> Measured:
    """Write the manifest of a cache that has all its shards. Returns the sums over all of them."""
    facts = [read_shard_facts(shard_file(folder, shard), plan, shard) for shard in range(plan.shards)]
    measured = Measured.together([Measured.from_json(one["measured"]) for one in facts])
    shards = []
    for shard, one in enumerate(facts):
        first, last = plan.bounds(shard)
        name = shard_file(folder, shard).name
        shards.append({"file": name, "first": first, "images": last - first, "sha256": one["sha256"]})
    latents = dict(zip(("mean", "std"), measured.normalisation(sampled=True), strict=True))
    count = measured.reconstructed
    manifest = {
        **plan.to_json(),
        "latents": latents,
        "reconstruction": {
            "images": count,
            "psnr": measured.psnr / count if count else None,
            "ssim": measured.ssim / count if count else None,
        },
        "sums": asdict(measured),
        "shards": shards,
        "versions": dict(versions),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return measured


def read_manifest(folder: Path) -> tuple[CachePlan, Measured, dict[str, Any]]:
    """Plan, sums and whole manifest of a finished cache. ValueError, with what to do, for any other folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; {_MAKE}")
    if not (folder / MANIFEST).is_file():
        if (folder / PLAN).is_file():
            plan = read_plan(folder)
            there = sum(shard_file(folder, shard).exists() for shard in range(plan.shards))
            raise ValueError(
                f"{folder} is unfinished: {there} of {plan.shards} shards; run the same `dinit encode` again"
            )
        raise ValueError(f"{folder} has no {MANIFEST}, so it is no cache of latents; {_MAKE}")
    manifest = _read(folder / MANIFEST)
    plan = CachePlan.from_json(manifest, folder / MANIFEST)
    try:
        return plan, Measured.from_json(manifest["sums"]), manifest
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}; {_MAKE}") from error


def read_plan(folder: Path) -> CachePlan:
    """Plan of an unfinished cache. ValueError where it cannot be read."""
    return CachePlan.from_json(_read(folder / PLAN), folder / PLAN)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_MAKE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}; {_MAKE}")
    return content


def _flat(plan: CachePlan) -> dict[str, Any]:
    content = plan.to_json()
    nested = {f"autoencoder.{key}": value for key, value in content.pop("autoencoder").items()}
    return {key: value for key, value in {**content, **nested}.items() if key not in _FREE}
