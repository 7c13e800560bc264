"""Initialisations that several layers share."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zeroed(layer: Layer) -> Layer:
    """The layer with zero weights and biases: a branch that ends in it adds nothing at the start."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier(layer: Layer) -> Layer:
    """The layer with Xavier-uniform weights and zero biases; a convolution as a Linear on its patches."""
    nn.init.xavier_uniform_(layer.weight.detach().flatten(1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def small_normal(layer: nn.Linear) -> nn.Linear:
    """The layer with normal weights of standard deviation 0.02 and zero biases."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
