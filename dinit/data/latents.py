"""Latent data set: what `dinit encode` stored, read in training without an autoencoder in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dinit.data.base import DATASETS, ImageData
from dinit.data.latent_cache import AUTOENCODER, read_manifest, read_shard_facts, shard_file
from dinit.data.order import hash_words
from dinit.files import user_path

_NOISE = 2  # separates the noise's hash words from those of the flip
_SMALLEST = 1e-8  # a channel with a smaller standard deviation is constant


@DATASETS.register("latents")
class Latents(ImageData):
    """Latents of an AutoencoderKL in a folder that `dinit encode` wrote.

    The attributes channels and image_size are those of the latents.

    Args:
        path: the folder.
        sample: training draws z = mean + std · noise, the noise keyed by the sample, as LDM does; False takes the
            mean.
        normalization: "measured" subtracts each channel's mean and divides by its standard deviation, both over
            the encoded data set (LightningDiT, Yao et al. 2025); "autoencoder" applies the autoencoder's own scale
            and shift, which published latent models expect.
        horizontal_flip: half of the draws are of the mirrored image; by default where mirrored images were encoded.

    Raises:
        ValueError: a folder that is no finished cache, flips that it does not have, or, with "measured", a channel
            that is constant.
    """

    def __init__(
        self,
        path: str | Path,
        sample: bool = True,
        normalization: Literal["measured", "autoencoder"] = "measured",
        horizontal_flip: bool | None = None,
    ) -> None:
        self.folder = user_path(path)
        self.plan, measured, self._manifest = read_manifest(self.folder)
        if horizontal_flip and not self.plan.flips:
            raise ValueError(f"{path} holds no mirrored images; encode it again with --flips, or leave them out")
        if normalization not in ("measured", "autoencoder"):
            raise ValueError(f"normalization must be 'measured' or 'autoencoder', got {normalization!r}")
        for shard in range(self.plan.shards):
            read_shard_facts(shard_file(self.folder, shard), self.plan, shard)
        self.sampled, self.normalization = sample, normalization
        self.horizontal_flip = self.plan.flips if horizontal_flip is None else horizontal_flip
        self.channels, self.image_size = self.plan.latent_shape[0], self.plan.latent_shape[1]
        self.num_classes, self.class_names = self.plan.num_classes, self.plan.class_names
        self.features = self.plan.features
        self._files: dict[int, Any] = {}
        self.labels = np.concatenate([self._labels(shard) for shard in range(self.plan.shards)])
        self._mean, self._std = measured.normalisation(sample)
        constant = [channel for channel, std in enumerate(self._std) if std < _SMALLEST]
        if constant and normalization == "measured":
            raise ValueError(
                f"channel {', '.join(map(str, constant))} of the latents in {path} never changes, so it cannot be "
                "normalised; take normalization='autoencoder', or an autoencoder that uses its channels"
            )
        self._shift, self._scale = self._shift_and_scale()

    @property
    def augments(self) -> bool:
        return self.sampled or self.horizontal_flip

    @property
    def picture_channels(self) -> int:
        return self.plan.image_channels

    def posterior(self, index: int, flipped: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z, as stored.

        Args:
            index: 0 .. N - 1.
            flipped: of the mirrored image.

        Returns:
            Two tensors (C, h, w), float32.
        """
        shard, row = divmod(index, self.plan.shard_size)
        file, suffix = self._open(shard), "_flipped" if flipped else ""
        mean, std = (file.get_slice(name + suffix)[row] for name in ("mean", "std"))
        return mean.float(), std.float()

    def image(self, index: int) -> Tensor:
        """Mean of the posterior at an index, normalised, (C, h, w) float32."""
        return (self.posterior(index)[0] - self._shift) * self._scale

    def sample(self, index: int, key: int | None = None) -> tuple[Tensor, int]:
        """Latent and label, drawn by a key.

        Args:
            index: 0 .. N - 1.
            key: decides flip and noise; None is the mean of the unflipped image.

        Returns:
            Latent (C, h, w) float32, normalised, and its label.

        Raises:
            IndexError: an index past the end.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        flipped = self.horizontal_flip and key is not None and bool(hash_words(key, index) & 1)
        z, std = self.posterior(index, flipped)
        if self.sampled and key is not None:
            generator = torch.Generator().manual_seed(
                hash_words(key, index, _NOISE) >> 1
            )  # manual_seed takes a signed word
            z = z + std * torch.randn(z.shape, generator=generator)
        return (z - self._shift) * self._scale, int(self.labels[index])

    def uint8_images(self, indices: list[int] | None = None) -> Tensor:
        """Not available: a ValueError with the data set to use, as there are no pixels here."""
        raise ValueError(f"latents have no pixels; measure against the images they were made of, {self.plan.data}")

    def fingerprint(self) -> str:
        """Hash of the manifest's plan and of the shards' hashes, and of the options."""
        hashes = [shard["sha256"] for shard in self._manifest["shards"]]
        options = [self.sampled, self.normalization, self.horizontal_flip]
        text = json.dumps([self.plan.identity(), hashes, options])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def pipeline_parts(self) -> dict[str, Any]:
        """Autoencoder and normalisation that a pipeline needs to decode such latents."""
        from dinit.models.codec import open_autoencoder

        measured = {"mean": self._mean, "std": self._std} if self.normalization == "measured" else None
        return {"vae": open_autoencoder(self.folder / AUTOENCODER), "latent_normalization": measured}

    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        """(C, 1, 1) each: the latent is (z - shift) · scale, as in AutoencoderKLCodec."""
        own = self.plan.autoencoder
        if self.normalization == "measured":
            shift, scale = self._mean, [1 / std for std in self._std]
        elif own["latents_mean"] is not None:
            shift, scale = own["latents_mean"], [own["scaling_factor"] / std for std in own["latents_std"]]
        else:
            shift, scale = [own["shift_factor"]] * self.channels, [own["scaling_factor"]] * self.channels
        return torch.tensor(shift)[:, None, None], torch.tensor(scale)[:, None, None]

    def _labels(self, shard: int) -> Any:
        return self._open(shard).get_tensor("labels").numpy()

    def _open(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = safe_open(shard_file(self.folder, shard), framework="pt")
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # a worker opens the mapped files itself


def source_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Spec of the images behind a data set: of latents, the images that were encoded; else the spec itself."""
    if spec["name"] != "latents":
        return dict(spec)
    return dict(read_manifest(user_path(spec["path"]))[0].data)
