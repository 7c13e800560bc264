"""`dinit list`: the registered names."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from dinit.cli.completion import words
from dinit.cli.console import console
from dinit.cli.names import PLACES, registry_of
from dinit.registry import suggest

_PIPELINES, _RECIPES = "pipelines", "recipes"
_REGISTRIES = [kind for kind in PLACES if kind != "layouts"]  # those are found from the weights
KINDS = (*_REGISTRIES, _PIPELINES, _RECIPES)

Kind = Annotated[
    str | None,
    typer.Argument(
        metavar="KIND",
        autocompletion=words(KINDS),
        help=f"One of {', '.join(KINDS)}. Default: all.",
        show_default=False,
    ),
]
Names = Annotated[bool, typer.Option("--names", help="Print the names only, one per line.")]


def list_registries(kind: Kind = None, names: Names = False) -> None:
    """List the registered classes, the shipped pipelines and the shipped recipes, one line each.

    Examples:
        dinit list samplers
        dinit list recipes --names
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}{suggest(kind, list(KINDS))}")
    for one in KINDS if kind is None else (kind,):
        entries = _entries(one)
        if names:
            typer.echo("".join(f"{name}\n" for name in entries), nl=False)
        elif console.is_terminal:
            console.print(_table(one, entries))
        else:  # whole lines for a pipe; a table would be cut to some width
            width = max(map(len, entries), default=0)
            typer.echo("\n".join([one, *(f"  {name:<{width}}  {text}" for name, text in entries.items())]))


def _entries(kind: str) -> dict[str, str]:
    if kind == _PIPELINES:
        return _pipelines()
    if kind == _RECIPES:
        from dinit.training.recipe.shipped import shipped_recipes

        return shipped_recipes()
    return registry_of(kind).listed()


def _pipelines() -> dict[str, str]:
    """Shipped pipelines, and what each is made of."""
    from dinit.checkpoints.locating import INDEX, SHIPPED, read_json, shipped

    made_of = {}
    for name in shipped():
        index = read_json(SHIPPED / name / INDEX)
        parts = index["backbone"][1], index["process"]["name"], index["parameterization"]["name"]
        made_of[name] = " × ".join(parts)
    return made_of


def _table(kind: str, entries: dict[str, str]) -> Table:
    table = Table(title=kind, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(no_wrap=True, style="cyan", min_width=max(map(len, entries), default=0))
    table.add_column(overflow="ellipsis", no_wrap=True)
    for name, summary in entries.items():
        table.add_row(name, summary)
    return table
