"""Encoding of a data set to latents, once, so that training needs no autoencoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinit.data import DATASETS, ImageData
from dinit.data.latent_cache import (
    AUTOENCODER,
    MANIFEST,
    PLAN,
    STORED,
    CachePlan,
    Measured,
    finish,
    is_whole,
    read_manifest,
    read_plan,
    shard_file,
    write_shard,
)
from dinit.devices import upload
from dinit.evaluation.metrics.reconstruction import psnr, ssim
from dinit.files import LOCK, is_leftover, only_writer, remove_leftovers, user_path, whole_folder, write_atomically
from dinit.models.codec import AutoencoderKLCodec, open_autoencoder
from dinit.pipelines.launch import launched_processes
from dinit.pipelines.outputs.manifest import versions, weights_sha256
from dinit.progress import Progress
from dinit.registry import suggest
from dinit.targets import check_folder_target
from dinit.training.batches import CHECK, patient


@dataclass(frozen=True)
class Encoded:
    """The result of encoding a data set.

    folder: the cache. images, shards: in all; made: shards of this call. psnr (dB), ssim: of reconstructions, means
    over `measured` images; None where none were measured.
    """

    folder: Path
    images: int
    shards: int
    made: int
    measured: int
    psnr: float | None
    ssim: float | None


@dataclass(frozen=True)
class Options:
    """Options. flips: mirrored images as a second copy. shard_size: images in a file. batch_size: images at once.

    measure: on how many images, evenly spread, the reconstruction is measured. store: dtype of the stored numbers.
    dtype: of the autoencoder while it runs. workers: processes that read images. ValueError for other values.
    """

    flips: bool = False
    shard_size: int = 2048
    batch_size: int = 32
    measure: int = 2048
    store: str = "float32"
    dtype: str = "float32"
    workers: int = 2

    def __post_init__(self) -> None:
        for name, value in (("store", self.store), ("dtype", self.dtype)):
            if value not in STORED:
                raise ValueError(f"unknown {name} {value!r}{suggest(str(value), list(STORED))}")
        for name, least in (("shard_size", 1), ("batch_size", 1), ("measure", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def encode(
    autoencoder: str | Path,
    data: str | Mapping[str, Any],
    out: str | Path,
    options: Options | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Encoded:
    """Store every image's posterior mean and standard deviation, in a folder that the data set `latents` reads.

    Under a launcher (torchrun, accelerate launch) the shards are divided among the processes. A shard depends on
    its index alone, so the files are the same with any number of processes and after any number of kills (at the
    same batch_size, on the same kind of device and number of threads).

    autoencoder: an AutoencoderKL of diffusers: a folder, a pipeline's folder, or a Hub id. data: a data set's
    name, or a mapping with its options. out: a new or empty folder, or one in which the same call was interrupted:
    it is resumed, and complete shards are kept.
    ValueError before anything is written where autoencoder and data do not fit or the folder contains something
    else; OSError where another call is writing there.
    """
    options, folder = options or Options(), user_path(out)
    spec = {"name": data} if isinstance(data, str) else dict(data)
    images: ImageData = DATASETS.create(spec)
    vae = open_autoencoder(autoencoder)
    codec = AutoencoderKLCodec(vae)
    plan = _plan(str(autoencoder), codec, images, spec, options)
    _check_folder(folder, plan)
    with launched_processes(cpu=device == "cpu") as state:
        own: Any = state.device
        place = own if device == "auto" or state.num_processes > 1 else torch.device(device)
        with only_writer(folder) if state.is_main_process else nullcontext():
            return _Run(folder, plan, options, images, codec, state, place).go(progress)


def _plan(
    name: str, codec: AutoencoderKLCodec, data: ImageData, spec: dict[str, Any], options: Options
) -> CachePlan:
    """What will be made. ValueError where the autoencoder cannot encode such images."""
    if not len(data):
        raise ValueError("the data set has no images")
    if data.channels != codec.image_channels:
        raise ValueError(
            f"the autoencoder {name} takes images of {codec.image_channels} channels, and those of "
            f"{spec['name']!r} have {data.channels}; give the data set another channels=, where it has one, "
            "or take another autoencoder"
        )
    own = {key: getattr(codec, key) for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")}
    return CachePlan(
        data=spec,
        data_fingerprint=data.fingerprint(),
        features=data.features,
        images=len(data),
        image_channels=data.channels,
        image_size=data.image_size,
        num_classes=data.num_classes,
        class_names=tuple(data.class_names),
        autoencoder={
            "name": Path(name).resolve().name if Path(name).exists() else name,
            "weights": weights_sha256(codec.vae),
            **own,
        },
        latent_shape=codec.latent_shape(data.image_size, data.image_size),
        flips=options.flips,
        network_dtype=options.dtype,
        dtype=options.store,
        shard_size=options.shard_size,
        measured=min(options.measure, len(data)),
    )


def _check_folder(folder: Path, plan: CachePlan) -> None:
    """ValueError unless the folder is new, empty, or holds this plan's cache, begun or finished."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the latents")
    if not folder.exists() or all(is_leftover(path) or path.name == LOCK for path in folder.iterdir()):
        check_folder_target(folder, overwrite=True)
        return
    if not (folder / PLAN).is_file():
        raise ValueError(f"{folder} is not empty and holds no latents; nothing was written. Give another folder")
    changed = plan.differences(read_plan(folder))
    if changed:
        shown = "\n".join(f"  {line}" for line in changed)
        raise ValueError(f"{folder} holds other latents; nothing was written. Give another folder, or:\n{shown}")


class _Run:
    """One process's share of a cache."""

    def __init__(
        self,
        folder: Path,
        plan: CachePlan,
        options: Options,
        data: ImageData,
        codec: AutoencoderKLCodec,
        state: PartialState,
        device: torch.device,
    ) -> None:
        self.folder, self.plan, self.options, self.data = folder, plan, options, data
        self.codec, self.state, self.device = codec, state, device
        self.main = state.is_main_process

    def go(self, progress: bool) -> Encoded:
        """From what is there to the manifest."""
        if self.main:
            self._begin()
        self.codec.to(self.device, STORED[self.options.dtype])
        self.state.wait_for_everyone()
        missing = [shard for shard in range(self.plan.shards) if not is_whole(self.folder, self.plan, shard)]
        self.state.wait_for_everyone()  # no process writes before all have read: they divide the same list
        mine = missing[self.state.process_index :: self.state.num_processes]
        source = patient(iter(self._loader(mine)))
        there = self.plan.shards - len(missing)
        with Progress("encode", self.plan.shards, "shards", start=there, speed=None, enabled=progress) as display:
            for shard in mine:
                self._shard(shard, source)
                display.update(self._there())  # of all processes
        self.state.wait_for_everyone()
        if self.main and not (self.folder / MANIFEST).exists():
            finish(self.folder, self.plan, versions())
        self.state.wait_for_everyone()
        _, _, facts = read_manifest(self.folder)
        figures = facts["reconstruction"]
        quality = figures["images"], figures["psnr"], figures["ssim"]
        return Encoded(self.folder, self.plan.images, self.plan.shards, len(missing), *quality)

    def _there(self) -> int:
        return sum(shard_file(self.folder, shard).exists() for shard in range(self.plan.shards))

    def _begin(self) -> None:
        """The autoencoder, as it was given, and the plan; unless a call before this one has written them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        if not (self.folder / AUTOENCODER).is_dir():
            with whole_folder(self.folder / AUTOENCODER) as temporary:
                self.codec.vae.save_pretrained(temporary)
        if not (self.folder / PLAN).is_file():
            write_atomically(self.folder / PLAN, json.dumps(self.plan.to_json(), indent=1) + "\n")

    def _batches(self, shard: int) -> list[list[int]]:
        """The images of a shard, so many at once."""
        first, last = self.plan.bounds(shard)
        size = self.options.batch_size
        return [list(range(start, min(start + size, last))) for start in range(first, last, size)]

    def _loader(self, shards: list[int]) -> DataLoader[Tensor]:
        """Images, batch after batch, shard after shard."""
        return DataLoader(
            _Images(self.data),
            batch_sampler=[batch for shard in shards for batch in self._batches(shard)],
            num_workers=self.options.workers if shards else 0,
            pin_memory=self.device.type == "cuda",
            timeout=CHECK if shards and self.options.workers else 0,
        )

    @torch.no_grad()
    def _shard(self, shard: int, source: Iterator[Tensor]) -> None:
        """Encodes and writes one shard."""
        copies = {"": [], "_flipped": []} if self.plan.flips else {"": []}
        figures = [torch.empty(2, 0)]
        for batch in self._batches(shard):
            images = upload(next(source), self.device)
            for suffix, made in copies.items():
                made.append(self._posterior(images.flip(-1) if suffix else images))
            rows = [row for row, image in enumerate(batch) if self.plan.is_measured(image)]
            if rows:
                figures.append(self._figures(images[rows], copies[""][-1][0][rows]))
        means = {suffix: torch.cat([mean for mean, _ in made]) for suffix, made in copies.items()}
        stds = {suffix: torch.cat([std for _, std in made]) for suffix, made in copies.items()}
        quality = torch.cat(figures, dim=1)
        measured = Measured.of(list(means.values()), list(stds.values()), quality[0], quality[1])
        first, last = self.plan.bounds(shard)
        tensors = {f"mean{suffix}": mean for suffix, mean in means.items()}
        tensors |= {f"std{suffix}": std for suffix, std in stds.items()}
        tensors["labels"] = torch.as_tensor(self.data.labels[first:last], dtype=torch.int64)
        write_shard(self.folder, self.plan, shard, tensors, measured)

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z as they will be stored, on the CPU. ValueError unless finite."""
        mean, std = (part.to(STORED[self.plan.dtype]).cpu() for part in self.codec.posterior(images))
        if not bool(mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                f"the autoencoder gave NaN or infinity (it ran in {self.plan.network_dtype}, stored as "
                f"{self.plan.dtype}); run it in float32 or bfloat16 and store float32 or bfloat16"
            )
        return mean, std

    def _figures(self, images: Tensor, mean: Tensor) -> Tensor:
        """(2, k): PSNR and SSIM of what the decoder makes of stored means."""
        z = mean.to(self.device, self.codec.vae.dtype)
        decoded = self.codec.vae.decode(z).sample.float()
        return torch.stack([psnr(images, decoded), ssim(images, decoded)]).cpu()


class _Images(Dataset[Tensor]):
    """The images alone, as they are."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Tensor:
        return self.data.image(index)
