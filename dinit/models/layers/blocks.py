"""Running blocks, with activation checkpointing and block hooks where they are set."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dinit.models.base import Network


def run_block(model: Network, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """block(x, *args); recomputed in the backward pass after `model.enable_gradient_checkpointing()`.

    Where the model has a `block_hook`, the hook's result: see Backbone.
    """
    hook = getattr(model, "block_hook", None)
    if hook is not None:
        return hook(partial(_run, model, block), block, x, *args)
    return _run(model, block, x, *args)


def _run(model: Network, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    if model.gradient_checkpointing and torch.is_grad_enabled():
        checkpoint: Any = model._gradient_checkpointing_func  # set by diffusers' ModelMixin
        return checkpoint(block, x, *args)
    return block(x, *args)


def run_layer(model: Network, layer: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """layer(x, *args) of a layer between blocks, never recomputed; it passes the `block_hook` as a block does."""
    hook = getattr(model, "block_hook", None)
    return layer(x, *args) if hook is None else hook(layer, layer, x, *args)


def run_blocks(model: Network, blocks: Iterable[nn.Module], x: Tensor, c: Tensor) -> Tensor:
    """Every block in turn: x <- block(x, c)."""
    for block in blocks:
        x = run_block(model, block, x, c)
    return x
