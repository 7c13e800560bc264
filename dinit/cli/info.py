"""`dinit info`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dinit.checkpoints.runs import is_run
from dinit.cli.checks import check_pipeline, check_there
from dinit.cli.completion import pipelines
from dinit.cli.console import console
from dinit.contents import check_picture
from dinit.files import user_path

What = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        autocompletion=pipelines,
        help="Pipeline: name, folder or Hub id; the folder of a run; or an image.",
        show_default=False,
    ),
]
MODEL_CARD = "README.md"


def info(what: What) -> None:
    """Show the parts of a pipeline, how far a run is, or the call that made an image.

    Examples:
        dinit info digits-dico
        dinit info samples.png
    """
    path = Path(what)
    if path.suffix.lower() in (".png", ".json") or (path / "manifest.json").is_file():
        check_there(path, "picture")
        _picture(path)
    elif is_run(path):
        from dinit.training.run.summary import run_summary

        console.print(_table(what, dict(run_summary(path))))
    else:
        _pipeline(what)


def _picture(path: Path) -> None:
    if path.is_file() and path.suffix.lower() == ".png":
        check_picture(user_path(path))
    from dataclasses import asdict

    from dinit.pipelines.outputs.manifest import read_manifest

    manifest = asdict(read_manifest(path))
    call = manifest.pop("call")
    lists = {key: _short(call.pop(key)) for key in ("labels", "source", "target", "seeds") if key in call}
    manifest["picture"] = manifest["picture"].get("kind")
    rows = {**manifest, **call, **lists}
    console.print(_table(str(path), rows))


def _pipeline(name: str) -> None:
    check_pipeline(name)
    from dinit.pipelines.loading import BACKBONE, INDEX, check_folder, locate, read_json, weight_shapes

    folder = locate(name)
    check_folder(folder)
    index = read_json(folder / INDEX)
    config = read_json(folder / BACKBONE / "config.json")
    shapes = weight_shapes(folder / BACKBONE)
    rows: dict[str, Any] = {
        "backbone": index[BACKBONE][1],
        "parameters": f"{sum(math.prod(shape) for shape in shapes.values()):,}",
        **{f"  {key}": value for key, value in config.items() if not key.startswith("_")},
        **{key: index.get(key) for key in ("process", "parameterization", "t_max", "defaults")},
        "classes": _short(index.get("class_names") or []) or config.get("num_classes"),
        "codec": (index.get("vae") or [None, None])[1] or _absent(index.get("vae_reference")),
    }
    console.print(_table(name, rows))
    card = folder / MODEL_CARD
    if card.is_file():
        from rich.markdown import Markdown  # here: it takes a tenth of the start of every command

        console.print(Markdown(_without_front_matter(card.read_text(encoding="utf-8"))))


def _absent(reference: str | None) -> str:
    return "identity" if reference is None else f"not in it: {reference}"


def _without_front_matter(text: str) -> str:
    """A model card without the YAML block that hub pages read."""
    if text.startswith("---\n"):
        return text.split("\n---\n", 1)[-1]
    return text


def _short(values: list[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return shown + (f", … ({len(values)} in all)" if len(values) > 10 else "")


def _table(title: str, rows: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    return table
