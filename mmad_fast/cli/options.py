"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import default_method, get_method, method_names

DEFAULT_METHOD = default_method()


class UnitName(str, Enum):
    m = "m"
    mm = "mm"


class AuproMode(str, Enum):
    published = "published"
    exact = "exact"


def parse_shots(text: str | None) -> tuple[int, ...]:
    """The numbers of "5,10,50", ascending, each once; none for None.

    Raises:
        InvalidInputError: not a comma-separated list of numbers from 1.
    """
    if text is None:
        return ()
    shots = set()
    if re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text, re.ASCII):
        shots = {int(part) for part in text.split(",")}
    if not shots or min(shots) < 1:
        raise InvalidInputError(
            f"the shots are {text!r}; they must be numbers of training scans with commas, e.g. "
            "5,10,50"
        )
    return tuple(sorted(shots))


Value = TypeVar("Value")


def checked(parse: Callable[[Value], object]) -> Callable[[Value], Value]:
    """A callback that gives the value back; one that `parse` refuses is wrong usage."""

    def check(value: Value) -> Value:
        try:
            parse(value)
        except InvalidInputError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Method = Annotated[
    str,
    typer.Option(
        "--method", help=f"One of: {', '.join(method_names())}.", callback=checked(get_method)
    ),
]
UnitOption = Annotated[UnitName, typer.Option("--unit", help="Unit of the XYZ files.")]
Missing = Annotated[
    float | None,
    typer.Option(
        "--missing",
        help="Number that stands for no measurement in the XYZ files, e.g. -9999; one point at "
        "many pixels is found without it.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads; default: all cores of this process."),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="What runs the graphs: auto (default) or an engine that `mmad-fast doctor` lists.",
    ),
]
EnginePrecision = Annotated[
    str | None,
    typer.Option(
        "--engine-precision",
        help="Precision of the graphs: fp32, fp16, bf16, int8 or fp8, as exported; default: that "
        "of the fit.",
    ),
]
Trust = Annotated[
    Path | None,
    typer.Option(
        "--trust", help="Refuse an artifact that this ed25519 public key (PEM) did not sign."
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu (default) or cuda.")]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Preprocessing: a method's, or none (already preprocessed); default: the method's.",
    ),
]
Speed = Annotated[
    str,
    typer.Option(
        "--speed", help="exact; fast or small: approximate, some accuracy for time or memory."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Shots = Annotated[
    int | None,
    typer.Option(
        "--shots", min=1, help="Fit on so many of the training scans only, chosen by the seed."
    ),
]
FewShot = Annotated[
    str | None,
    typer.Option(
        "--few-shot",
        help="Also fit on so many training scans each, e.g. 5,10,50: a row per number beside that "
        "of all scans.",
        callback=checked(parse_shots),
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Data set: MVTec 3D-AD layout, Eyecandies, or a folder of rgb/xyz pairs."
    ),
]
Aupro = Annotated[
    AuproMode,
    typer.Option(
        "--aupro",
        help="published: the thresholds of the method's public code; exact: the integral.",
    ),
]


def apply_threads(count: int | None) -> int:
    """Sets the number of CPU threads if one was given; the number in force."""
    from mmad_fast.threads import get_num_threads, set_num_threads

    if count is not None:
        set_num_threads(count)
    return get_num_threads()
