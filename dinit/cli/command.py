"""A command of the command line, whose messages about options say what is accepted and what was given."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_USAGE_ERROR: Any = typer.BadParameter.__base__  # which Typer does not export
_NOUNS: dict[Any, str] = {int: "a whole number", float: "a number"}
_METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}


class Group(TyperGroup):
    """The whole command line; its help names no type of a flag."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help."""
        return _flag(super().get_help_option(ctx))


class Command(TyperCommand):
    """A command whose message about a number reads '--num-images must be at least 1, got -5'.

    Its help has words for the values of options, and examples, which stand in its docstring under 'Examples:'.
    """

    def __init__(self, name: str | None, **how: Any) -> None:
        super().__init__(name, **how)
        hints = _hints(self.callback)
        for one in self.params:
            if one.metavar is None and (kind := _kind(hints.get(one.name or ""), _METAVARS)) is not None:
                one.metavar = _METAVARS[kind]

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help."""
        return _flag(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The parsed arguments, as click's. Raises click's UsageError."""
        given = list(args)  # the parser takes them away
        try:
            return super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            message = self._better(error, given)
            if message is None:
                raise
            raise _USAGE_ERROR(message, ctx) from error

    def _better(self, error: Any, given: Sequence[str]) -> str | None:
        """A better message; None where there is none."""
        if isinstance(error, typer.BadParameter) and error.param is not None:
            return _about_a_number(_hints(self.callback), error.param, given)
        option = getattr(error, "option_name", None)
        if self.name == "train" and option and "No such option" in error.message:
            from dinit.cli.recipe_keys import advice

            own = [name for one in self.params for name in (*one.opts, *one.secondary_opts)]
            return advice(option, _value_of(option, given), own)
        if self.name == "verify" and "unexpected extra argument" in error.message:
            return f"{error.message}: samplers are given as {_as_samplers(given)}"
        return None


def help_and_examples(command: Callable[..., Any]) -> tuple[str, str]:
    """A command's help, with a line for each paragraph, and its examples, with a paragraph for each line.

    Typer keeps line breaks of the help, also on narrow terminals, and drops single ones of the examples.
    """
    text, _, examples = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    paragraphs = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    return paragraphs, "\n\n".join(["Examples", *lines]) if lines else ""


def _flag(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option


def _hints(command: Callable[..., Any] | None) -> dict[str, Any]:
    return {} if command is None else typing.get_type_hints(inspect.unwrap(command), include_extras=True)


def _kind(hint: Any, known: Mapping[Any, Any]) -> Any:
    """The type of one value of a parameter, where it is one of those known."""
    parts = [hint]
    while parts:
        part = parts.pop(0)
        if isinstance(part, type) and part in known:
            return part
        parts += typing.get_args(part)[: 1 if typing.get_origin(part) is typing.Annotated else None]
    return None


def _as_samplers(given: Sequence[str]) -> str:
    return " ".join(f"--sampler {word}" for word in given if not word.startswith("-"))


def _about_a_number(hints: Mapping[str, Any], parameter: Any, given: Sequence[str]) -> str | None:
    """What a number must be and what was given; None for an option of another kind."""
    value = next((one for name in parameter.opts if (one := _value_of(name, given)) is not None), None)
    hint = hints.get(parameter.name)
    kind = _kind(hint, _NOUNS)
    if kind is None or value is None:
        return None
    noun, info = _NOUNS[kind], typing.get_args(hint)[1]
    low, high = info.min, info.max
    limits = (
        f" of at least {low}" if high is None else f" of at most {high}" if low is None else f" in {low} .. {high}"
    )
    limits = "" if low is None and high is None else limits
    try:
        float(value)
    except ValueError:
        return f"{parameter.opts[-1]} must be {noun}{limits}, got {value!r}"
    whole = f" {noun}," if kind is int and not value.lstrip("-+").isdecimal() else ""
    return f"{parameter.opts[-1]} must be{whole}{limits.replace(' of ', ' ')}, got {value}"


def _value_of(option: str, given: Sequence[str]) -> str | None:
    """What stands after an option, or after its '='; None where it is not given."""
    for place, word in enumerate(given):
        if word == option and place + 1 < len(given):
            return given[place + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
