"""SiT: DiT's body as a velocity network. Ma et al. 2024, arXiv:2401.08740."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from dinit.models.base import BACKBONES, Preset, config_from_fields
from dinit.models.dit import SIZES, DiT, DiTHead
from dinit.models.layers.presets import imagenet_presets


@BACKBONES.register("sit")
@config_from_fields
class SiT(DiT):
    """DiT as a velocity network, for flows (Ma et al. 2024, arXiv:2401.08740); sizes S to XL, patches 2, 4, 8.

    Arguments are those of `DiT`, and one more.

    Args:
        spare_half: the head makes twice the channels and the second half is dropped. The published 256 px weights
            are of that shape; their authors switched DiT's learned variance on and did not use it.

    Raises:
        ValueError: spare_half together with learn_sigma, or sizes that do not fit together.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": DiT.presets["tiny"],
        **imagenet_presets(SIZES, patches=(2, 4, 8), learn_sigma=False, spare_half=True),
    }

    spare_half: bool = False

    def build(self) -> None:
        if self.spare_half and self.learn_sigma:
            raise ValueError("SiT: spare_half and learn_sigma both double the head; choose one")
        super().build()
        if self.spare_half:
            self.head = DiTHead(self.hidden_size, self.patch_size**2 * 2 * self.in_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        return super().forward(x, noise_label, cond)[:, : self.out_channels]
