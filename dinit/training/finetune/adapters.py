"""Adapters of fine-tuning: all weights, DiffFit's few, or low-rank additions (LoRA).

`merged` folds what was added to a network into its own weights, exactly, so that a pipeline does not need it.
LoRA's layers are our own: peft requires transformers, for three lines of arithmetic. peft opens what `save_adapter`
writes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dinit.files import write_atomically
from dinit.models.base import Backbone
from dinit.models.layers.modulation import Modulation
from dinit.registry import suggest


class ScaledGates(nn.Module):
    """A modulation whose gates are times gamma, one number a channel, 1 at the start. Xie et al. 2023 (DiffFit).

    A gate is what a branch of a block is times before it is added, so gamma scales the branch.
    """

    def __init__(self, inner: Modulation) -> None:
        super().__init__()
        self.inner = inner
        width = inner.linear.out_features // inner.chunks
        self.gamma = nn.Parameter(torch.ones(len(inner.gates), width))

    def forward(self, c: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """As Modulation."""
        vectors = list(self.inner(c, x))
        for gamma, place in zip(self.gamma, self.inner.gates, strict=True):
            vectors[place] = vectors[place] * (gamma if x.ndim == 3 else gamma[:, None, None])
        return tuple(vectors)

    @torch.no_grad()
    def merged(self) -> Modulation:
        """The modulation, with gamma in its weights."""
        linear, width = self.inner.linear, self.gamma.shape[1]
        for gamma, place in zip(self.gamma, self.inner.gates, strict=True):
            rows = slice(place * width, (place + 1) * width)
            linear.weight[rows] *= gamma[:, None]
            linear.bias[rows] *= gamma
        return self.inner


class LowRank(nn.Module):
    """layer(x) + alpha / rank B(A(x)): A to `rank` features, B back, zero at the start. Hu et al. 2021 (LoRA).

    layer: a Linear, or a convolution of one group, of which A has the kernel and B is 1×1.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer, self.scale = layer, alpha / rank
        where = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        if isinstance(layer, nn.Linear):
            self.lora_A: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **where)
            self.lora_B: Any = nn.Linear(rank, layer.out_features, bias=False, **where)
        else:
            shape: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            self.lora_A = nn.Conv2d(layer.in_channels, rank, *shape, bias=False, **where)
            self.lora_B = nn.Conv2d(rank, layer.out_channels, 1, bias=False, **where)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The layer, with the product of B and A in its weight."""
        a: Any = self.lora_A.weight
        product = self.lora_B.weight.flatten(1).double() @ a.flatten(1).double()
        weight = self.base_layer.weight
        weight.copy_(weight.double() + self.scale * product.reshape(weight.shape))
        return self.base_layer


def adapt_difffit(backbone: Backbone) -> None:
    """Freezes all but biases, norms and label tables, and adds the scales of gates. Xie et al. 2023, section 3.

    Of backbones whose blocks have no gates (U-Net, ADM, DDPM++, DiS, DiffiT), the scales are left out.
    """
    backbone.requires_grad_(False)
    for module in backbone.modules():
        if "Norm" in type(module).__name__:
            module.requires_grad_(True)
    for name, parameter in backbone.named_parameters():
        if name.rpartition(".")[2] == "bias":
            parameter.requires_grad_(True)
    _train_tables(backbone)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, Modulation) and module.gates:
            _replace(backbone, name, ScaledGates(module))


def adapt_lora(backbone: Backbone, rank: int, alpha: float, targets: Sequence[str] | None = None) -> None:
    """Freezes all but the label tables, and adds low-rank layers.

    targets: last parts of the names of the layers that get one, such as 'qkv' or 'mlp.fc1'; None is all Linear
    layers and convolutions of one group, but for the stem. ValueError for a target that no layer has.
    """
    backbone.requires_grad_(False)
    _train_tables(backbone)
    layers = {name: module for name, module in backbone.named_modules() if _fits(module)}
    if targets is None:
        chosen = [name for name in layers if name.partition(".")[0] != "stem"]
    else:
        chosen = [name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets)]
        for target in targets:
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                known = sorted({name.rpartition(".")[2] for name in layers})
                raise ValueError(
                    f"no layer of {type(backbone).__name__} is called {target!r}{suggest(target, known)}"
                )
    for name in chosen:
        layer: Any = layers[name]
        _replace(backbone, name, LowRank(layer, rank, alpha))


def merged(network: Any) -> Any:
    """A plain backbone that computes the same as this one; itself, where nothing was added to it."""
    if not any(isinstance(module, (ScaledGates, LowRank)) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, (ScaledGates, LowRank)):
            _replace(network, name, module.merged())
    return network


def save_adapter(network: nn.Module, folder: Path) -> bool:
    """Writes adapter_model.safetensors and adapter_config.json, as peft does. False where there is no LowRank.

    The label tables, trained whole, are in it under their own names, as peft's `modules_to_save`.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LowRank)}
    if not layers:
        return False
    tensors: dict[str, Any] = {f"{name}.lora_A.weight": layer.lora_A.weight for name, layer in layers.items()}
    tensors |= {f"{name}.lora_B.weight": layer.lora_B.weight for name, layer in layers.items()}
    tables = label_tables(network)
    tensors |= {f"{name}.weight": table.weight for name, table in tables.items()}
    plain = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
    one = next(iter(layers.values()))
    rank = one.lora_B.weight.shape[1]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": one.scale * rank,
        "target_modules": sorted(layers),
        "modules_to_save": sorted(tables),
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "adapter_model.safetensors", save(plain))
    write_atomically(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    return True


def label_tables(network: nn.Module) -> dict[str, nn.Embedding]:
    """The tables of label embeddings, by name: a row a class, and one of the null class where there is one."""
    rows = (getattr(network, "num_classes", 0), getattr(network, "num_classes", 0) + 1)
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    return {name: table for name, table in found.items() if table.num_embeddings in rows}


def trained(network: nn.Module) -> tuple[int, int]:
    """(numbers that are trained, numbers of all parameters)."""
    return _count(p for p in network.parameters() if p.requires_grad), _count(network.parameters())


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _train_tables(backbone: Backbone) -> None:
    for table in label_tables(backbone).values():
        table.requires_grad_(True)


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
