"""Server of the page: on this machine alone, without a network."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline

ADDRESS = "127.0.0.1"
PORT = 7860
_TRIED = 100


def check_gradio() -> None:
    """Whether Gradio is installed.

    Raises:
        ValueError: it is not; the message has the command that installs it.
    """
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio, which is not installed: python -m pip install 'dinit[app]'")


def free_port(first: int) -> int:
    """The first port from `first` on that nothing listens on.

    Args:
        first: 1 to 65535.

    Raises:
        ValueError: out of range, or a hundred are taken.
    """
    if not 1 <= first <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {first}")
    for port in range(first, min(first + _TRIED, 65536)):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((ADDRESS, port))
            except OSError:
                continue
            return port
    raise ValueError(f"ports {first} to {port} are taken; give another with --port")


def has_display() -> bool:
    """Whether a browser can be opened: without a display Python would open one in the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(one) for one in ("DISPLAY", "WAYLAND_DISPLAY"))


def _end(number: int, frame: object) -> None:
    """Leaves by an exception, as Ctrl+C does, so that files are removed."""
    raise SystemExit(128 + number)


def serve(
    names: Sequence[str],
    opener: Callable[[str], Pipeline],
    device: str = "auto",
    port: int = PORT,
    open_browser: bool = False,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        names: of the pipelines that are offered; the first is shown, and opened before anything is served.
        opener: from a name to the pipeline.
        device: where they are opened, as it was named.
        port: the first to try.
        open_browser: whether to open the page in a browser.
        ready: called with the page's address once it is served.

    Raises:
        ValueError: Gradio is not installed; no free port; the first pipeline cannot be opened.
    """
    check_gradio()
    port = free_port(port)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)  # else the folder below would stay
    with tempfile.TemporaryDirectory(prefix="dinit-app-") as folder:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
        os.environ["GRADIO_TEMP_DIR"] = folder
        for name in ("NO_PROXY", "no_proxy"):  # Gradio calls its own address
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), ADDRESS, "localhost")))
        from dinit.app.page import CSS, THEME, Page
        from dinit.app.running import Pipelines

        pipelines = Pipelines(names, opener)
        pipelines.open(pipelines.names[0])
        page = Page(pipelines, device, Path(folder))
        page.blocks.queue(api_open=False).launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            inbrowser=open_browser,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            theme=THEME,
            css=CSS,
        )
        ready(f"http://{ADDRESS}:{port}")
        page.blocks.block_thread()
