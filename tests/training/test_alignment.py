"""Representation alignment: its angle in numbers, whose features it sees, and what of it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.training import RecipeError, parse_recipe
from dinit.training.build import make_backbone, make_data
from dinit.training.network import TrainingNetwork
from dinit.training.recipe.model import Named
from dinit.training.regularizers.alignment import Alignment, Probe, find_block
from dinit.training.regularizers.encoders import make_encoder
from dinit.training.regularizers.routing import Route, Routing
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.log import read_losses

RECIPE = """\
data: digits
backbone: {name: dit, patch_size: 2, hidden_size: 16, depth: 3, num_heads: 2}
condition_noise: {gamma: 0.5}
routing: {ratio: 0.5, start: 1, end: 2}
alignment: {encoder: digits-classifier, block: 1, hidden: 8}
training: {steps: 6, batch_size: 8, checkpoint_every: 4, log_every: 2}
ema: {decay: 0.5}
sampling: {steps: 2}
tracker: null
"""


def pooled(images: Tensor) -> Tensor:
    """An encoder: pixels and their squares at 4×4, from 8×8."""
    small = nn.functional.avg_pool2d(images, 2)
    return torch.cat([small, small.square()], dim=1)


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = BACKBONES[name].preset("tiny")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def aligned(encoder: Callable[[Tensor], Tensor] = pooled, weight: float = 0.5) -> Alignment:
    """Features as they are, without a projection."""
    alignment = Alignment(backbone_of("dit"), encoder, 1, weight)
    alignment.projection = nn.Sequential()
    return alignment


def seen(features: Tensor, route: Route | None = None) -> Probe:
    probe = Probe(nn.Identity() if route is None else route.blocks[0], route=route)
    probe.features = features
    return probe


def test_angle_by_hand() -> None:
    """0 along the encoder's features, whatever their length, 1 across and 2 against them, times the weight."""
    target = pooled(images()).flatten(2).transpose(1, 2)  # (B, 16, 2)
    across = torch.stack([-target[..., 1], target[..., 0]], dim=-1)
    half = torch.cat([3 * target[:, :8], -target[:, 8:]], dim=1)
    for features, expected in ((3 * target, 0.0), (-target, 1.0), (across, 0.5), (half, 0.5)):
        loss = aligned()(seen(features), images())
        torch.testing.assert_close(loss, torch.full((3,), expected), rtol=0, atol=1e-6)


def test_encoder_s_map_is_resized_to_the_tokens() -> None:
    """8×8 features are averaged over each token's square; a 2×2 map of equal rows stays so when it gets finer."""
    fine = lambda images: torch.cat([images, images.square()], dim=1)  # noqa: E731
    means = nn.functional.avg_pool2d(fine(images()), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(aligned(fine)(seen(means), images()), torch.zeros(3), rtol=0, atol=1e-6)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, :, None].expand(2, 2, 2)  # features (1, 0) above, (0, 1) below
    coarse = lambda images: rows.expand(len(images), 2, 2, 2)  # noqa: E731
    upper, lower = torch.tensor([1.0, 0.0]).expand(3, 4, 2), torch.tensor([0.0, 1.0]).expand(3, 4, 2)
    mixed = [torch.tensor(pair).expand(3, 4, 2) for pair in ([0.75, 0.25], [0.25, 0.75])]
    tokens = torch.cat([upper, *mixed, lower], dim=1)
    torch.testing.assert_close(aligned(coarse)(seen(tokens), images()), torch.zeros(3), rtol=0, atol=1e-6)


def test_routed_tokens_meet_their_own_places() -> None:
    kept = torch.tensor([[1, 2, 9], [0, 7, 15], [3, 4, 5]])
    route = Route([nn.Identity()], lambda batch, count: kept)
    route.kept = kept
    target = pooled(images()).flatten(2).transpose(1, 2)
    own = torch.stack([row[places] for row, places in zip(target, kept, strict=True)])
    torch.testing.assert_close(aligned()(seen(own, route), images()), torch.zeros(3), rtol=0, atol=1e-6)
    assert float(aligned()(seen(target[:, :3], route), images()).min()) > 0.01


@pytest.mark.parametrize(("name", "block"), [("dit", 1), ("dis", 0), ("dico", "bottom.0"), ("diffussm", 0)])
def test_features_are_the_block_s(name: str, block: int | str) -> None:
    """The loss is that of what a forward hook of the block sees, added to the stream where the block is."""
    backbone = backbone_of(name)
    alignment = Alignment(backbone, pooled, block, hidden=8)
    records: list[tuple[Tensor, Tensor]] = []

    def record(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        records.append((args[0], out))

    find_block(backbone, block).register_forward_hook(record)
    t, labels = torch.linspace(0.1, 0.9, 3), torch.arange(3)
    _, loss = TrainingNetwork(backbone, alignment=alignment)(images(), t, labels, 0, images())
    ((given, out),) = records
    out = given + out if name == "dis" else out
    torch.testing.assert_close(loss, alignment(seen(out), images()))
    assert alignment.grid == {"dit": (4, 4), "dis": (4, 4), "dico": (2, 2), "diffussm": (8, 4)}[name]


def test_gradients_reach_the_blocks_before_and_not_the_encoder() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4))
    backbone = backbone_of("dit")
    network = TrainingNetwork(backbone, alignment=Alignment(backbone, encoder, 0, hidden=8)).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    _, loss = network(images(), torch.zeros(3), torch.arange(3), 0, images())
    loss.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.auxiliary.parameters())
    first, second = (block.attention.qkv.weight.grad for block in backbone.blocks)
    assert float(first.abs().max()) > 0
    assert second is None


def test_all_switches_resume_and_leave_an_ordinary_pipeline(tmp_path: Path) -> None:
    """Stopped after step 4 and gone on, the losses are the same; the projection is in checkpoints alone."""
    train(parse_recipe(RECIPE), tmp_path / "whole", progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    _, last = list_checkpoints(tmp_path / "parts" / "checkpoints")
    for path in (*last.iterdir(), *(tmp_path / "parts" / "pipeline").iterdir()):
        if path.is_file():
            path.unlink()
    train(parse_recipe(RECIPE), tmp_path / "parts", progress=False)
    losses = [read_losses(tmp_path / name / "losses.jsonl") for name in ("whole", "parts")]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    kept = [
        load_file(list_checkpoints(tmp_path / name / "checkpoints")[-1] / "beside.safetensors")
        for name in ("whole", "parts")
    ]
    assert set(kept[0]) == {f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    backbone: Any = Pipeline.from_pretrained(tmp_path / "whole" / "pipeline").backbone
    recipe = parse_recipe(RECIPE)
    plain = make_backbone(recipe, make_data(recipe))
    assert set(backbone.state_dict()) == set(plain.state_dict())


def test_encoders_by_import_and_their_errors() -> None:
    encoder = make_encoder(Named(name="torch.nn:AvgPool2d", kernel_size=2))  # type: ignore[call-arg]
    torch.testing.assert_close(encoder(images()), nn.functional.avg_pool2d(images(), 2))
    for name, message in (
        ("nowhere:at_all", "No module named"),
        ("torch.nn:None", "has no attribute"),
        ("dino", "unknown encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            make_encoder(Named(name=name))
    with pytest.raises(ValueError, match="a square of patches, got 5"):
        aligned(lambda images: torch.zeros(len(images), 5, 2))
    with pytest.raises(ValueError, match=r"'stem' is not run as a block; these are: blocks\.0, blocks\.1"):
        Alignment(backbone_of("dit"), pooled, "stem")
    with pytest.raises(ValueError, match="no grid over images"):
        Alignment(backbone_of("diffit"), pooled, "blocks.0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alignment.block=3", "DiT has no block 3: its blocks on tokens are 0 to 2"),
        ("alignment.encoder=digit-classifier", "did you mean 'digits-classifier'?"),
        ("alignment.encoder.foldr=x", "has no option 'foldr'"),
        ("data={name: glyphs, size: 32}", "(B, 1, 8, 8)"),
        ("alignment.weight=0", "alignment.weight: input should be greater than 0"),
    ],
)
def test_mistakes_are_told(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE, [override])
    assert message in str(caught.value)


def test_routing_and_alignment_of_a_routed_block() -> None:
    """A block that half of the tokens pass by is aligned at the other half."""
    backbone = backbone_of("dis")
    alignment = Alignment(backbone, pooled, 0, hidden=8)
    network = TrainingNetwork(backbone, routing=Routing(0.5, 0, 1), alignment=alignment)
    sizes: list[int] = []
    alignment.projection.register_forward_hook(lambda _, args, out: sizes.append(args[0].shape[1]))
    network(images(), torch.zeros(3), torch.arange(3), 0, images())
    assert sizes == [8]


def test_dinov2_s_patches(tmp_path: Path) -> None:
    """A network of one block that does nothing but its norms: tokens are the normed embeddings of their patches."""
    d, patch = 64, 14
    torch.manual_seed(0)
    weights = {"cls_token": torch.randn(1, 1, d), "pos_embed": torch.zeros(1, 5, d)}
    weights |= {"patch_embed.proj.weight": torch.randn(d, 3, patch, patch), "patch_embed.proj.bias": torch.randn(d)}
    shapes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        weights |= {f"{name}.weight": torch.ones(d), f"{name}.bias": torch.zeros(d)}
    for name, shape in shapes.items():
        weights |= {f"blocks.0.{name}.weight": torch.randn(shape), f"blocks.0.{name}.bias": torch.randn(shape[0])}
    weights |= {f"blocks.0.ls{k}.gamma": torch.zeros(d) for k in (1, 2)}
    torch.save(weights, tmp_path / "dino.pth")
    encoder = make_encoder(
        Named.model_validate({"name": "dinov2", "weights": str(tmp_path / "dino.pth"), "side": 28})
    )
    grey = torch.tensor([-0.4, 0.6])[:, None, None, None].expand(2, 1, 28, 28)  # resizing leaves it as it is
    pixels = ((grey[:, 0, 0, 0] + 1) / 2)[:, None] - torch.tensor([0.485, 0.456, 0.406])
    pixels = pixels / torch.tensor([0.229, 0.224, 0.225])
    embedded = pixels @ weights["patch_embed.proj.weight"].sum((2, 3)).T + weights["patch_embed.proj.bias"]
    expected = nn.functional.layer_norm(embedded, (d,), eps=1e-6)[:, None].expand(2, 4, d)
    torch.testing.assert_close(encoder(grey), expected, rtol=1e-3, atol=1e-3)
