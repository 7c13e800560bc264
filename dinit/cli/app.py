"""The `dinit` command line: all commands, and the conversion of errors to messages."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dinit import __version__
from dinit.cli.app_page import app_page
from dinit.cli.classifier import classifier
from dinit.cli.combine import combine
from dinit.cli.command import Command, Group, help_and_examples
from dinit.cli.console import errors, show_error, show_warnings
from dinit.cli.convert import convert
from dinit.cli.edit import edit
from dinit.cli.ema import ema
from dinit.cli.encode import encode
from dinit.cli.evaluate import evaluate
from dinit.cli.export import export
from dinit.cli.generate import generate
from dinit.cli.info import info
from dinit.cli.listing import list_registries
from dinit.cli.recipe import recipe
from dinit.cli.replay import replay
from dinit.cli.restore import restore
from dinit.cli.stats import stats
from dinit.cli.train import train
from dinit.cli.verify import verify
from dinit.compat import run_alone
from dinit.files import user_path
from dinit.memory import keep_freed_memory, restart_without_cache
from dinit.progress import shown

app = typer.Typer(
    name="dinit",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Diffusion images: any backbone × any noise process × any sampler × any guidance.",
    epilog="Exit codes: 0 done; 1 a check failed, or training diverged; 2 an argument cannot be used; 130 stopped "
    "by Ctrl-C, and 128 + the number of another signal.",
)


def _checked(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the home folder in place of ~, which shells leave in --out=~/photos; '-' is no file."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        for name, value in options.items():
            if isinstance(value, Path) and str(value) == "-":
                option = f"--{name.replace('_', '-')}" if name.startswith(("out", "to", "json", "html")) else name
                raise ValueError(
                    f"{option} must be the name of a file or folder, got '-'; pipes are not written to"
                )
            if isinstance(value, str | Path) and str(value).startswith("~"):
                options[name] = type(value)(user_path(value))
        return command(**options)

    return run


_NAMES: dict[Callable[..., Any], str] = {list_registries: "list", app_page: "app"}
for _command in (
    generate,
    restore,
    edit,
    recipe,
    encode,
    train,
    ema,
    combine,
    classifier,
    evaluate,
    stats,
    list_registries,
    info,
    verify,
    replay,
    convert,
    export,
    app_page,
):
    _text, _examples = help_and_examples(_command)
    app.command(_NAMES.get(_command), cls=Command, help=_text, epilog=_examples or None)(_checked(_command))


def _show_version(show: bool) -> None:
    if show:
        from importlib import metadata

        torch = metadata.version("torch")  # of the files of its installation: importing it takes a second
        typer.echo(f"dinit {__version__}, torch {torch}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", metavar="", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Show the versions of dinit, torch and Python.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Options of every command; main() reads --debug itself, because it outlives the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a check failed, 2 an argument cannot be used, 130 stopped.

    Errors that a user can mend (ValueError, OSError, too little memory) are shown in a panel; any other is a
    fault of ours and keeps its traceback.
    """
    if arguments is None:
        if sys.argv[1:2] == ["generate"]:
            restart_without_cache()
        run_alone()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    keep_freed_memory()
    show_warnings()
    try:
        with shown():
            app(args=arguments, prog_name="dinit")
    except (ValueError, OSError) as error:
        if "--debug" in arguments:
            raise
        show_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)
    except RuntimeError as error:
        if "--debug" in arguments or "out of memory" not in str(error):
            raise
        show_error(f"{error}\nA smaller --batch-size needs less memory and gives the same images.")
        sys.exit(2)
