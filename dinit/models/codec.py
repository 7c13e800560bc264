"""Codecs: between images and the latents of a denoiser, by an AutoencoderKL or the identity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dinit.compat import dtype_option
from dinit.contents import is_hub_id, unfit, usual_variant, wrong_folder
from dinit.devices import upload
from dinit.files import user_path

if TYPE_CHECKING:  # a second to import, which work on pixels does not need
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

VAE_FOLDER = "vae"
_NORMALIZATION = (
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
)  # keys of an AutoencoderKL's config


class Codec(nn.Module, ABC):
    """Base class: images (B, C, H, W) in [-1, 1] <-> latents (B, latent_channels, H / downscale, W / downscale).

    A module, so that it moves between devices; it is never trained here.

    Attributes:
        registry_name: its name in manifests.
        image_channels: channels of the images.
        latent_channels: channels of the latents.
        downscale: pixels of the image on a side of one latent pixel.
    """

    registry_name: ClassVar[str]
    image_channels: int
    latent_channels: int
    downscale: int

    @abstractmethod
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of images.

        Args:
            images: (B, image_channels, H, W) in [-1, 1].
            noise: standard normal, in the latents' shape, to sample with; None gives the mean.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images of `latents`, not clamped: a decoder may overshoot [-1, 1] slightly."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (channels, height, width) of an image's latent.

        Args:
            height: of the image in pixels, a multiple of downscale.
            width: as height.

        Raises:
            ValueError: sides that downscale does not divide.
        """
        if height % self.downscale or width % self.downscale or height < 1 or width < 1:
            raise ValueError(
                f"this codec takes heights and widths that are multiples of {self.downscale}, "
                f"got {height} x {width}; crop or resize the images"
            )
        return self.latent_channels, height // self.downscale, width // self.downscale

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.image_channels:
            raise ValueError(f"expected images (B, {self.image_channels}, H, W), got {tuple(images.shape)}")
        self.latent_shape(images.shape[2], images.shape[3])


class IdentityCodec(Codec):
    """Identity on pixels, from [-1, 1] to the range that the network was trained on.

    Args:
        channels: of the images, at least 1.
        low: value of black.
        high: value of white, above low.

    Raises:
        ValueError: no channels, or a range that is empty.
    """

    registry_name = "identity"
    downscale = 1

    def __init__(self, channels: int = 3, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not low < high:
            raise ValueError(f"the pixel range needs low < high, got {low} and {high}")
        self.image_channels = self.latent_channels = channels
        self.low, self.high = low, high

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Arguments as in `Codec.encode`: the images in [low, high]; noise is not used."""
        self._check_images(images)
        if (self.low, self.high) == (-1, 1):
            return images
        return self.low + (images + 1) * ((self.high - self.low) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of `latents` in [low, high]."""
        if (self.low, self.high) == (-1, 1):
            return latents
        return (latents - self.low) * (2 / (self.high - self.low)) - 1


class AutoencoderKLCodec(Codec):
    """Codec of a diffusers AutoencoderKL: latent = (z - shift_factor) * scaling_factor.

    Where its config has latents_mean and latents_std, one a channel, latent = (z - mean) / std * scaling_factor, as
    diffusers reads them.

    Args:
        vae: the AutoencoderKL; it is frozen and put into evaluation mode, its config is left as it is.
        scaling_factor: in place of the config's, positive.
        shift_factor: in place of the config's, where a missing one is 0.
        latents_mean: one number for each channel; together with latents_std it replaces the whole normalization of
            the config, so that latent = (z - mean) / std.
        latents_std: one positive number for each channel.

    Raises:
        ValueError: a scaling factor or a std <= 0, another number of channels, or both a shift and a mean.
    """

    registry_name = "autoencoder-kl"

    def __init__(
        self,
        vae: AutoencoderKL,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        config: Any = vae.config
        own: dict[str, Any] = {key: config[key] for key in _NORMALIZATION}
        if latents_mean is not None and latents_std is not None:
            own = per_channel(latents_mean, latents_std)
        given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
        own |= {key: value for key, value in given.items() if value is not None}
        _check_normalization(config.latent_channels, **own)
        self.scaling_factor: float = own["scaling_factor"]
        self.shift_factor: float = own["shift_factor"] or 0.0
        self.latents_mean: list[float] | None = own["latents_mean"]
        self.latents_std: list[float] | None = own["latents_std"]
        self.vae: Any = vae.requires_grad_(False).eval()
        self.image_channels = config.in_channels
        self.latent_channels = config.latent_channels
        self.downscale = 2 ** (len(config.block_out_channels) - 1)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> AutoencoderKLCodec:
        """Codec of an AutoencoderKL in a diffusers folder or on the hub.

        Args:
            path: the folder or hub id.
            options: subfolder, torch_dtype and so on, for diffusers.
        """
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return cls(AutoencoderKL.from_pretrained(path, **options))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z, neither shifted nor scaled.

        Args:
            images: (B, image_channels, H, W) in [-1, 1].

        Returns:
            Two tensors (B, latent_channels, h, w), in the autoencoder's dtype.
        """
        self._check_images(images)
        distribution = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return distribution.mean, distribution.std

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Arguments as in `Codec.encode`; the posterior's mean, or mean + std * noise, in the images' dtype."""
        mean, std = self.posterior(images)
        z = mean if noise is None else mean + std * noise.to(mean)
        shift, scale = self._shift_and_scale(z)
        return ((z - shift) * scale).to(images.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of `latents` (B, latent_channels, h, w), in the dtype of the latents."""
        shift, scale = self._shift_and_scale(latents)
        z = latents / scale + shift
        return self.vae.decode(z.to(self.vae.dtype)).sample.to(latents.dtype)

    def _shift_and_scale(self, like: Tensor) -> tuple[Any, Any]:
        """Shift and scale in latent = (z - shift) * scale: numbers, or (C, 1, 1) where each channel has its own."""
        if self.latents_mean is None:
            return self.shift_factor, self.scaling_factor
        mean, std = (
            upload(torch.tensor(values, dtype=like.dtype), like.device)[:, None, None]
            for values in (self.latents_mean, self.latents_std)
        )
        return mean, self.scaling_factor / std

    def train(self, mode: bool = True) -> AutoencoderKLCodec:
        """Leave it in evaluation mode, whatever `mode`: the autoencoder is frozen."""
        return super().train(False)


def open_autoencoder(place: str | Path, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """AutoencoderKL of a folder of diffusers, of the vae/ of a pipeline folder, or of a hub id of either.

    Safetensors only. Its tensors are moved to memory of their own, see `align`. ValueError where there is none, it
    is of another class, or tensors are missing, which diffusers would fill with random numbers.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options = dtype_option(dtype)
    place = user_path(place) if str(place).startswith("~") else place
    wanted = f"a folder with its config.json and safetensors, or a pipeline folder with {VAE_FOLDER}/"
    if Path(place).is_file():
        raise ValueError(unfit(Path(place), f"an AutoencoderKL, {wanted}"))
    if not Path(place).is_dir() and not is_hub_id(str(place)):  # before any attempt to download
        raise ValueError(
            f"{place} gave no AutoencoderKL: there is no folder {place}, and it is no hub id, which reads "
            f"owner/name; wanted: {wanted}"
        )
    try:
        if local := [one for one in (Path(place) / VAE_FOLDER, Path(place)) if one.is_dir()]:
            if (wrong := wrong_folder(local[0])) is not None:
                raise ValueError(wrong)
            options["variant"] = usual_variant(local[0])
        config, part = _autoencoder_config(place)
        if config.get("_class_name") != "AutoencoderKL":
            raise ValueError(f"its config is of the class {config.get('_class_name')!r}")
        loaded: Any = AutoencoderKL.from_pretrained(
            place, **part, **options, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"{place} gave no AutoencoderKL: {reason}; wanted: a folder with its config.json and safetensors, a "
            f"pipeline folder with {VAE_FOLDER}/, or a hub id of either"
        ) from error
    vae, info = loaded
    missing = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if missing:
        raise ValueError(f"the weights in {place} lack {len(missing)} tensors of its config, such as {missing[0]}")
    align([vae])
    return vae


def align(parts: Iterable[nn.Module]) -> None:
    """Copy misaligned tensors of a memory-mapped file to memory of their own.

    Kernels of the CPU choose their order of summation by alignment: without this a loaded network's numbers
    differ from the saved one's in the last bits.
    """
    for part in parts:
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()


def _autoencoder_config(place: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Config, and where it is: {} or {"subfolder": "vae"}. OSError where it is in neither place."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if (Path(place) / VAE_FOLDER).is_dir():
        return AutoencoderKL.load_config(place, subfolder=VAE_FOLDER), {"subfolder": VAE_FOLDER}  # type: ignore[return-value]
    try:
        return AutoencoderKL.load_config(place), {}  # type: ignore[return-value]
    except OSError as error:
        if Path(place).exists():
            raise
        try:
            config = AutoencoderKL.load_config(place, subfolder=VAE_FOLDER)
        except OSError:
            raise error from None  # that of the first place
        return config, {"subfolder": VAE_FOLDER}  # type: ignore[return-value]


def per_channel(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Normalization latent = (z - mean) / std of each channel, in the words of an AutoencoderKL's config."""
    return {"latents_mean": list(mean), "latents_std": list(std), "scaling_factor": 1.0, "shift_factor": None}


@contextmanager
def normalization_in_config(vae: Any, **normalization: Any) -> Iterator[None]:
    """Puts a normalization into an autoencoder's config while it is saved, so that diffusers reads it there."""
    config: Any = vae.config
    before = {key: config[key] for key in normalization}
    vae.register_to_config(**normalization)
    try:
        yield
    finally:
        vae.register_to_config(**before)


def _check_normalization(
    channels: int,
    scaling_factor: float,
    shift_factor: float | None,
    latents_mean: Sequence[float] | None,
    latents_std: Sequence[float] | None,
) -> None:
    """ValueError unless the scaling factor is positive, and means and stds are absent or one for each channel."""
    if not scaling_factor > 0:
        raise ValueError(f"scaling_factor must be positive, got {scaling_factor}")
    if latents_mean is None and latents_std is None:
        return
    if latents_mean is None or latents_std is None or not len(latents_mean) == len(latents_std) == channels:
        got = ", ".join("none" if values is None else str(len(values)) for values in (latents_mean, latents_std))
        raise ValueError(f"latents_mean and latents_std need a number for each of {channels} channels, got {got}")
    if not all(value > 0 for value in latents_std):
        raise ValueError(f"latents_std must be positive, got {list(latents_std)}")
    if shift_factor:
        raise ValueError(
            f"the autoencoder has a shift_factor ({shift_factor}) and a latents_mean, and only one of them can be "
            "meant; remove the other"
        )
