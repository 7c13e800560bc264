"""`dinit classifier`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinit.cli.checks import check_device
from dinit.cli.console import console
from dinit.cli.options import Device, torch_device
from dinit.progress import Progress, duration

if TYPE_CHECKING:
    from dinit.evaluation.features.image_classifier import ImageClassifier

_SHOWN = 20  # classes that are listed

What = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|DATA|RECIPE|RUN",
        help="Folder with one sub-folder of pictures for each class, a data set such as idx:path=FOLDER, a "
        "recipe, or the folder of a run.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Its folder. Default: RUN/classifier for a run, else classifiers/NAME, the data's name."),
]
Size = Annotated[
    int | None,
    typer.Option(help="Pixels of a side, for a folder of pictures. Default: 32, or less for smaller pictures."),
]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip/--no-flip",
        help="Mirror half of the pictures while training: for photos, not for text, digits or whatever has a left "
        "and a right.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Training steps. Default: by the number of pictures, 300 to 3,750.", min=1),
]
Minutes = Annotated[
    float, typer.Option(help="Time limit of the training; it takes fewer steps where they do not fit.")
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a classifier in the folder, once the new one is trained.")
]


def classifier(
    what: What,
    out: Out = None,
    size: Size = None,
    flip: Flip = False,
    steps: Steps = None,
    minutes: Minutes = 10.0,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train a small classifier of your own classes, with which `dinit evaluate` measures a model of them offline.

    Held-out pictures (the test split, or every fifth of each class) give its accuracy. It is written at the end,
    whole: Ctrl-C before that leaves everything as it was, and nothing of the training.

    Examples:
        dinit classifier photos/
        dinit classifier runs/mine --minutes 5
    """
    check_device(device)
    if minutes <= 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes:g}")
    from dinit.pipelines.classifier import train_classifier

    with Progress("classifier", None, "steps", speed=None) as progress:
        trained = train_classifier(
            what,
            out,
            size=size,
            flip=flip,
            steps=steps,
            minutes=minutes,
            seed=seed,
            overwrite=overwrite,
            device=torch_device(device),
            progress=lambda done, total, _: progress.update(done, total=total),
            report=_say,
        )
    _show(trained.model)
    _say(f"→ {trained.folder} (protocol classifier-{trained.model.hash[:8]})")
    of_run = trained.job.run is not None and out is None
    _say(
        f"next: dinit evaluate {trained.job.run}"
        if of_run
        else f"next: dinit evaluate RUN --features {trained.folder}"
    )


def _show(model: ImageClassifier) -> None:
    from dinit.evaluation.classifier_training import remarks

    card, names = model.card, model.config.class_names
    spent = f"{card.training['steps']:,} steps, {duration(card.training['seconds'])} in all"
    measured = (
        f"held-out accuracy {card.accuracy:.1%} (95 % interval {card.low:.1%} to {card.high:.1%}, "
        f"{card.held_out:,} pictures)"
    )
    _say(f"{spent}; {measured}" if card.held_out else spent)
    each = [(name, share) for name, share in zip(names, card.class_accuracy, strict=True) if share is not None]
    each.sort(key=lambda pair: pair[1])
    rest = f", and {len(each) - _SHOWN} that are better" if len(each) > _SHOWN else ""
    if each:
        _say("by class: " + ", ".join(f"{name} {share:.0%}" for name, share in each[:_SHOWN]) + rest)
    for line in remarks(model):
        _say(f"warning: {line}")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
