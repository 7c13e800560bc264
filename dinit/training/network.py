"""A backbone as training runs it: labels are embedded inside, and a recipe's switches change its forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from dinit.models.base import Backbone
from dinit.training.condition_noise import ConditionNoise
from dinit.training.routing import Routing


class TrainingNetwork(nn.Module):
    """A backbone whose one forward pass embeds labels too, so that DDP sees every parameter in use.

    seed: of the run, which with a sample's position in it decides all that the switches draw.
    """

    def __init__(
        self,
        backbone: Backbone,
        seed: int = 0,
        condition_noise: ConditionNoise | None = None,
        routing: Routing | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.condition_noise, self.routing = condition_noise, routing

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor, position: int | None = None) -> Tensor:
        """x (B, C, H, W), noise_label (B,), labels (B,) int64 -> (B, C, H, W).

        position: of the first row in the run. None is the plain network, without the switches.
        """
        cond = self.backbone.embed(labels)
        if position is None:
            return self.backbone(x, noise_label, cond)
        if self.condition_noise is not None:
            noise = self.condition_noise.draw(self.seed, position, (len(cond), cond.shape[1]))
            cond = cond + noise.to(cond, non_blocking=True)
        if self.routing is not None and self.routing.ratio > 0:
            self.backbone.block_hook = self.routing.route(self.backbone, self.seed, position)
        try:
            return self.backbone(x, noise_label, cond)
        finally:
            self.backbone.block_hook = None
