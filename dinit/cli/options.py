"""What several commands take: options of a call, and the text forms of specs and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.specs import parse_spec

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline

_SPEC = "NAME[:KEY=VALUE,…]"
_CALL = "Call"

Name = Annotated[str, typer.Argument(help="A shipped pipeline, a folder, or a hub id.", show_default=False)]
SamplerOption = Annotated[
    str | None,
    typer.Option("--sampler", metavar=_SPEC, help="Such as ddim or ddim:eta=0.5.", rich_help_panel=_CALL),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option("--sampler-option", metavar="KEY=VALUE", help="One option more.", rich_help_panel=_CALL),
]
Steps = Annotated[int | None, typer.Option(help="Network levels, at least 1.", rich_help_panel=_CALL)]
Grid = Annotated[str | None, typer.Option(metavar=_SPEC, help="Where the steps fall.", rich_help_panel=_CALL)]
GuidanceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance", metavar=_SPEC, help="Such as cfg:scale=2; may be repeated; none.", rich_help_panel=_CALL
    ),
]
Seed = Annotated[int, typer.Option(help="Image k depends on the seed and k.", rich_help_panel=_CALL)]
BatchSize = Annotated[
    int | None, typer.Option(help="Images at once; they do not depend on it.", rich_help_panel=_CALL)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_CALL)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16, of the network.", rich_help_panel=_CALL)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]

DTYPES = ("float32", "bfloat16", "float16")


def call_options(
    sampler: str | None,
    sampler_options: Sequence[str] | None,
    steps: int | None,
    grid: str | None,
    guidance: Sequence[str] | None,
    default_sampler: Any = None,
) -> dict[str, Any]:
    """The options as Pipeline.prepare takes them; what was not given is left out.

    default_sampler: the pipeline's own, which --sampler-option alone changes.
    """
    options: dict[str, Any] = {}
    if sampler is not None:
        options["sampler"] = parse_spec(sampler, sampler_options or ())
    elif sampler_options:
        own = dict(default_sampler) if isinstance(default_sampler, Mapping) else {"name": default_sampler}
        if not own.get("name"):
            raise ValueError("--sampler-option needs --sampler: this pipeline has no default")
        options["sampler"] = {**own, **parse_spec(own["name"], sampler_options)}
    if grid is not None:
        options["grid"] = parse_spec(grid)
    if steps is not None:
        options["steps"] = steps
    if guidance:
        options["guidance"] = [] if list(guidance) == ["none"] else [parse_spec(one) for one in guidance]
    return options


def load(name: str, device: str, dtype: str) -> Pipeline:
    """The pipeline on its device, without diffusers' progress bars. ValueError for an unknown device or dtype."""
    import torch

    from dinit.pipelines.generate import Pipeline
    from dinit.registry import suggest

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}{suggest(dtype, list(DTYPES))}")
    place = torch_device(device)
    quiet()
    pipe = Pipeline.from_pretrained(name, device=place, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quiet() -> None:
    """No progress bars of diffusers: the commands show their own."""
    from dinit.compat import ensure_torchvision

    ensure_torchvision()
    from diffusers.utils import logging

    logging.disable_progress_bar()


def torch_device(name: str) -> str:
    """The device's name with 'auto' filled in. ValueError where torch cannot use it."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # unknown word; a torch without CUDA
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name
