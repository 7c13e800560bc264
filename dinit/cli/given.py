"""Options of the image that `dinit generate` starts from, and the check of pictures that commands are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dinit.cli.checks import check_there
from dinit.contents import unfit
from dinit.files import user_path

_PANEL = "Image to start from"

ImageOption = Annotated[
    Path | None,
    typer.Option("--image", help="Start every image from this one. Default: from noise.", rich_help_panel=_PANEL),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        min=0,
        max=1,
        help="Share of the steps that are taken from --image; 0 keeps it. Default: 0.8, with --mask 1.",
        rich_help_panel=_PANEL,
    ),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="Picture of the size of --image, white where it is repainted; black is kept. Default: none.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class ImageToStartFrom:
    """The options --image, --strength and --mask as they were typed; None is not given."""

    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None

    def options(self) -> dict[str, Any]:
        """Those that were given, as a pipeline's call takes them."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def check(self) -> None:
        """Whether they belong together and the files are pictures; before a pipeline is opened.

        Raises:
            ValueError: strength or mask without an image; a file that is no picture.
            FileNotFoundError: there is no such file.
        """
        if self.image is None and (lonely := self.options()):
            raise ValueError(f"--{next(iter(lonely))} is about an image: give --image too")
        for path in (self.image, self.mask):
            if path is not None:
                check_picture(path)


def check_picture(path: Path) -> None:
    """Whether a file can be a picture, by its first bytes; imports nothing heavy.

    Args:
        path: of the file.

    Raises:
        ValueError: it is none.
        FileNotFoundError: there is no such file.
    """
    from PIL import Image, UnidentifiedImageError

    check_there(path, "picture")
    file = user_path(path)
    try:
        with Image.open(file):
            pass
    except (UnidentifiedImageError, IsADirectoryError) as error:
        raise ValueError(unfit(file, "a picture")) from error
