"""`dinit app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import check_device
from dinit.cli.options import Device, Opening

AnyName = Annotated[
    str | None,
    typer.Argument(
        help="The pipeline that is shown first: a shipped name, a folder, a run or a Hub id. Default: the newest "
        "run in runs/, or a shipped pipeline.",
        show_default=False,
    ),
]
Port = Annotated[int, typer.Option(help="Port on this machine; the next free one where it is taken.")]
Browser = Annotated[
    bool | None,
    typer.Option("--open/--no-browser", help="Open the page in a browser. Default: where there is a display."),
]


def app_page(name: AnyName = None, port: Port = 7860, device: Device = "auto", browser: Browser = None) -> None:
    """Serve a page to generate images: classes, samplers side by side, guidance, steps and seeds.

    The page is for this machine alone (127.0.0.1) and needs no network. Ctrl+C ends it.

    Examples:
        dinit app digits-dico
    """
    check_device(device)
    from dinit.app.serving import check_gradio, free_port, has_display, serve

    check_gradio()
    free_port(port)
    from dinit.app.running import names_to_offer

    serve(
        names_to_offer(name, Path("runs")),
        lambda one: Opening(one, device).open(),
        device,
        port,
        has_display() if browser is None else browser,
        lambda address: typer.echo(f"The page is at {address} (Ctrl+C ends it)"),
    )
