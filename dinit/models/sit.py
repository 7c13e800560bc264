"""SiT: DiT's body as a velocity network. Ma et al. 2024, arXiv:2401.08740."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dinit.models.base import BACKBONES, register_to_config
from dinit.models.dit import NORM_EPS, DiT, DiTHead


@BACKBONES.register("sit")
class SiT(DiT):
    """DiT for flows (Ma et al. 2024); sizes S to XL, patches 2, 4, 8. Arguments as DiT's, and one more.

    spare_half: the head makes twice the channels and the second half is dropped. The published 256 px weights
    are of that shape; their authors switched DiT's learned variance on and did not use it.
    ValueError for spare_half together with learn_sigma.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: arguments if name == "tiny" else {**arguments, "learn_sigma": False, "spare_half": True}
        for name, arguments in DiT.presets.items()
    }

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        dropout: float = 0.0,
        freq_shift: float = 0.0,
        mlp_norm_eps: float = NORM_EPS,
        spare_half: bool = False,
    ) -> None:
        if spare_half and learn_sigma:
            raise ValueError("SiT: spare_half and learn_sigma both double the head; choose one")
        # All of DiT's arguments, because diffusers enters those of both constructors into one config.
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
            dropout=dropout,
            freq_shift=freq_shift,
            mlp_norm_eps=mlp_norm_eps,
        )
        if spare_half:
            self.head = DiTHead(hidden_size, patch_size * patch_size * 2 * in_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        return super().forward(x, noise_label, cond)[:, : self.out_channels]
