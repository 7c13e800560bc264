"""`dinit list`: the registered names."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from rich.table import Table

from dinit.cli.console import console
from dinit.registry import Registry, suggest

_REGISTRIES = {
    "backbones": ("dinit.models.base", "BACKBONES"),
    "processes": ("dinit.diffusion", "PROCESSES"),
    "parameterizations": ("dinit.diffusion", "PARAMETERIZATIONS"),
    "samplers": ("dinit.samplers", "SAMPLERS"),
    "grids": ("dinit.samplers", "GRIDS"),
    "guidance": ("dinit.samplers.guidance", "GUIDANCES"),
    "datasets": ("dinit.data", "DATASETS"),
    "features": ("dinit.evaluation", "EXTRACTORS"),
    "metrics": ("dinit.evaluation", "METRICS"),
    "weightings": ("dinit.training", "WEIGHTINGS"),
    "time-samplers": ("dinit.training", "TIME_SAMPLERS"),
    "loss-terms": ("dinit.training", "LOSS_TERMS"),
    "encoders": ("dinit.training.regularizers.encoders", "ENCODERS"),
}
_PIPELINES, _RECIPES = "pipelines", "recipes"
KINDS = (*_REGISTRIES, _PIPELINES, _RECIPES)

Kind = Annotated[
    str | None,
    typer.Argument(help=f"One of {', '.join(KINDS)}. Default: all.", show_default=False),
]
Names = Annotated[bool, typer.Option("--names", help="Print the names only, one per line.")]


def list_registries(kind: Kind = None, names: Names = False) -> None:
    """List the registered classes, the shipped pipelines and the shipped recipes, one line each."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}{suggest(kind, list(KINDS))}")
    from dinit.compat import ensure_torchvision

    ensure_torchvision()  # before what the registries import
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
    return _registry(kind)


def _registry(kind: str) -> dict[str, str]:
    module, attribute = _REGISTRIES[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), attribute)
    return {name: registry.summary(name) + _special(registry, name) for name in registry}


def _special(registry: Registry[Any], name: str) -> str:
    """Which entry this one equals at its defaults, if any."""
    special = registry.special_case_of(name)
    return "" if special is None else f" (special case: equals {special} at its defaults)"


def _pipelines() -> dict[str, str]:
    """Shipped pipelines, and what each is made of."""
    from dinit.pipelines.loading import INDEX, SHIPPED, read_json, shipped

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
