"""Pipeline methods of diffusers: moving, converting, and slicing and tiling of the autoencoder."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

import torch

from dinit.compat import is_light

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
else:
    from dinit.pipelines.light import DiffusionPipeline

if TYPE_CHECKING:
    from torch import nn


class DiffusersMethods(DiffusionPipeline):
    """A DiffusionPipeline whose `to` gives no meaningless warning, and whose switches work or warn."""

    if TYPE_CHECKING:
        vae: Any
        components: dict[str, nn.Module | None]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the networks to a device and converts them to a dtype, as in diffusers.

        Args:
            args: device, dtype, or both in this order.
            kwargs: device=, dtype=, silence_dtype_warnings=.
        """
        dtypes = [one for one in (*args, kwargs.pop("dtype", None)) if isinstance(one, torch.dtype)]
        rest = [one for one in args if not isinstance(one, torch.dtype) and one is not None]
        for dtype in dtypes:
            for part in self.components.values():
                # Not part.to, which warns of modules to be kept in float32 even where a model names none.
                if part is not None:
                    torch.nn.Module.to(part, dtype=dtype)
        if rest or kwargs.get("device") is not None:
            super().to(*rest, **kwargs)
        return self

    def enable_vae_slicing(self) -> None:
        """Decodes one image at a time, which needs less memory. ValueError for a pipeline without autoencoder."""
        self._need_vae("enable_vae_slicing").enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decodes a batch at once again. ValueError for a pipeline without autoencoder."""
        self._need_vae("disable_vae_slicing").disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decodes in tiles, which needs less memory. ValueError for a pipeline without autoencoder."""
        self._need_vae("enable_vae_tiling").enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decodes without tiles again. ValueError for a pipeline without autoencoder."""
        self._need_vae("disable_vae_tiling").disable_tiling()

    def _need_vae(self, what: str) -> Any:
        if self.vae is None:
            raise ValueError(f"{what} is for pipelines with an autoencoder, and this one has none: leave it out")
        return self.vae

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Has no effect, and warns: attention is torch's, which needs no slicing."""
        _warn_no_effect("enable_attention_slicing")

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Has no effect, and warns: attention is torch's, which is memory-efficient."""
        _warn_no_effect("enable_xformers_memory_efficient_attention")


def _warn_no_effect(method: str) -> None:
    warnings.warn(
        f"{method} has no effect: attention is torch's scaled_dot_product_attention, which is memory-efficient",
        UserWarning,
        stacklevel=3,
    )
