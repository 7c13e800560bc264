"""diffusers networks as backbones: unconditional, and with classes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinit.models.base import Backbone


class DiffusersBackbone(Backbone):
    """A diffusers network that takes a noisy image first, then `timestep`; this class is for unconditional ones.

    Its `image_size` is the network's sample_size; 0 where the config has none.

    Args:
        network: Its weights are shared, not copied, and it is not changed.

    Raises:
        ValueError: the network does not map images to images of as many channels, or twice as many (a learned
            variance).
    """

    num_classes = 0
    null_class = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        config, name = network.config, type(network).__name__
        parameters = inspect.signature(network.forward).parameters
        self.image_argument = next(iter(parameters))
        self.in_channels = _setting(network, "in_channels")
        self.out_channels = config.get("out_channels") or self.in_channels
        if "img_ids" in parameters:
            raise ValueError(
                f"{name} takes packed tokens, not images (B, C, H, W), and cannot be read as a denoiser"
            )
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"{name} maps {self.in_channels} channels to {self.out_channels}; a denoiser has as many, or twice "
                "as many with a learned variance. Networks with a second image as input are not covered"
            )
        if config.get("time_embedding_type", "positional") != "positional":
            raise ValueError(
                f"{name} with time_embedding_type = {config['time_embedding_type']!r} is not covered; only "
                "'positional' is"
            )
        self.image_size = _square(name, config.get("sample_size"))
        self.network = network

    def embed(self, labels: Tensor) -> Tensor:
        """(B, 1) zeros: there is no condition."""
        return torch.zeros(len(labels), 1, device=labels.device)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond from `embed` -> (B, out_channels, H, W)."""
        return self.call_network(x, noise_label)

    def call_network(self, x: Tensor, noise_label: Tensor, **arguments: Any) -> Tensor:
        """The network's output. arguments: further ones of the network."""
        given = {self.image_argument: x, "timestep": noise_label.expand(len(x)), **arguments}
        return self.network(**given, return_dict=False)[0]

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """ValueError: the network is diffusers' model, which diffusers saves."""
        raise ValueError(
            f"this pipeline wraps diffusers' {type(self.network).__name__} and is not saved as a dinit folder: "
            "keep the diffusers folder, which loads directly, or save it with the diffusers pipeline"
        )


class ClassUNet(DiffusersBackbone):
    """UNet2DModel with num_class_embeds: a table whose rows are added to the time embedding.

    null_label: the row that was trained as the null class, None where there is none. The last row is then no class;
    any other keeps its number. ValueError where there is no such row.
    """

    def __init__(self, network: Any, null_label: int | None = None) -> None:
        super().__init__(_grafted(network, {"class_embedding": nn.Identity()}))
        self.table = network.class_embedding  # Embedding of (rows, D)
        rows = self.table.num_embeddings
        if null_label is not None and not 0 <= null_label < rows:
            raise ValueError(f"null_label must be in 0 .. {rows - 1} (rows of the class table), got {null_label}")
        self.null_class = null_label is not None
        self.null_label = null_label
        self.num_classes = rows - (null_label == rows - 1)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0 .. num_classes -> (B, D)."""
        if self.null_label is not None:
            labels = torch.where(labels == self.num_classes, self.null_label, labels)
        return self.table(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        return self.call_network(x, noise_label, class_labels=cond)


class ClassDiT(DiffusersBackbone):
    """DiTTransformer2DModel, which keeps a class table in every block; the null class is its last row.

    Where the tables are equal, as in converted weights, the condition is one row (B, D), so that noise on it (CADS)
    is that of the original DiT. Where they differ it is (B, blocks, D).
    """

    def __init__(self, network: Any) -> None:
        blocks = network.transformer_blocks
        tables = [block.norm1.emb.class_embedder.embedding_table for block in blocks]
        equal = all(torch.equal(tables[0].weight, table.weight) for table in tables[1:])
        places = {f"transformer_blocks.{i}.norm1.emb.class_embedder": _Row(i) for i in range(len(blocks))}
        super().__init__(_grafted(network, places))
        self.tables = nn.ModuleList(tables[:1] if equal else tables)  # Embeddings of (num_classes + 1, D)
        self.num_classes = _setting(network, "num_embeds_ada_norm")

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0 .. num_classes -> (B, D) or (B, blocks, D)."""
        rows = torch.stack([table(labels) for table in self.tables], dim=1)
        return rows[:, 0] if len(self.tables) == 1 else rows

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        return self.call_network(x, noise_label, class_labels=cond)


class _Row(nn.Module):
    """Replaces block i's class table: selects its row of an embedding that is computed already."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.i = i

    def forward(self, embedded: Tensor) -> Tensor:
        """(B, D), or (B, blocks, D) -> (B, D)."""
        return embedded if embedded.ndim == 2 else embedded[:, self.i]


def class_backbone(network: Any, null_label: int | None = None) -> DiffusersBackbone:
    """The backbone of a network that takes classes or nothing. ValueError where it takes something else."""
    name = next((c.__name__ for c in type(network).__mro__ if c.__name__ in _NETWORKS), "")
    if name == "DiTTransformer2DModel":
        _no_null_label(network, null_label, "its null class is known to be the last row")
        return ClassDiT(network)
    if not name:
        raise ValueError(
            f"{type(network).__name__} is not covered; known are {', '.join(_NETWORKS)}, and networks that take "
            "encoder_hidden_states, with condition="
        )
    kind = network.config.get("class_embed_type")
    if kind is not None:
        raise ValueError(f"{name} with class_embed_type = {kind!r} is not covered; only a table of classes is")
    if network.config.get("num_class_embeds") is None:
        _no_null_label(network, null_label, "it has no classes")
        return DiffusersBackbone(network)
    return ClassUNet(network, null_label)


_NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")


def _no_null_label(network: Any, null_label: int | None, reason: str) -> None:
    if null_label is not None:
        raise ValueError(f"{type(network).__name__} takes no null_label ({reason}), got {null_label}")


def _grafted(module: nn.Module, replacements: Mapping[str, nn.Module]) -> Any:
    """The module with submodules replaced, at dotted paths. It shares all others, and the original is unchanged."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    below: dict[str, dict[str, nn.Module]] = {}
    for path, new in replacements.items():
        head, _, rest = path.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = new
        else:
            twin._modules[head] = new
    for head, inner in below.items():
        twin._modules[head] = _grafted(getattr(module, head), inner)
    return twin


def _setting(network: Any, name: str) -> int:
    value = network.config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"the config of {type(network).__name__} has {name} = {value!r}; a denoiser needs a positive number"
        )
    return value


def _square(name: str, sample_size: Any) -> int:
    sides = sample_size if isinstance(sample_size, list | tuple) else (sample_size,)
    if sides == (None,):
        return 0
    if not sides or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ValueError(f"{name} has sample_size = {sample_size!r}: it must be a positive number, or two")
    if len(set(sides)) != 1:
        raise ValueError(f"{name} was made for {'×'.join(map(str, sides))}; only square images are covered")
    return sides[0]
