"""`dinit generate`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.checks import check_default_sampler, classes_of
from dinit.cli.console import console
from dinit.cli.generate_dry_run import show_dry_run, torch_device_of
from dinit.cli.generate_set import ClassOrder, Group, LabelsFrom, Pack, generate_into_folder, is_set_folder
from dinit.cli.given import ImageOption, ImageToStartFrom, MaskOption, StrengthOption
from dinit.cli.labels import ImageOptions, KnownClasses
from dinit.cli.options import (
    BatchSize,
    CacheOption,
    CallFlags,
    Device,
    Dtype,
    EditsOption,
    EndOption,
    Grid,
    GuidanceOption,
    Name,
    Opening,
    Overwrite,
    SamplerOption,
    SamplerOptions,
    Seed,
    Steps,
)
from dinit.progress import Progress
from dinit.targets import check_writable

if TYPE_CHECKING:
    from dinit.models.codec import Codec
    from dinit.pipelines.call import Call
    from dinit.pipelines.generate import Generated, Pipeline

_WHAT = "Images"

Classes = Annotated[
    list[str] | None,
    typer.Option(
        help="Class numbers or names, such as 0,1,2, or all. Can be repeated. Default: all, of at most 20.",
        rich_help_panel=_WHAT,
    ),
]
PerClass = Annotated[
    int, typer.Option(min=1, help="Number of images of each class, with --classes.", rich_help_panel=_WHAT)
]
Labels = Annotated[
    str | None,
    typer.Option(help="In place of --classes: one label per image, such as 3,1,4.", rich_help_panel=_WHAT),
]
NumImages = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="In place of --classes: number of unconditional images; in a set, of all classes in turn.",
        rich_help_panel=_WHAT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Contact sheet, .png, or a folder for a set. Default: samples.png, unless --out-dir is given."
    ),
]
OutDir = Annotated[
    Path | None, typer.Option(help="Folder for one PNG per image, with a manifest.json. Default: none.")
]
TrajectoryOut = Annotated[
    Path | None,
    typer.Option(
        "--trajectory", help="Animation of the posterior mean over the steps, .gif or .webp. Default: none."
    ),
]
LatentsOut = Annotated[
    Path | None,
    typer.Option(
        "--latents",
        help="The samples before the decoder, .safetensors, which need no autoencoder; without --out alone. "
        "Default: none.",
    ),
]
DryRunFlag = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what the call will make and need; nothing is generated or written."),
]


def generate(
    name: Name,
    classes: Classes = None,
    per_class: PerClass = 10,
    labels: Labels = None,
    num_images: NumImages = None,
    image: ImageOption = None,
    strength: StrengthOption = None,
    mask: MaskOption = None,
    sampler: SamplerOption = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    grid: Grid = None,
    end: EndOption = None,
    guidance: GuidanceOption = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    cache: CacheOption = None,
    edits: EditsOption = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    out: Out = None,
    out_dir: OutDir = None,
    trajectory: TrajectoryOut = None,
    latents: LatentsOut = None,
    overwrite: Overwrite = False,
    labels_from: LabelsFrom = None,
    class_order: ClassOrder = "balanced",
    group: Group = None,
    pack: Pack = True,
    dry_run: DryRunFlag = False,
) -> None:
    """Generate images: a labelled contact sheet, single PNGs, an animation, latents, or a large set.

    Every PNG records the call that made it, and `dinit replay` makes it again.

    With a folder as --out the images are a set of any size. Seed and class of image k depend on k alone, so that
    any number of processes (accelerate launch -m dinit.cli generate ...), stopped and started again, write the
    same files.

    Examples:
        dinit generate digits-dico --classes 3,1,4 --per-class 8 --out sheet.png
        dinit generate glyphs-32 --sampler dpmpp-2m --steps 10 --guidance cfg:scale=2
        dinit generate digits-dico --classes 8 --image three.png --strength 0.6
        dinit generate glyphs-32 --num-images 10000 --out samples/
    """
    opening = Opening(name, device, dtype)
    images = ImageOptions(classes, per_class, labels, num_images, labels_from, class_order)
    flags = CallFlags(sampler, sampler_option, steps, grid, guidance, seed, batch_size, end, cache, edits)
    flags.check()
    opening.check()
    start = ImageToStartFrom(image, strength, mask)
    start.check()
    if sampler is None and sampler_option:
        check_default_sampler(name, sampler_option)
    if out is not None and out.is_file() and not out.suffix:
        raise NotADirectoryError(
            f"{out} is a file; a set needs a folder, and a contact sheet a name like {out}.png"
        )
    if out is not None and is_set_folder(out):
        if out_dir or trajectory or latents or overwrite or image:
            raise ValueError(
                "a set of images has no --out-dir, --trajectory, --latents, --image or --overwrite; leave them out"
            )
        check_writable(out)
        _check_images(name, images, is_set=True)
        generate_into_folder(opening, out, images, flags, group, pack, dry_run)
        return
    ignored = {
        "--labels-from": labels_from,
        "--class-order": class_order != "balanced",
        "--group": group,
        "--no-pack": not pack,
    }
    if given := [name for name, value in ignored.items() if value]:
        raise ValueError(f"{', '.join(given)}: for a set of images only; give a folder as --out, or leave it out")
    _check_images(name, images, is_set=False)
    if out is None and out_dir is None and latents is None:
        out = Path("samples.png")
    files = Files(out, out_dir, trajectory, latents)
    files.check(overwrite)
    device, opening = torch_device_of(opening, dry_run)
    pipe = opening.open(to_generate=True)
    options: dict[str, Any] = {**flags.options(pipe.defaults.get("sampler")), **start.options()}
    call = pipe.prepare(images.of_call(pipe), seed=seed, **options)
    if dry_run:
        show_dry_run(pipe, call, files.wanted, device, files.names)
    else:
        _make(pipe, call, files)


def _check_images(name: str, images: ImageOptions, is_set: bool) -> None:
    """Checks the classes against those of the pipeline, where it is on this machine."""
    known = classes_of(name)
    images.check(None if known is None else KnownClasses(*known), is_set)


@dataclass(frozen=True)
class Files:
    """What is written; None is left out."""

    out: Path | None = None
    out_dir: Path | None = None
    trajectory: Path | None = None
    latents: Path | None = None

    @property
    def has_images(self) -> bool:
        """Whether any of them needs the decoder."""
        return not (self.out is self.out_dir is self.trajectory is None)

    @property
    def names(self) -> list[str]:
        """The paths of those that are written."""
        return [str(path) for path in (self.latents, self.out, self.out_dir, self.trajectory) if path is not None]

    @property
    def wanted(self) -> dict[str, bool]:
        """What becomes of the images, for a dry run."""
        return {
            "pictures": self.has_images,
            "sheet": self.out is not None,
            "animation": self.trajectory is not None,
            "latents": self.latents is not None,
        }

    def check(self, overwrite: bool) -> None:
        """Whether they can be written.

        Raises:
            ValueError: another suffix.
            FileExistsError: one is there, unless overwrite.
            OSError: a folder cannot be written.
        """
        from dinit.targets import ANIMATIONS, check_folder_target, check_target

        suffixes = ((self.out, ("png",)), (self.trajectory, ANIMATIONS), (self.latents, ("safetensors",)))
        for path, known in suffixes:
            if path is not None:
                check_target(path, overwrite, known)
        if self.out_dir is not None:
            check_folder_target(self.out_dir, overwrite)


def _make(pipe: Pipeline, call: Call, files: Files) -> None:
    """Run the call, write the requested files, and report them."""
    start = time.perf_counter()
    codec = pipe.codec if files.has_images else None  # a missing one is an error before anything is generated
    generated, frames = _run(pipe, call, files)
    seconds = time.perf_counter() - start
    written = _save(pipe, codec, generated, frames, files)
    count = len(call.labels)
    noun = ("image" if files.has_images else "latent") + "s" * (count != 1)
    console.print(f"{count} {noun} in {seconds:.1f} s, {generated.nfe} NFE each → {', '.join(written)}")


def _run(pipe: Pipeline, call: Call, files: Files) -> tuple[Generated, list[Any]]:
    """Runs the call and shows its progress.

    Returns:
        The images, or latents where these are to be written; the posterior mean of every step, if it is.
    """
    from dinit.pipelines.generate import Trajectory

    batches = len(call.batches())
    trajectory = Trajectory()
    with Progress("generate", None, "steps", speed=None, enabled=True) as progress:

        def after(step: Any) -> None:
            progress.update(total=step.total * batches)
            if files.trajectory is not None:
                trajectory(step)

        generated = pipe.run(call, "raw" if files.latents is None else "latent", after)
    return generated, trajectory.frames


def _save(pipe: Pipeline, codec: Codec | None, generated: Generated, frames: list[Any], files: Files) -> list[str]:
    """Write the requested files. Returns the paths."""
    from dinit.pipelines.outputs.files import save_animation, save_folder, save_sheet
    from dinit.pipelines.outputs.latents import decoded, save_latents

    if files.latents is not None:
        save_latents(files.latents, pipe, generated)
        generated = generated if codec is None else decoded(codec, generated)
    if files.out is not None:
        save_sheet(files.out, pipe, generated)
    if files.out_dir is not None:
        save_folder(files.out_dir, pipe, generated)
    if files.trajectory is not None:
        save_animation(files.trajectory, pipe, generated.call, frames, generated.nfe)
    return files.names
