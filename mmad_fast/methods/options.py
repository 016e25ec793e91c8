"""A method's options: one dataclass per family says, once, what may be chosen and what a detector
was fitted with. Flags, keywords, manifests and rows of measurements are derived from it. No torch.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.preprocess.recipes import Recipe

OptionValue = str | int | float | bool | None | tuple[Any, ...] | list[Any] | Path
"""A value that is given for an option; text is read as a value of the option's type."""

Options = TypeVar("Options", bound="MethodOptions")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_FACTS = "facts"
MAX_SIDE = 2048
"""Pixels of the networks' input and of the anomaly map: a manifest cannot ask for more memory."""


class FieldFacts(NamedTuple):
    """What is known of a field beside its type and default.

    Attributes:
        help: What is chosen; None for a constant, which follows from the options or is fitted.
        choices: All values that it may have; empty: any.
        minimum, maximum: Of a number, or of each number.
        above: What a number must be above.
        fit_only: The detector does not read it, so that the manifest has it only where the family
            records what its training did.
        in_rows: Rows of measurements hold it, since it changes accuracy or speed.
        earlier_names: Values of manifests and rows of earlier versions, with today's.
    """

    help: str | None
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    fit_only: bool = False
    in_rows: bool = False
    earlier_names: Mapping[str, str] = types.MappingProxyType({})


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    fit_only: bool = False,
    in_rows: bool = False,
    earlier_names: Mapping[str, str] = types.MappingProxyType({}),
) -> Any:
    """A field of a family's options that is chosen when a detector is fitted; see FieldFacts.

    Choices of a field of type Literal need not be repeated.
    """
    facts = FieldFacts(help, choices, minimum, maximum, above, fit_only, in_rows, earlier_names)
    return field(default=default, metadata={_FACTS: facts})


def constant(
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] | Any = MISSING,
    choices: tuple[Any, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    in_rows: bool = False,
) -> Any:
    """A field of a family's options that nobody chooses: it follows from the others, or is fitted.
    It stands in the manifest."""
    facts = FieldFacts(None, choices, minimum, maximum, in_rows=in_rows)
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={_FACTS: facts})
    return field(default=default, metadata={_FACTS: facts})


@dataclass(frozen=True)
class MethodOptions:
    """What every detector has. A family's options extend it, and those of its branches.

    Attributes:
        rgb_size: R, side of the RGB networks' input in pixels.
        grid_size: S, side of the anomaly map in pixels.

    Raises:
        InvalidInputError: a value is none of the known ones or out of range; names it.
    """

    rgb_size: int = constant(224, minimum=1, maximum=MAX_SIDE)
    grid_size: int = constant(224, minimum=1, maximum=MAX_SIDE)

    def __post_init__(self) -> None:
        for name, facts in option_fields(type(self)).items():
            _check_value(name, getattr(self, name), facts)

    @property
    def is_exact(self) -> bool:
        """A detector with these options gives the published pipeline's answer, up to rounding."""
        return True

    @property
    def score_is_map_maximum(self) -> bool:
        """No option takes away what the family says of its image score: that it is the largest
        value of the anomaly map."""
        return True

    @property
    def score_offset(self) -> float:
        """What is added to the image score: its rounding errors grow with it."""
        return 0.0

    @property
    def map_step(self) -> float:
        """What the anomaly maps of equal answers may differ by beyond rounding, relative to their
        maximum."""
        return 0.0

    def with_constants(self: Options) -> Options:
        """The same options with the constants that follow from them.

        Raises:
            InvalidInputError: options do not go together.
        """
        return self

    def prepared_by(self, recipe: Recipe) -> Recipe:
        """The recipe with what these options say of how a scan is prepared."""
        return recipe

    def without_effect(self) -> Mapping[str, str]:
        """Options that change nothing beside the others, each with the reason."""
        return {}

    def to_manifest(self) -> dict[str, Any]:
        """What the detector reads of them, as JSON types."""
        content = asdict(self)
        return {
            name: _to_json(content[name])
            for name, facts in option_fields(type(self)).items()
            if not facts.fit_only
        }

    @classmethod
    def from_manifest(cls: type[Options], content: Mapping[str, Any]) -> Options:
        """The options in a manifest; keys that are none are left out.

        Raises:
            ArtifactError: one is missing or has a value that this version does not know.
        """
        read = {n: f for n, f in option_fields(cls).items() if not f.fit_only}
        missing = [name for name in read if name not in content]
        if missing:
            raise ArtifactError(
                f"the manifest's parameters lack {', '.join(missing)}; fit the detector again"
            )
        hints = _hints(cls)
        try:
            values = {
                name: _from_json(todays_value(content[name], facts), hints[name], name)
                for name, facts in read.items()
            }
            return cls(**values)
        except InvalidInputError as error:
            raise ArtifactError(
                f"the manifest holds a parameter that this version cannot run: {error}; "
                "upgrade with: pip install --upgrade mmad-fast, or fit again"
            ) from error


def option_fields(options_class: type) -> dict[str, FieldFacts]:
    """The facts of each field of a family's or branch's options, in their order."""
    hints = _hints(options_class)
    return {one.name: _facts_of(one, hints[one.name]) for one in fields(options_class)}


def chosen_options(options_class: type) -> dict[str, FieldFacts]:
    """Those fields that are chosen when a detector is fitted."""
    return {n: f for n, f in option_fields(options_class).items() if f.help is not None}


def option_default(options_class: type, name: str) -> Any:
    """The default of an option."""
    (found,) = (one for one in fields(options_class) if one.name == name)
    return found.default


def may_be_none(options_class: type, name: str) -> bool:
    """None is a value of the option, not only the lack of one."""
    hint = _hints(options_class).get(name)
    return type(None) in get_args(hint)


def option_type(options_class: type, name: str) -> str:
    """What an option takes, in words: "an integer", "one of a, b"."""
    facts = option_fields(options_class)[name]
    return _needs(_hints(options_class)[name], facts)


def read_option(options_class: type, name: str, value: Any) -> Any:
    """The value as one of the option's type: text, as of a command line, is read: "true", "3",
    "0.5", "1,2,3", and "none" where the option may be None and takes no text.

    Raises:
        InvalidInputError: it is none of the type, or out of range.
    """
    hint, facts = _hints(options_class)[name], option_fields(options_class)[name]
    value = _plain_value(value)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        is_read, found = _read(value, kind, takes_text=str in kinds)
        if is_read:
            _check_value(name, found, facts)
            return found
    raise InvalidInputError(f"{name} is {value!r}; it must be {_needs(hint, facts)}")


def todays_value(value: Any, facts: FieldFacts) -> Any:
    """A value of a manifest or row, under its name in this version."""
    return facts.earlier_names.get(value, value) if isinstance(value, str) else value


def _hints(options_class: type) -> dict[str, Any]:
    return get_type_hints(options_class)


def _facts_of(one: Field[Any], hint: Any) -> FieldFacts:
    facts: FieldFacts = one.metadata[_FACTS]
    if get_origin(hint) is Literal:
        return facts._replace(choices=get_args(hint))
    return facts


def _check_value(name: str, value: Any, facts: FieldFacts) -> None:
    if facts.choices and value not in facts.choices:
        listed = ", ".join(map(str, facts.choices))
        raise InvalidInputError(f"{name} is {value!r}; it must be one of {listed}")
    if value is None or {facts.minimum, facts.maximum, facts.above} == {None}:
        return
    for number in value if isinstance(value, tuple) else (value,):
        if facts.minimum is not None and number < facts.minimum:
            raise InvalidInputError(f"{name} is {value}; it must be at least {facts.minimum}")
        if facts.maximum is not None and number > facts.maximum:
            raise InvalidInputError(f"{name} is {value}; it must be at most {facts.maximum}")
        if facts.above is not None and not facts.above < number < math.inf:
            raise InvalidInputError(f"{name} is {value}; it must be above {facts.above:g}")


def _plain_value(value: Any) -> Any:
    """A path as text, NumPy's numbers and arrays as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _read(value: Any, kind: Any, *, takes_text: bool) -> tuple[bool, Any]:
    """(whether it is one of the type, the value)."""
    text = value.strip().lower() if isinstance(value, str) else None
    if kind is type(None):
        return value is None or (text == "none" and not takes_text), None
    if get_origin(kind) is Literal:
        is_number = not isinstance(value, (bool, str))
        found = [o for o in get_args(kind) if str(o) == str(value) or (is_number and o == value)]
        return bool(found), found[0] if found else None
    if kind is bool:
        if text is not None:
            return text in _TRUTH, _TRUTH.get(text)
        return isinstance(value, bool), value
    if kind is str:
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
    if not isinstance(parts, (list, tuple, range)) or not len(parts):
        return False, None
    results = [_read(_plain_value(part), kind, takes_text=False) for part in parts]
    return all(is_read for is_read, _ in results), tuple(found for _, found in results)


def _needs(hint: Any, facts: FieldFacts) -> str:
    """What a value must be, in words."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if facts.choices:
        return f"one of {', '.join(map(str, facts.choices))}"
    return " or ".join(dict.fromkeys(_describe(kind) for kind in kinds))


def _describe(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if get_origin(kind) is tuple:
        return "one or more numbers with commas, e.g. 1,2,3"
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    return names.get(kind, str(kind))


def _to_json(value: Any) -> Any:
    """The value with lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any, hint: Any, name: str) -> Any:
    """The value of a field: `_to_json` undone, numbers as its type hint says.

    Raises:
        InvalidInputError: the value is of another kind than the hint.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and type(None) in arguments:
        (kind, *others) = (one for one in arguments if one is not type(None))
        return value if value is None or others else _from_json(value, kind, name)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    is_free = arguments[-1:] == (...,)
    if (
        origin is tuple
        and isinstance(value, (list, tuple))
        and (is_free or len(value) == len(arguments))
    ):
        return tuple(_from_json(item, arguments[0], name) for item in value)
    if is_mapping and isinstance(value, Mapping):
        return {key: _from_json(item, arguments[1], name) for key, item in value.items()}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    is_one = {
        int: is_number and isinstance(value, int),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    if origin is tuple or is_mapping or hint is float or not is_one.get(hint, True):
        raise InvalidInputError(f"{name} is {value!r}; it must be of type {hint}")
    return value
