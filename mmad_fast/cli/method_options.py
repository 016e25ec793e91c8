"""Commands whose flags depend on the method: those of its options, derived from its family's
dataclass."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from mmad_fast.cli.options import checked
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import get_method
from mmad_fast.methods.options import chosen_options, option_default, option_type, read_option

CHOSEN = "chosen"
"""The parameter of a command's function that gets the method's flags that were given, by name."""


class MethodCommand(TyperCommand):
    """A command with the flags of the method that its arguments name.

    Its function takes a mapping `chosen`, which is no flag.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The context of the command with the flags."""
        function = inspect.unwrap(self.callback).function  # type: ignore[arg-type]
        own = typer.Context(self, info_name=info_name, parent=parent)
        method = _named_method(args, _default_of(function), own)
        command = _command(function, method)
        _check_flags(args, method, command.params, own)
        return command.make_context(info_name, args, parent, **extra)


def add_method_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Adds a command with a method's flags to the command line."""
    app.command(name, cls=MethodCommand)(_with_flags(function, _default_of(function)))


def command_line(command: str, chosen: Mapping[str, str]) -> str:
    """The command with flags as they would be given, for messages."""
    flags = [part for name, value in chosen.items() for part in (_flag(name), value)]
    return f"{command} {shlex.join(flags)}"


def _default_of(function: Callable[..., None]) -> str:
    """The method that a command takes where none is named."""
    default: str = inspect.signature(function).parameters["method"].default
    return default


def _named_method(args: Sequence[str], default: str, context: Any) -> str:
    """The value of the last --method, or the default.

    Raises:
        BadParameter: an unknown one; wrong usage, exit code 2.
    """
    method = default
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        if argument == "--method" and following:
            method = following
        elif argument.startswith("--method="):
            method = argument.partition("=")[2]
    try:
        get_method(method)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), context, param_hint="'--method'") from None
    return method


def _check_flags(args: Sequence[str], method: str, params: Sequence[Any], context: Any) -> None:
    """Raises for a flag that neither the command nor the method has.

    Raises:
        BadParameter: names it, and those of the method; wrong usage, exit code 2.
    """
    known = {"--help", "--", *(flag for param in params for flag in param.opts)}
    own = ", ".join(map(_flag, _flags_of(method)))
    for argument in args:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            message = f"{method} has no such option; it has: {own}"
            raise typer.BadParameter(message, context, param_hint=f"'{flag}'")


def _command(function: Callable[..., None], method: str) -> Any:
    """Typer's command of the function with the flags of a method."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(_with_flags(function, method))
    return typer.main.get_command(app)


def _with_flags(function: Callable[..., None], method: str) -> Callable[..., None]:
    """The function with a parameter for each flag of a method in the place of `chosen`."""
    flags = _flags_of(method)

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in flags}
        function(**values, **{CHOSEN: {n: text for n, text in given.items() if text is not None}})

    hints = get_type_hints(function, include_extras=True)
    hints.pop(CHOSEN)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name != CHOSEN
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag)
        for name, flag in flags.items()
    ]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    run.__signature__ = inspect.Signature([*keywords, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **flags}
    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    run.function = function  # type: ignore[attr-defined]
    return run


def _flags_of(method: str) -> dict[str, Any]:
    """Annotations of a method's flags, by name of what they set."""
    family, variant = get_method(method)
    panel = f"Options of {method}"
    flags: dict[str, Any] = {}
    for branch in family.weighted_branches:
        flags[f"{branch.key}_weights"] = Annotated[
            str | None,
            typer.Option(
                f"--{branch.key}-weights",
                help="Checkpoint PATH, auto (download; default) or random.",
                rich_help_panel=panel,
            ),
        ]
    for name, facts in chosen_options(family.options).items():
        default = variant.values.get(name, option_default(family.options, name))
        takes = re.sub(r"\ban? ", "", option_type(family.options, name))
        shown = "" if default is None else f" (default: {_text(default)})"
        flags[name] = Annotated[
            str | None,
            typer.Option(
                _flag(name),
                metavar="|".join(map(str, facts.choices)) or f"<{takes}>",
                help=f"{facts.help}{shown}",
                callback=checked(partial(_check, family.options, name)),
                rich_help_panel=panel,
            ),
        ]
    return flags


def _check(options_class: type, name: str, text: str | None) -> None:
    if text is not None:
        read_option(options_class, name, text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(value: Any) -> str:
    """A value as it would be given."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
