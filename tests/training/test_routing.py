"""Token routing: tokens that pass by come back as they were and where they were, on every backbone of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone
from dinit.training import RecipeError, parse_recipe
from dinit.training.network import TrainingNetwork
from dinit.training.regularizers.routing import Route, Routing, token_stages

OF_TOKENS = ["diffussm", "dis", "dit", "lamamba", "lightningdit", "lit", "sit"]
RECIPE = """\
data: digits
backbone: {name: dit, patch_size: 2, hidden_size: 16, depth: 6, num_heads: 2}
routing: {ratio: 0.5}
training: {steps: 10}
"""


def backbone_of(name: str) -> Backbone:
    """A small one of six blocks, four in one stage, with no gate closed."""
    torch.manual_seed(0)
    deeper = {"depth": (4, 1)} if name == "lamamba" else {"depth": 12 if name == "dis" else 6}
    backbone = BACKBONES[name].preset("tiny", **deeper)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(0.1, 0.9, batch), torch.arange(batch)


class Watch:
    """What goes into and comes out of each block."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.seen: dict[nn.Module, tuple[tuple[Any, ...], Tensor]] = {}
        for block in blocks:
            block.register_forward_hook(self._see)

    def _see(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        self.seen[block] = args, out


def at(x: Tensor, kept: Tensor) -> Tensor:
    return torch.stack([row[places] for row, places in zip(x, kept, strict=True)])


def others(x: Tensor, kept: Tensor) -> Tensor:
    left = [[n for n in range(x.shape[1]) if n not in places] for places in kept.tolist()]
    return at(x, torch.tensor(left))


def test_route_by_hand() -> None:
    """Blocks that add 1 and 10, routed, and 100: kept tokens get 111, the others 100, each at its place."""
    blocks: list[nn.Module] = [nn.Identity() for _ in range(3)]
    adds = dict(zip(blocks, (1.0, 10.0, 100.0), strict=True))
    kept = torch.tensor([[1, 3], [0, 3]])
    route = Route(blocks[:2], lambda batch, count: kept)
    x = torch.arange(8.0).reshape(2, 4, 1)
    seen = []
    for block in blocks:
        run = lambda x, block=block: (seen.append(x.clone()), x + adds[block])[1]  # noqa: E731
        x = route(run, block, x)
    assert seen[0].flatten(1).tolist() == [[1, 3], [4, 7]]
    assert x.flatten(1).tolist() == [[100, 112, 102, 114], [115, 105, 106, 118]]


@pytest.mark.parametrize("name", OF_TOKENS)
def test_tokens_that_pass_by_are_as_they_were(name: str) -> None:
    backbone, routing = backbone_of(name), Routing(0.5, 1, 3)
    stage = token_stages(backbone)[0]
    watch = Watch(stage)
    network = TrainingNetwork(backbone, seed=2, routing=routing)
    network(*inputs(), position=31)
    before, first, last, after = (watch.seen[block] for block in stage[:4])
    route = routing.route(backbone, 2, 31)
    route(lambda x, *_: x, stage[1], after[0][0], *after[0][1:])  # draws
    kept = route.kept
    assert kept is not None
    whole = 0 if not backbone.adds_blocks else before[0][0]
    entering = before[1] + whole
    torch.testing.assert_close(first[0][0], at(entering, kept), rtol=0, atol=0)
    torch.testing.assert_close(others(after[0][0], kept), others(entering, kept), rtol=0, atol=0)
    leaving = last[1] + (last[0][0] if backbone.adds_blocks else 0)
    torch.testing.assert_close(at(after[0][0], kept), leaving, rtol=0, atol=0)
    patches = entering.shape[1] - backbone.prefix
    assert kept.shape[1] - backbone.prefix == patches // 2
    assert bool((kept.diff(dim=1) > 0).all())  # no token twice
    assert kept[:, : backbone.prefix].tolist() == [list(range(backbone.prefix))] * 3


def test_rotary_positions_are_the_tokens_own() -> None:
    """A routed block gives what it gives each sample alone, with that sample's tokens' angles."""
    backbone = backbone_of("lightningdit")
    block = token_stages(backbone)[0][2]
    watch = Watch(list(backbone.blocks))
    routing = Routing(0.25, 2, 3)
    TrainingNetwork(backbone, routing=routing)(*inputs(), position=0)
    (x, c, angles), out = watch.seen[block]
    full = watch.seen[backbone.blocks[0]][0][2]
    route = routing.route(backbone, 0, 0)
    route(lambda x, *_: x, block, watch.seen[backbone.blocks[1]][1], c, full)
    assert route.kept is not None
    assert angles.shape == (3, 1, 12, full.shape[1])
    for b in range(3):
        alone = block(x[b : b + 1], c[b : b + 1], full[route.kept[b]])
        torch.testing.assert_close(out[b : b + 1], alone)


@pytest.mark.parametrize("name", ["lit", "lamamba"])
def test_blocks_on_a_grid_keep_whole_rows(name: str) -> None:
    backbone = backbone_of(name)
    block = token_stages(backbone)[0][1]
    watch = Watch([block])
    TrainingNetwork(backbone, routing=Routing(0.5, 1, 2))(*inputs(), position=0)
    assert watch.seen[block][0][2:] == (2, 4)
    route = Routing(0.5, 1, 2).route(backbone, 0, 0)
    route(lambda x, *_: x, block, torch.zeros(3, 16, 1), None, 4, 4)
    assert route.kept is not None
    places = route.kept.unflatten(1, (2, 4))
    assert bool((places % 4 == torch.arange(4)).all())
    assert bool((places // 4 == places[:, :, :1] // 4).all())


def test_without_ratio_or_position_it_is_the_plain_network() -> None:
    backbone = backbone_of("dit")
    plain = TrainingNetwork(backbone)(*inputs()).prediction
    unrouted = TrainingNetwork(backbone, routing=Routing(0.0, 1, 4))
    assert torch.equal(unrouted(*inputs(), position=0).prediction, plain)
    routed = TrainingNetwork(backbone, routing=Routing(0.5, 1, 4))
    assert not torch.allclose(routed(*inputs(), position=0).prediction, plain)
    assert torch.equal(routed(*inputs()).prediction, plain)
    assert backbone.block_hook is None


def test_routes_are_the_sample_s_own_and_fair() -> None:
    """Parts of a batch are routed as the whole; every token stays in 1 - ratio of all draws."""
    network = TrainingNetwork(backbone_of("dit"), seed=4, routing=Routing(0.5, 1, 4))
    x, t, labels = inputs(4)
    whole = network(x, t, labels, position=8).prediction
    parts = [
        network(x[rows], t[rows], labels[rows], position=8 + rows.start).prediction
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, t, labels, position=12).prediction, whole)
    kept = Routing(0.75, 0, 1).route(network.backbone, 0, 0).drawn(4000, 16)
    assert kept.shape == (4000, 4)
    assert bool((kept.diff(dim=1) > 0).all())
    share = kept.flatten().bincount(minlength=16) / 4000
    torch.testing.assert_close(share, torch.full((16,), 0.25), rtol=0, atol=0.03)  # 4 deviations


def test_gradients_are_those_without_checkpointing() -> None:
    def gradient(checkpointing: bool) -> list[Tensor]:
        backbone = backbone_of("lightningdit")
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        network = TrainingNetwork(backbone, routing=Routing(0.5, 1, 4))
        network(*inputs(), position=0).prediction.square().mean().backward()
        return [p.grad for p in backbone.parameters() if p.grad is not None]

    for ours, plain in zip(gradient(True), gradient(False), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone={name: dico, hidden_size: 8}", "routing: routing needs blocks that work on tokens"),
        ("routing.end=9", "lie in one of 0 to 6"),
        ("routing.start=4", "start = 4 and end = -3 of 6 blocks are 4 to 3"),
        ("routing.ratio=1", "routing.ratio: input should be less than 1, got 1"),
    ],
)
def test_mistakes_are_told(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE, ["routing.end=-3", override])
    assert message in str(caught.value)


def test_stages_of_other_resolutions_are_kept_apart() -> None:
    with pytest.raises(ValueError, match="one of 0 to 4, 4 to 5, 5 to 6, 6 to 8, 8 to 13"):
        Routing(0.5, 3, 5).blocks(backbone_of("lamamba"))
    backbone = backbone_of("lamamba")
    assert Routing(0.5, -5, -1).blocks(backbone) == list(backbone.decoder[1])[:4]
