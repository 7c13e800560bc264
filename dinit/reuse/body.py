"""The body of a network, the layers and skips between stem and head, as its forward pass runs through them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinit.diffusion import BackboneDenoiser, Condition, Denoised, Denoiser, Scales
from dinit.diffusion.denoiser import GivenLabels
from dinit.models.base import Backbone

Kind = Literal["layer", "keep", "take"]


@dataclass(frozen=True)
class Event:
    """One thing that happens in the body.

    Attributes:
        kind: "layer" runs a block or a layer between blocks, "keep" leaves a skip, "take" joins one on the way up.
        name: of the module, in the network; "" of a skip.
        block: whether it is a block; the layers between, which change the resolution, are none.
        follows: whether a layer's input is the output of the layer before, as it came.
        keeps_shape: whether a layer's output has the shape of its input.
        size: of a skip, pixels or tokens of one channel at the network's image_size; 0 of a layer.
    """

    kind: Kind
    name: str = ""
    block: bool = False
    follows: bool = False
    keeps_shape: bool = False
    size: int = 0


@dataclass(frozen=True)
class Region:
    """Events that are left out when the value at their end is known.

    Attributes:
        start: first event, of those of a forward pass.
        stop: the event after the last.
        deep: whether it is what lies below a skip: then `stop` is the event that takes it. Otherwise it is a chain
            of layers, each fed by the one before.
    """

    start: int
    stop: int
    deep: bool


@dataclass(frozen=True)
class Body:
    """The events of a forward pass, in order. They are the same for every input of the network.

    Attributes:
        network: name of the network's class, for messages.
        events: in order.
    """

    network: str
    events: tuple[Event, ...]

    @property
    def blocks(self) -> list[int]:
        """The events that are blocks."""
        return [i for i, event in enumerate(self.events) if event.block]

    @property
    def takes(self) -> list[int]:
        """The events that take a skip."""
        return [i for i, event in enumerate(self.events) if event.kind == "take"]

    @property
    def keeps(self) -> list[int]:
        """The events that leave a skip."""
        return [i for i, event in enumerate(self.events) if event.kind == "keep"]

    def deep(self, branch: int, who: str) -> Region:
        """All below a skip: from where it is kept to where it is taken.

        Args:
            branch: the skip, counted from the outermost, 0.
            who: begins the message.

        Raises:
            ValueError: the network has no skips, or fewer.
        """
        keeps, takes = self.keeps, self.takes
        if not takes:
            raise ValueError(
                f"{who} needs a network with skip connections, and {self.network} has none: use delta, taylor or "
                "first-block, which take any row of blocks"
            )
        if not 0 <= branch < len(takes):
            raise ValueError(f"{who}: branch must be in 0 .. {len(takes) - 1} of {self.network}, got {branch}")
        return Region(keeps[branch] + 1, takes[-1 - branch], deep=True)

    def chain(self, first: int, last: int, who: str) -> Region:
        """Blocks in a row, each fed by the one before.

        Args:
            first: the first block of the region, from 0.
            last: the block after its last.
            who: begins the message.

        Raises:
            ValueError: the blocks do not follow each other, or there are fewer.
        """
        blocks = self.blocks
        if not 0 <= first < last <= len(blocks):
            raise ValueError(
                f"{who}: blocks {first} to {last - 1} are wanted, {self.network} has {len(blocks)}, from 0"
            )
        if not self.is_chain:
            raise ValueError(
                f"{who} needs blocks in a row, each fed by the one before, and {self.network} has skip connections "
                "or several resolutions: use deepcache, encoder-reuse or taylor"
            )
        return Region(blocks[first], blocks[last - 1] + 1, deep=False)

    @property
    def is_chain(self) -> bool:
        """Whether the body is blocks in a row, each fed by the one before, of one shape."""
        plain = all(event.block and event.keeps_shape for event in self.events)
        return plain and all(event.follows for event in self.events[1:])


def body_of(backbone: Backbone) -> Body:
    """The body of a backbone, from a pass of its shapes alone (no values are computed).

    Args:
        backbone: whose blocks pass its `block_hook`.

    Raises:
        ValueError: something else, or a network without blocks.
    """
    if not isinstance(backbone, Backbone):
        raise ValueError(f"a backbone of dinit is wanted, got {type(backbone).__name__}")
    twin = _on_meta(backbone)
    names = {id(module): name for name, module in twin.named_modules()}
    events: list[Event] = []
    last: list[Tensor] = []

    def layer(run: Callable[..., Tensor], module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        out = run(x, *args)
        follows = bool(last) and last[0] is x
        last[:] = [out]
        events.append(Event("layer", names[id(module)], run is not module, follows, out.shape == x.shape))
        return out

    class Watch:
        def keep(self, skip: Tensor) -> Tensor:
            events.append(Event("keep", size=_size(skip)))
            return skip

        def take(self, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
            events.append(Event("take", size=_size(skip)))
            return x, skip

    twin.block_hook, twin.skip_hook = layer, Watch()
    side = backbone.image_size
    with torch.no_grad():
        x = torch.zeros(1, backbone.in_channels, side, side, dtype=twin.dtype, device="meta")
        cond = twin.embed(torch.zeros(1, dtype=torch.int64, device="meta"))
        twin(x, torch.zeros(1, device="meta"), cond)
    if not any(event.block for event in events):
        raise ValueError(f"{type(backbone).__name__} has no blocks that can be left out")
    return Body(type(backbone).__name__, tuple(events))


def _size(skip: Tensor) -> int:
    """Pixels of a feature map (B, C, H, W), tokens of (B, N, D)."""
    return skip.shape[-2:].numel() if skip.ndim == 4 else skip.shape[1]


def _on_meta(backbone: Backbone) -> Backbone:
    """The network with tensors that have no values, its modules copied."""
    tensors = [*backbone.parameters(), *backbone.buffers()]
    memo: dict[int, Any] = {id(one): one.detach().to("meta") for one in tensors}
    for one in backbone.parameters():
        memo[id(one)] = nn.Parameter(memo[id(one)], requires_grad=False)
    return copy.deepcopy(backbone, memo).eval()


@dataclass
class BlockCounts:
    """How many blocks were run.

    Attributes:
        run: that were run.
        whole: that would have been run without a cache.
    """

    run: int = 0
    whole: int = 0


def of_network(denoiser: Denoiser, make: Callable[[BackboneDenoiser], Denoiser], who: str) -> Denoiser:
    """What `make` makes of a network's own denoiser, with the labels that this one has.

    Args:
        denoiser: of a network, with labels filled in or not.
        make: from the network's denoiser.
        who: begins the message.

    Raises:
        ValueError: a denoiser of something else.
    """
    if isinstance(denoiser, GivenLabels):
        return of_network(denoiser.inner, make, who).given(denoiser.labels)
    if not isinstance(denoiser, BackboneDenoiser):
        raise ValueError(
            f"{who} goes into a network, below all guidance: give it pipe.denoiser(labels) before "
            f"guidance, got {type(denoiser).__name__}"
        )
    return make(denoiser)


class Pass:
    """What happens to each event of one forward pass. This one runs everything as it is."""

    def layer(self, index: int, run: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """The output of a layer.

        Args:
            index: of the event.
            run: run(x, *args) is the layer.
            x: its input.
            args: what else it takes; the first, where there is one, is the condition (B, D).
        """
        return run(x, *args)

    def keep(self, index: int, skip: Tensor) -> Tensor:
        """What is kept in place of a skip."""
        return skip

    def take(self, index: int, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        """What takes the place of the features of the way up, and of the skip that they are joined with."""
        return x, skip


class Passes:
    """A view of a denoiser's network whose forward passes a `Pass` controls. The network itself is not changed.

    It shares the weights, and its hooks come before those that the network has.

    Args:
        denoiser: of the network.
        body: of the network.
        counts: where the blocks that are run are counted, if they are to be.
    """

    def __init__(self, denoiser: BackboneDenoiser, body: Body, counts: BlockCounts | None = None) -> None:
        network = copy.copy(denoiser.backbone)
        self._block_hook, self._skip_hook = network.block_hook, network.skip_hook
        network.block_hook, network.skip_hook = self._layer, self
        self._denoiser = denoiser.of(network)
        self._body, self._counts = body, counts
        self._pass, self._at = Pass(), 0

    def __call__(self, current: Pass, x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        """The prediction of a forward pass that `current` controls. Arguments: as of a denoiser."""
        self._pass, self._at = current, 0
        return self._denoiser(x_t, t, cond)

    def _next(self) -> int:
        self._at += 1
        return self._at - 1

    def _layer(self, run: Callable[..., Tensor], layer: nn.Module, x: Tensor, *args: Any) -> Tensor:
        index, before, counts = self._next(), self._block_hook, self._counts
        block = self._body.events[index].block
        if counts is not None:
            counts.whole += block

        def counted(x: Tensor, *args: Any) -> Tensor:
            if counts is not None:
                counts.run += block
            return run(x, *args) if before is None else before(run, layer, x, *args)

        return self._pass.layer(index, counted, x, args)

    def keep(self, skip: Tensor) -> Tensor:
        """As `SkipHook.keep`."""
        skip = skip if self._skip_hook is None else self._skip_hook.keep(skip)
        return self._pass.keep(self._next(), skip)

    def take(self, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        """As `SkipHook.take`."""
        x, skip = self._pass.take(self._next(), x, skip)
        return (x, skip) if self._skip_hook is None else self._skip_hook.take(x, skip)
