"""Board of results: a card for each sampler with its pictures, as HTML, at every stored step."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from dinit.app.running import Frame

_LOSSLESS_UP_TO = 96  # pixels of a side; larger pictures of the steps before the last are WebP, a tenth of the size


@dataclass(frozen=True)
class Shown:
    """What one card shows at one step.

    Attributes:
        frame: the step's numbers.
        sources: an address of each picture, with the picture in it.
    """

    frame: Frame
    sources: tuple[str, ...]


@dataclass
class Card:
    """The card of one sampler.

    Attributes:
        title: of the card: the sampler with its options.
        subtitle: steps and grid.
        shown: the stored steps, in order.
        last: the newest frame, stored or not.
    """

    title: str
    subtitle: str
    shown: list[Shown] = field(default_factory=list)
    last: Frame | None = None


@dataclass
class Board:
    """All cards of a request; each visitor has one of their own.

    Attributes:
        cards: one for each sampler.
        names: the class of every image, "" for none.
        number: of the run, an attribute of the HTML.
    """

    cards: list[Card]
    names: Sequence[str]
    number: int = 0

    def add(self, frame: Frame) -> None:
        """Store a frame.

        Args:
            frame: of `dinit.app.running.run`.
        """
        card = self.cards[frame.column]
        card.last = frame
        if frame.pictures:
            exact = frame.generated is not None
            numbers = Frame(**{**vars(frame), "pictures": (), "generated": None})
            card.shown.append(Shown(numbers, tuple(source(one, exact) for one in frame.pictures)))

    @property
    def over(self) -> bool:
        """Whether no card has a further step."""
        ends = [
            card.last is not None and (card.last.done == card.last.total or card.last.error) for card in self.cards
        ]
        return all(ends)

    @property
    def positions(self) -> int:
        """Number of steps that the scrubber has: that of the card with most of them."""
        return max((len(card.shown) for card in self.cards), default=0)

    def at(self, position: int | None) -> list[Shown | None]:
        """What each card shows at a position of the scrubber.

        Args:
            position: 1 .. positions; None is the newest. Cards with fewer steps are at the same part of their run.
        """
        if position is None or self.positions <= 1:
            return [card.shown[-1] if card.shown else None for card in self.cards]
        part = (min(max(position, 1), self.positions) - 1) / (self.positions - 1)
        return [card.shown[round(part * (len(card.shown) - 1))] if card.shown else None for card in self.cards]

    def to_html(self, position: int | None = None) -> str:
        """The board.

        Args:
            position: of the scrubber; None is the newest step.
        """
        cards = zip(self.cards, self.at(position), strict=True)
        inner = "".join(self._card(card, shown, position is not None) for card, shown in cards)
        marks = f'data-run="{self.number}" data-over="{int(self.over)}"'
        return f'<div class="board" {marks} style="--cards:{len(self.cards)}">{inner}</div>'

    def _card(self, card: Card, shown: Shown | None, scrubbed: bool) -> str:
        frame = card.last if not scrubbed or shown is None else shown.frame
        done = 0.0 if frame is None else frame.done / max(1, frame.total)
        pictures = self._pictures(() if shown is None else shown.sources)
        last = card.last
        lines = [] if last is None or last.error is None else [_paragraph("error", last.error)]
        lines += [_paragraph("note", one) for one in (last.notes if last else ())]
        return (
            f'<section class="card"><header><b>{html.escape(card.title)}</b> <span>{html.escape(card.subtitle)}'
            f'</span></header><div class="bar"><i style="width:{100 * done:.0f}%"></i></div>{pictures}'
            f"<footer>{_numbers(frame)}</footer>{''.join(lines)}</section>"
        )

    def _pictures(self, sources: Sequence[str]) -> str:
        """Rows of a class each, or a square where no class has two pictures."""
        padded = [*sources, *[""] * (len(self.names) - len(sources))]
        members: dict[str, list[str]] = {}
        for name, one in zip(self.names, padded, strict=True):
            members.setdefault(name, []).append(_picture(name, one))
        if len(members) == len(self.names) > 1:
            cells = "".join(
                f"<figure>{one}<figcaption>{html.escape(name)}</figcaption></figure>"
                for name, (one,) in members.items()
            )
            return f'<div class="cells" style="{_shape(len(members))}">{cells}</div>'
        if len(members) == 1:
            (name,), (all_of_it,) = members, members.values()
            label = f'<p class="class">{html.escape(name)}</p>' if name else ""
            return f'{label}<div class="cells" style="{_shape(len(all_of_it))}">{"".join(all_of_it)}</div>'
        columns = min(8, max(map(len, members.values())))
        width, lines = max(map(len, members)), sum(-(-len(ones) // columns) for ones in members.values())
        rows = "".join(
            f'<span class="class">{html.escape(name)}</span><div class="cells">{"".join(ones)}</div>'
            for name, ones in members.items()
        )
        style = f"--columns:{columns};--lines:{lines};--name:{min(12, width)}ch"
        return f'<div class="rows" style="{style}">{rows}</div>'


def _shape(count: int) -> str:
    """Columns and lines of a square of pictures."""
    columns = math.ceil(math.sqrt(count))
    return f"--columns:{columns};--lines:{-(-count // columns)}"


def _paragraph(kind: str, text: str) -> str:
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="{kind}"{role}>{html.escape(text)}</p>'


def _picture(name: str, address: str) -> str:
    if not address:
        return '<span class="blank"></span>'
    return f'<img src="{address}" alt="{html.escape(name, quote=True)}" decoding="sync">'


def _numbers(frame: Frame | None) -> str:
    if frame is None:
        return "waiting"
    return (
        f"<span>step {frame.done}&thinsp;/&thinsp;{frame.total}</span><span>{frame.nfe} NFE</span>"
        f"<span>{frame.seconds:.2f} s</span>"
    )


def source(picture: Image.Image, exact: bool) -> str:
    """A picture as the address of an image in HTML.

    Args:
        picture: of mode L or RGB.
        exact: without loss, whatever its size.
    """
    buffer = io.BytesIO()
    if exact or max(picture.size) <= _LOSSLESS_UP_TO:
        picture.save(buffer, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    picture.save(buffer, "WEBP", quality=85, method=0)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
