"""Training network: a backbone that embeds its labels, and whose forward pass a recipe's switches change."""

from __future__ import annotations

from torch import Tensor, nn

from dinit.devices import upload
from dinit.models.base import Backbone
from dinit.training.objective import NetworkOutput
from dinit.training.regularizers.alignment import Alignment
from dinit.training.regularizers.condition_noise import ConditionNoise
from dinit.training.regularizers.routing import Routing


class TrainingNetwork(nn.Module):
    """A backbone whose forward pass embeds the labels too, so that every parameter is used in DDP's forward pass.

    seed: of the run. With an image's number in the run it seeds all random numbers of the switches.
    """

    def __init__(
        self,
        backbone: Backbone,
        seed: int = 0,
        condition_noise: ConditionNoise | None = None,
        routing: Routing | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.condition_noise, self.routing, self.alignment = condition_noise, routing, alignment

    @property
    def auxiliary(self) -> nn.Module:
        """Trained modules that are no part of the backbone: the projection of an alignment, or none."""
        return nn.ModuleList() if self.alignment is None else self.alignment.projection

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Tensor,
        position: int | None = None,
        images: Tensor | None = None,
    ) -> NetworkOutput:
        """x (B, C, H, W), noise_label (B,), labels (B,) int64 -> (B, C, H, W), and (B,) the loss of an alignment.

        position: number of the first image in the run. None is the plain network, without the switches. images: the
        clean images of x, (B, C, H, W) in [-1, 1], for an alignment.
        """
        cond = self.backbone.embed(labels)
        if position is None:
            return NetworkOutput(self.backbone(x, noise_label, cond))
        if self.condition_noise is not None:
            noise = self.condition_noise.draw(self.seed, position, (len(cond), cond.shape[1]))
            cond = cond + upload(noise, cond.device, cond.dtype)
        route = probe = None
        if self.routing is not None and self.routing.ratio > 0:
            route = self.routing.route(self.backbone, self.seed, position)
        if self.alignment is not None:
            probe = self.alignment.probe(self.backbone, route)
        self.backbone.block_hook = probe or route
        try:
            output = self.backbone(x, noise_label, cond)
        finally:
            self.backbone.block_hook = None
        if self.alignment is None or probe is None:
            return NetworkOutput(output)
        assert images is not None, "an alignment needs the clean images"
        return NetworkOutput(output, self.alignment(probe, images))
