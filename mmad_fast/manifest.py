"""What a manifest may hold: read once, by one table per kind of folder, before anything uses it.

A manifest comes with an artifact from somewhere else. `read_json` bounds what a parser does with
it; the tables (FIELDS here, and those beside the other kinds) say what each field holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_DEPTH = 16
MAX_TEXT = 4096
MAX_INTEGER = 2**63
MAX_AXIS = 2**31
MAX_FILE_BYTES = 2**35
"""Of one file: it is hashed, at about 1 GB/s."""


class UnfitError(ValueError):
    """What is wrong in a manifest, without its file's name."""


class Rule(Protocol):
    """What a value must be."""

    def check(self, value: Any, place: str) -> None:
        """Raises UnfitError, which names the place, the value and what is needed."""


@dataclass(frozen=True)
class Value:
    """One value that is accepted as a whole.

    Attributes:
        needed: In words.
        accepts: Whether it is one.
    """

    needed: str
    accepts: Callable[[Any], bool]

    def check(self, value: Any, place: str) -> None:
        """See Rule."""
        if not self.accepts(value):
            refuse(value, place, self.needed)


@dataclass(frozen=True)
class Maybe:
    """Null, or what the rule says."""

    rule: Rule

    def check(self, value: Any, place: str) -> None:
        """See Rule."""
        if value is not None:
            self.rule.check(value, place)


@dataclass(frozen=True)
class Many:
    """A list of what the rule says, of `minimum` to `maximum` items."""

    rule: Rule
    minimum: int = 0
    maximum: int = 65536

    def check(self, value: Any, place: str) -> None:
        """See Rule."""
        if not isinstance(value, list) or not self.minimum <= len(value) <= self.maximum:
            refuse(value, place, f"a list of {self.minimum} to {self.maximum} items")
        for at, item in enumerate(value):
            self.rule.check(item, f"{place}[{at}]")


@dataclass(frozen=True)
class ByName:
    """What the rule says by name; the names are as `name` says."""

    rule: Rule
    name: Rule
    minimum: int = 0

    def check(self, value: Any, place: str) -> None:
        """See Rule."""
        if not isinstance(value, dict) or len(value) < self.minimum:
            refuse(value, place, f"an object with {self.minimum} or more names")
        for name, item in value.items():
            self.name.check(name, f"a name in {place}")
            self.rule.check(item, f"{place}.{name}")


@dataclass(frozen=True)
class Fields:
    """An object with exactly these fields; with `is_open` others may stand beside them."""

    rules: Mapping[str, Rule]
    is_open: bool = False

    def check(self, value: Any, place: str) -> None:
        """See Rule."""
        if not isinstance(value, dict):
            refuse(value, place, f"an object with the fields {', '.join(self.rules)}")
        missing = sorted(self.rules.keys() - value.keys())
        unknown = [] if self.is_open else sorted(value.keys() - self.rules.keys())
        if missing or unknown:
            raise UnfitError(
                f"{place} has the wrong fields (missing: {missing}, unknown: {unknown[:8]})"
            )
        for name, rule in self.rules.items():
            rule.check(value[name], f"{place}.{name}" if place != TOP else name)


TOP = "it"


def refuse(value: Any, place: str, needed: str) -> NoReturn:
    """Raises the UnfitError of a value."""
    shown = repr(value)
    raise UnfitError(f"{place} is {shown[:80]}{'...' * (len(shown) > 80)}; it must be {needed}")


def integers(minimum: int, maximum: int) -> Value:
    """An integer in a range; true and false are none."""
    return Value(
        f"an integer in {minimum}..{maximum}",
        lambda value: type(value) is int and minimum <= value <= maximum,
    )


def matching(pattern: str, needed: str) -> Value:
    """Text that the pattern matches as a whole."""
    compiled = re.compile(pattern, re.ASCII)
    return Value(
        needed, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


NUMBER = Value("a finite number", _is_number)
DURATION = Value("a finite number >= 0", lambda value: _is_number(value) and value >= 0)
TEXT = Value("text", lambda value: isinstance(value, str))
BOOLEAN = Value("true or false", lambda value: isinstance(value, bool))
NAME = matching(r"[\w][\w.:+-]{0,199}", "a name of letters, digits and . : + - _")
FILE_NAME = matching(
    r"[A-Za-z0-9_][\w.+-]{0,199}", "a file's name without a folder, of letters, digits and . + - _"
)
SHA256 = matching(r"[0-9a-f]{64}", "a sha256 in hexadecimal")
SHAPE = Many(integers(0, MAX_AXIS), maximum=8)
GRAPH_SHAPE = Many(integers(1, MAX_AXIS), minimum=1, maximum=8)
OBJECT = Fields({}, is_open=True)
"""With anything in it that `read_json` lets pass: what it means is checked where it is used."""
FINGERPRINT = Fields({"sha256": SHA256, "bytes": integers(0, MAX_FILE_BYTES)})
DTYPE = Value(
    "the type of a tensor",
    lambda value: value in (
        "bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32",
        "uint64", "int64", "float64",
    ),
)  # fmt: skip
MEASURED = Maybe(
    Fields({"machine": TEXT, "threads": integers(1, 1024), "p50_ms": DURATION}, is_open=True)
)
BATCH = Fields(dict.fromkeys(("min", "opt", "max"), integers(1, 65536)))
ENGINE = Fields(
    {
        "target": NAME,
        "precision": NAME,
        "batch": BATCH,
        "sms": Many(integers(1, 9999)),
        "library": TEXT,
        "graphs": ByName(Many(FILE_NAME, minimum=1), NAME),
        "build_s": DURATION,
        "calibration_scans": integers(0, MAX_INTEGER),
        "measured": MEASURED,
        "golden": Maybe(
            Fields({"engine": TEXT, "map_difference": DURATION, "score": NUMBER}, is_open=True)
        ),
    }
)
FIELDS: dict[str, Rule] = {
    "schema": integers(0, 9999),
    "method": NAME,
    "family": NAME,
    "created": TEXT,
    "tool_versions": ByName(TEXT, NAME),
    "preprocess": OBJECT,
    "parameters": OBJECT,
    "threshold": Maybe(Fields({}, is_open=True)),
    "weights": OBJECT,
    "graphs": ByName(
        Fields(
            {
                "file": FILE_NAME,
                "inputs": ByName(GRAPH_SHAPE, NAME, minimum=1),
                "outputs": ByName(GRAPH_SHAPE, NAME, minimum=1),
            }
        ),
        NAME,
    ),
    "tensors": ByName(Fields({"shape": SHAPE, "dtype": DTYPE}), NAME),
    "files": ByName(FINGERPRINT, FILE_NAME),
    "engines": Many(ENGINE),
    "measured": MEASURED,
    "missing_values": OBJECT,
}
"""Of a detector artifact, as the dataclass artifact.Manifest has them."""
SINCE = {"missing_values": 5}
"""The schema that a field came with, where an older one is still read."""


def artifact_rule(schema: int) -> Fields:
    """What a detector artifact's manifest of this schema holds."""
    return Fields({name: rule for name, rule in FIELDS.items() if SINCE.get(name, 0) <= schema})


def read_json(content: bytes) -> Any:
    """What stands in the JSON text, as it would in any other reader of it.

    Raises:
        UnfitError: no JSON in UTF-8; longer than 16 MiB, nested more than 16 deep; a key twice in
            an object, a number that is not finite or larger than 2^63, a text of over 4096
            characters or with half a character.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise UnfitError(f"it has {len(content)} bytes; it must have at most {MAX_MANIFEST_BYTES}")
    try:
        read = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=lambda text: refuse(text, "a number", "finite"),
            parse_int=_integer,
        )
    except RecursionError:
        raise UnfitError(f"it is nested more than {MAX_DEPTH} deep") from None
    except UnicodeDecodeError as error:
        raise UnfitError(f"it is not in UTF-8 ({error.reason} at byte {error.start})") from None
    _check_values(read, MAX_DEPTH)
    return read


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnfitError(f"an object has a key twice, among {', '.join(map(repr, found))[:200]}")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        refuse(text, "a number", f"at most {MAX_INTEGER}")
    return int(text)


def _check_values(value: Any, depth: int) -> None:
    if depth == 0:
        raise UnfitError(f"it is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(name, depth)
            _check_values(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        refuse(value, "a number", "finite")
    elif isinstance(value, str) and (len(value) > MAX_TEXT or not _is_whole(value)):
        refuse(value, "a text", f"of at most {MAX_TEXT} whole characters")


def _is_whole(text: str) -> bool:
    """No half of a pair of UTF-16, which JSON can spell and no file or terminal can hold."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
