"""Options shared by several commands: those of a call, and the text forms of specs and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dinit.cli.checks import (
    DTYPES,
    check_device,
    check_entry,
    check_pipeline,
    check_word,
    is_small_in_pixels,
)
from dinit.cli.completion import entries, pipelines, words
from dinit.cli.names import registry_of
from dinit.compat import ensure_torchvision, is_light, without_diffusers
from dinit.registry import UnknownName

if TYPE_CHECKING:
    from dinit.pipelines.call import SamplingOptions
    from dinit.pipelines.generate import Pipeline
    from dinit.samplers.points import End

_SPEC = "NAME[:KEY=VALUE,…]"
_CALL = "Call"
ENDS = ("posterior-mean", "clean", "state")

Name = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE",
        autocompletion=pipelines,
        help="A pipeline: the name of a shipped one, a folder, or a Hub id.",
        show_default=False,
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar=_SPEC,
        autocompletion=entries("samplers"),
        help="Sampler with its options, such as ddim or ddim:eta=0.5. Default: the pipeline's.",
        rich_help_panel=_CALL,
    ),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler-option",
        metavar="KEY=VALUE",
        help="One more option of the sampler. Can be repeated.",
        rich_help_panel=_CALL,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Number of sampling steps. Default: the pipeline's.", rich_help_panel=_CALL),
]
Grid = Annotated[
    str | None,
    typer.Option(
        metavar=_SPEC,
        help="Time grid, such as karras or karras:rho=5. Default: the usual one.",
        rich_help_panel=_CALL,
        autocompletion=entries("grids"),
    ),
]
EndOption = Annotated[
    str | None,
    typer.Option(
        "--end",
        metavar="WORD",
        autocompletion=words(ENDS),
        help="End of the trajectory: posterior-mean, clean (the sampler's own last step, to t = 0) or state (x at "
        "the grid's last time, with its noise). Default: the sampler's.",
        rich_help_panel=_CALL,
    ),
]
GuidanceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance",
        metavar=_SPEC,
        autocompletion=entries("guidance"),
        help="Guidance, such as cfg:scale=2 or the CFG scale alone. Can be repeated: the last is outermost. "
        "'none' disables the pipeline's default.",
        rich_help_panel=_CALL,
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar=_SPEC,
        autocompletion=entries("caches"),
        help="Cache of the network's features from step to step, such as deepcache:interval=3. Default: none.",
        rich_help_panel=_CALL,
    ),
]
EditsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--edits",
        metavar=_SPEC,
        autocompletion=entries("edits"),
        help="Edit of the network's features, such as freeu:b1=1.2. Can be repeated. Default: none.",
        rich_help_panel=_CALL,
    ),
]
Seed = Annotated[
    int, typer.Option(help="Random seed. Image k depends on the seed and on k alone.", rich_help_panel=_CALL)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images per batch, which changes speed and memory, not the images. Default: 64.",
        rich_help_panel=_CALL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="WORD",
        help="Device: auto, cpu, cuda, cuda:1 or mps.",
        rich_help_panel=_CALL,
        autocompletion=words(["auto", "cpu", "cuda", "mps"]),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="WORD",
        help="Data type of the network: float32, bfloat16 or float16.",
        rich_help_panel=_CALL,
        autocompletion=words(DTYPES),
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


@dataclass(frozen=True)
class CallFlags:
    """The options of a command that describe a pipeline's call, as they were typed; None is not given.

    Attributes:
        sampler: name with options.
        sampler_options: further 'key=value' of the sampler, or of the pipeline's own where sampler is None.
        steps: number of sampling steps.
        grid: name with options.
        guidance: each a name with options or the scale of CFG; 'none' alone is no guidance.
        seed: of all images.
        batch_size: images at once.
        end: of the trajectory.
        cache: name with options.
        edits: each a name with options.
    """

    sampler: str | None = None
    sampler_options: Sequence[str] | None = None
    steps: int | None = None
    grid: str | None = None
    guidance: Sequence[str] | None = None
    seed: int = 0
    batch_size: int | None = None
    end: str | None = None
    cache: str | None = None
    edits: Sequence[str] | None = None

    def options(self, default_sampler: Any = None) -> SamplingOptions:
        """What was given, but for the seed, as a pipeline's call takes it.

        Args:
            default_sampler: the pipeline's own, which sampler_options alone change.

        Raises:
            ValueError: text that does not read NAME:KEY=VALUE; sampler_options without any sampler.
        """
        options: SamplingOptions = {}
        if self.sampler is not None:
            options["sampler"] = registry_of("samplers").parse(self.sampler, self.sampler_options or ())
        elif self.sampler_options:
            own = dict(default_sampler) if isinstance(default_sampler, Mapping) else {"name": default_sampler}
            if not own.get("name"):
                raise ValueError("--sampler-option needs --sampler: this pipeline has no default")
            changed = registry_of("samplers").parse(str(own["name"]), self.sampler_options)
            options["sampler"] = {**own, **changed}
        if self.grid is not None:
            options["grid"] = registry_of("grids").parse(self.grid)
        if self.end is not None:
            options["end"] = cast("End", self.end)  # which the call checks
        if self.steps is not None:
            options["steps"] = self.steps
        if self.guidance:
            none = list(self.guidance) == ["none"]
            options["guidance"] = [] if none else [_guidance(one) for one in self.guidance]
        if self.batch_size is not None:
            options["batch_size"] = self.batch_size
        if self.cache is not None:
            options["cache"] = registry_of("caches").parse(self.cache)
        if self.edits:
            options["edits"] = [registry_of("edits").parse(one) for one in self.edits]
        return options

    def check(self) -> None:
        """ValueError for text of another form and unknown names; before a pipeline is opened."""
        self.options(default_sampler={"name": "any"})
        if self.sampler is not None:
            check_entry("samplers", self.sampler, self.sampler_options or ())
        check_entry("grids", self.grid)
        check_entry("caches", self.cache)
        for one in self.edits or ():
            check_entry("edits", one)
        check_word("end", self.end, ENDS)
        guidance = self.guidance or ()
        if "none" in guidance and len(guidance) > 1:
            given = " ".join(f"--guidance {one}" for one in guidance)
            raise ValueError(f"--guidance none stands alone: it disables the pipeline's own; got {given}")
        for one in guidance:
            if one != "none":
                made = _guidance(one)
                try:
                    check_entry("guidance", made if isinstance(made, dict) else {"name": "cfg", "scale": made})
                except UnknownName as error:
                    raise ValueError(f"{error}; a number alone is the scale of CFG") from error


def _guidance(text: str) -> dict[str, Any] | float:
    try:
        return float(text)
    except ValueError:
        return registry_of("guidance").parse(text)


@dataclass(frozen=True)
class Opening:
    """Which pipeline a command opens, where, and in which dtype, as they were typed."""

    name: str
    device: str = "auto"
    dtype: str = "float32"

    def check(self) -> None:
        """Whether the words are known and the pipeline can be there; imports nothing heavy.

        Raises:
            ValueError: an unknown device or dtype, or a file in place of a folder.
            FileNotFoundError: there is no such pipeline.
        """
        check_word("dtype", self.dtype, DTYPES)
        check_device(self.device)
        check_pipeline(self.name)

    def open(self, to_generate: bool = False) -> Pipeline:
        """The pipeline, without diffusers' progress bars. Errors of `check`, and a device that torch cannot use.

        to_generate: nothing else is done with it, so that one in pixels needs nothing of diffusers.
        """
        self.check()
        if to_generate and self.dtype == "float32" and is_small_in_pixels(self.name):
            without_diffusers()
        import torch

        from dinit.pipelines.generate import Pipeline

        device = torch_device(self.device)
        quiet()
        pipe = Pipeline.from_pretrained(self.name, device=device, dtype=getattr(torch, self.dtype))
        pipe.set_progress_bar_config(disable=True)
        return pipe


def quiet() -> None:
    """No progress bars of diffusers: the commands show their own."""
    if is_light():
        return
    ensure_torchvision()
    from diffusers.utils import logging

    logging.disable_progress_bar()


def torch_device(name: str) -> str:
    """The device's name with 'auto' filled in. ValueError where torch cannot use it."""
    from dinit.devices import choose_device

    return choose_device(name)
