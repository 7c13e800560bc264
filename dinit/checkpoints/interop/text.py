"""diffusers networks conditioned on encoded text: prompts are classes, one row each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dinit.checkpoints.interop.networks import DiffusersBackbone
from dinit.devices import upload
from dinit.diffusion import BackboneDenoiser, Condition

TEXT = "encoder_hidden_states"  # diffusers' argument for the encoded text

Arguments = Mapping[str, Tensor]
Given = Tensor | Mapping[str, Any]


def takes_text(network: Any) -> bool:
    """Whether the network's forward has an argument for an encoded text."""
    return TEXT in inspect.signature(network.forward).parameters


@dataclass(frozen=True)
class TextCondition(Condition):
    """A condition with further arguments of the network, each (B, ...); those of the null class are (1, ...)."""

    further: Arguments = field(default_factory=dict)
    null_further: Arguments = field(default_factory=dict)

    def null(self) -> Condition:
        further = {name: self.null_further[name].expand_as(t) for name, t in self.further.items()}
        return replace(super().null(), further=further)  # type: ignore[call-arg]

    def joined(self, other: Condition) -> Condition:
        assert isinstance(other, TextCondition), "both halves come from one denoiser"
        further = {name: torch.cat([t, other.further[name]]) for name, t in self.further.items()}
        return replace(super().joined(other), further=further)  # type: ignore[call-arg]


class TextBackbone(DiffusersBackbone):
    """A network with `encoder_hidden_states`; label i is row i of the prompts, and the null label the null row.

    rows: (B,) labels -> arguments of the network, each (B, ...). null: the same for the null class, each (1, ...);
    None where the network was trained without one.
    """

    def __init__(
        self, network: Any, rows: Callable[[Tensor], Arguments], null: Arguments | None, count: int
    ) -> None:
        super().__init__(network)
        self.rows, self.null = rows, null
        self.num_classes, self.null_class = count, null is not None

    def arguments(self, labels: Tensor) -> dict[str, Tensor]:
        """labels (B,) int64 in 0 .. num_classes -> arguments of the network, each (B, ...)."""
        is_null, readable = labels == self.num_classes, labels.is_cpu  # no labels are read back from a device
        if self.null is not None and readable and bool(is_null.all()):
            return {name: t.expand(len(labels), *t.shape[1:]) for name, t in self.null_on(labels.device).items()}
        given = {name: upload(t, labels.device) for name, t in self.rows(labels.masked_fill(is_null, 0)).items()}
        if self.null is not None:
            _check_alike(given, self.null)
        if self.null is None or (readable and not bool(is_null.any())):
            return given
        where = {name: is_null.reshape(-1, *(1,) * (t.ndim - 1)) for name, t in given.items()}
        null = self.null_on(labels.device)
        return {name: torch.where(where[name], null[name].to(t), t) for name, t in given.items()}

    def null_on(self, device: torch.device) -> dict[str, Tensor]:
        """The arguments of the null class, each (1, ...), on a device."""
        return {name: upload(t, device) for name, t in (self.null or {}).items()}

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0 .. num_classes -> (B, L, D), the encoded text."""
        return self.arguments(labels)[TEXT]

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor, **further: Tensor) -> Tensor:
        """x (B, C, H, W), noise_label (B,) or (1,), cond (B, L, D), further arguments (B, ...) -> as x."""
        return self.call_network(x, noise_label, **{TEXT: cond}, **_nested(further))


class TextDenoiser(BackboneDenoiser):
    """A BackboneDenoiser of a TextBackbone: all the arguments that come from a prompt reach the network."""

    def encode(self, labels: Tensor) -> Condition:
        given = self.backbone.arguments(labels)
        null = self.backbone.null_on(labels.device)
        embedding, null_embedding = given.pop(TEXT), null.pop(TEXT, None)
        return TextCondition(
            embedding,
            null_embedding,
            labels == self.num_classes,
            labels=labels,
            further=given,
            null_further=null,
        )

    def call_backbone(self, x: Tensor, noise_label: Tensor, cond: Condition) -> Tensor:
        assert isinstance(cond, TextCondition), "a condition made by this denoiser"
        further = {name: t.to(x.dtype) if t.is_floating_point() else t for name, t in cond.further.items()}
        return self.backbone(x, noise_label, cond.embedding.to(x.dtype), **further)


def text_backbone(
    network: Any, condition: Given | Callable[[Tensor], Given], null: Given | None, num_classes: int | None
) -> TextBackbone:
    """Arguments as denoiser_from_diffusers. ValueError for a condition that is no such thing."""
    null_rows = None if null is None else _arguments(network, "null_condition", null)
    if null_rows is not None and any(len(t) != 1 for t in null_rows.values()):
        raise ValueError(f"null_condition has one row, (1, ...), got {_shapes(null_rows)}")
    if callable(condition):
        if num_classes is None:
            raise ValueError("a callable condition= needs num_classes=, the number of prompts: labels run below it")
        make = condition
        rows = lambda labels: _arguments(network, "condition", make(labels))  # noqa: E731
        return TextBackbone(network, rows, null_rows, num_classes)
    table = _arguments(network, "condition", condition)
    count = len(table[TEXT])
    if num_classes not in (None, count):
        raise ValueError(f"num_classes = {num_classes} contradicts a condition of {count} rows; leave it out")
    if null_rows is not None:
        _check_alike(table, null_rows)
    tables: dict[torch.device, Arguments] = {}

    def look_up(labels: Tensor) -> Arguments:
        if labels.is_cpu:
            return {name: t[labels.to(t.device)] for name, t in table.items()}
        if labels.device not in tables:  # moved there once, where the labels can stay
            tables[labels.device] = {name: upload(t, labels.device) for name, t in table.items()}
        return {name: t[labels] for name, t in tables[labels.device].items()}

    return TextBackbone(network, look_up, null_rows, count)


def _arguments(network: Any, what: str, given: Any) -> dict[str, Tensor]:
    """Flat and checked: {name: (B, ...)}, with nested names joined by a dot."""
    flat = _flat({TEXT: given} if isinstance(given, Tensor) else given)
    known = inspect.signature(network.forward).parameters
    if TEXT not in flat or not all(isinstance(t, Tensor) and t.ndim for t in flat.values()):
        raise ValueError(
            f"{what} must be encoded text (N, L, D), or a mapping of the network's arguments with {TEXT!r} in it, "
            f"each a tensor of N rows; got {type(given).__name__} {sorted(flat)}"
        )
    unknown = sorted({name.partition(".")[0] for name in flat} - set(known))
    if unknown:
        raise ValueError(f"{what}: {type(network).__name__} has no argument {', '.join(unknown)}")
    if len({len(t) for t in flat.values()}) != 1:
        raise ValueError(f"{what}: every argument needs as many rows, got {_shapes(flat)}")
    return flat


def _check_alike(rows: Arguments, null: Arguments) -> None:
    if {name: t.shape[1:] for name, t in rows.items()} != {name: t.shape[1:] for name, t in null.items()}:
        raise ValueError(f"null_condition {_shapes(null)} must have the arguments and shapes of {_shapes(rows)}")


def _shapes(arguments: Arguments) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in arguments.items())


def _flat(given: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": t}} as {"a.b": t}."""
    if not isinstance(given, Mapping):
        return {prefix.removesuffix("."): given}
    return {name: t for key, value in given.items() for name, t in _flat(value, f"{prefix}{key}.").items()}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """{"a.b": t} as {"a": {"b": t}}; diffusers' arguments are not nested deeper."""
    nested: dict[str, Any] = {}
    for name, t in flat.items():
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = t
        else:
            nested[head] = t
    return nested
