"""From a request to the options of one family: which it has, and text as values of their types."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.methods.variants import get_variant

Options = TypeVar("Options")

_OF_THE_REQUEST = ("method", "speed", "shots", "options")
"""Of a request's fields, those that are no option of a family."""
_OF_MODALITY = {
    "rgb": ("rgb_backbone", "rgb_layers", "rgb_weights"),
    "point": (
        *("point_layers", "point_weights", "num_groups", "group_size", "batch_norm"),
        "skip_near_origin",
    ),
}
"""Options of one backbone."""
_NOT_CHOSEN = ("auto", "random")
"""Weights that may be asked for whether or not there is a backbone for them."""
_FLAGS = {"threshold_quantile": "--quantile"}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def options_of(
    options_class: type[Options], request: FitRequest, speeds: Mapping[str, Mapping[str, Any]]
) -> Options:
    """The options of a request: what it sets itself, else what its speed stands for, else the
    defaults of the class.

    Args:
        options_class: The family's dataclass. A field of FitRequest that it has no field for is an
            option that the family does not have.
        request: What was asked for. Its `options` name fields of the class; a text is read as a
            value of the field's type: "true", "3", "0.5", "1,2,3", and "none" where the field may
            be None and takes no text.
        speeds: Per speed the fields that it sets.

    Raises:
        InvalidInputError: no such speed, an option that the family does not have (the message
            lists those it has) or of a backbone that the method does not run, or a value that is
            none of its type or out of range.
    """
    if request.speed not in speeds:
        raise InvalidInputError(
            f"speed is {request.speed!r}; it must be one of {', '.join(speeds)}"
        )
    values = get_type_hints(options_class)
    own = own_options(options_class)
    asked = {
        name: getattr(request, name)
        for name in _common_names()
        if getattr(request, name) is not None
    }
    for name in asked:
        if name not in values:
            raise InvalidInputError(_no_such_option(name, request.method, options_class))
    for name, value in request.options.items():
        if name in _common_names() and name in values:
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise InvalidInputError(
                f"{name} is an option of every method; give it as {flag}, in Python as {name}="
            )
        if name not in own:
            raise InvalidInputError(_no_such_option(name, request.method, options_class))
        asked[name] = _converted(name, value, values[name])
    _check_modalities(asked, request.method)
    return options_class(method=request.method, **{**speeds[request.speed], **asked})  # type: ignore[call-arg]


def _check_modalities(asked: Mapping[str, Any], method: str) -> None:
    """Raises InvalidInputError for an option of a backbone that the method does not run."""
    modalities = get_variant(method).modalities
    for modality, names in _OF_MODALITY.items():
        for name in names:
            if modality in modalities or asked.get(name, "auto") in _NOT_CHOSEN:
                continue
            raise InvalidInputError(
                f"{name} is {asked[name]!r}, but {method} has no {modality} backbone; leave it out"
            )


def own_options(options_class: type) -> tuple[str, ...]:
    """The fields of a family's options that no field of a request stands for."""
    of_request = {field.name for field in fields(FitRequest)}
    # Threads are the process's: --threads.
    return tuple(
        field.name
        for field in fields(options_class)
        if field.name not in of_request and field.name != "num_threads"
    )


def _common_names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(FitRequest) if f.name not in _OF_THE_REQUEST)


def _no_such_option(name: str, method: str, options_class: type) -> str:
    taken = {field.name for field in fields(options_class)}
    common = ", ".join(option for option in _common_names() if option in taken)
    own = ", ".join(own_options(options_class)) or "none"
    return (
        f"{method} has no option {name!r}; it has: {common}; and, in options= or with --set "
        f"NAME=VALUE: {own}"
    )


def _converted(name: str, value: Any, kind: Any) -> Any:
    """The value as one of the type.

    Raises:
        InvalidInputError: it is none; says what it must be.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for one in kinds:
        read, found = _read(value, one, takes_text=bool({str, Path} & set(kinds)))
        if read:
            return found
    needs = " or ".join(dict.fromkeys(_describe(one) for one in kinds))
    raise InvalidInputError(f"{name} is {value!r}; it must be {needs}")


def _read(value: Any, kind: Any, *, takes_text: bool) -> tuple[bool, Any]:
    """(whether it is one of the type, the value)."""
    text = value.strip().lower() if isinstance(value, str) else None
    if kind is type(None):
        return value is None or (text == "none" and not takes_text), None
    if get_origin(kind) is Literal:
        found = [one for one in get_args(kind) if str(value) == str(one)]
        return bool(found), found[0] if found else None
    if kind is bool:
        if text is not None:
            return text in _TRUTH, _TRUTH.get(text)
        return isinstance(value, bool), value
    if kind is str or kind is Path:
        return isinstance(value, str), value
    if kind in (int, float):
        return _read_number(value, kind)
    if get_origin(kind) is tuple:
        return _read_tuple(value, get_args(kind)[0])
    return isinstance(value, kind if isinstance(kind, type) else object), value


def _read_number(value: Any, kind: type[int] | type[float]) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False, None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return False, None
    return math.isfinite(number) and (isinstance(value, str) or number == value), number


def _read_tuple(value: Any, kind: Any) -> tuple[bool, Any]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        return False, None
    results = [_read(part, kind, takes_text=False) for part in parts]
    return all(read for read, _ in results), tuple(found for _, found in results)


def _describe(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return "numbers with commas"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "text"}
    return names.get(kind, str(kind))
