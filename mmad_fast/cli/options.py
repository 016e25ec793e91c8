"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.variants import VARIANTS, get_variant


class UnitName(str, Enum):
    m = "m"
    mm = "mm"


class AuproMode(str, Enum):
    published = "published"
    exact = "exact"


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """The block numbers of "1,2,3"; None for None.

    Raises:
        InvalidInputError: not a comma-separated list of numbers from 0.
    """
    if text is None:
        return None
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text, re.ASCII):
        raise InvalidInputError(
            f"the layers are {text!r}; it must be block numbers with commas, e.g. 1,2,3"
        )
    return tuple(int(part) for part in text.split(","))


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


def parse_settings(texts: list[str] | None) -> dict[str, str]:
    """The values by name of ["name=value", ...].

    Raises:
        InvalidInputError: a text without a name or "=", or a name given twice.
    """
    settings: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not name or not equals:
            raise InvalidInputError(
                f"{text!r} is no setting; it must be NAME=VALUE, e.g. point_patches=28x28"
            )
        if name in settings:
            raise InvalidInputError(f"{name} is set twice: {settings[name]!r} and {value!r}")
        settings[name] = value
    return settings


def _known_method(name: str) -> str:
    """The name; an unknown one is wrong usage."""
    try:
        return get_variant(name).name
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from None


Value = TypeVar("Value")


def _checked(parse: Callable[[Value], object]) -> Callable[[Value], Value]:
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
    typer.Option("--method", help=f"One of: {', '.join(VARIANTS)}.", callback=_known_method),
]
UnitOption = Annotated[UnitName, typer.Option("--unit", help="Unit of the XYZ files.")]
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
Device = Annotated[str, typer.Option("--device", help="cpu (default) or cuda.")]
RgbBackbone = Annotated[
    str | None,
    typer.Option(
        "--rgb-backbone",
        help="dino-vitb8, dinov2-vits14 or dinov2-vitb14; default: the method's own.",
    ),
]
RgbWeights = Annotated[
    str, typer.Option("--rgb-weights", help="Checkpoint PATH, auto (download) or random.")
]
PointWeights = Annotated[
    str, typer.Option("--point-weights", help="Checkpoint PATH, auto (download) or random.")
]
RgbLayers = Annotated[
    int | None,
    typer.Option("--rgb-layers", min=1, help="Transformer blocks of the RGB backbone to keep."),
]
PointLayers = Annotated[
    str | None,
    typer.Option(
        "--point-layers",
        help="0-based Point-MAE blocks whose outputs are used, e.g. 1,2,3.",
        callback=_checked(parse_layers),
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs", min=1, help="CFM: passes over the training scans; default: the method's."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Preprocessing: cfm, m3dm or none (already preprocessed); default: the method's.",
    ),
]
NumGroups = Annotated[
    int | None,
    typer.Option("--num-groups", min=1, max=4096, help="Point groups per scan; default: 1024."),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size", min=1, help="Points per group: 128 (public code, default) or 32 (paper)."
    ),
]
BatchNorm = Annotated[
    str | None,
    typer.Option(
        "--batch-norm", help="Point-MAE's statistics: cloud (default), calibrated, checkpoint."
    ),
]
Aggregation = Annotated[
    str | None,
    typer.Option("--aggregation", help="CFM: product (default), sum, max, psi_2d or psi_3d."),
]
Mapping = Annotated[
    str | None, typer.Option("--mapping", help="CFM: crossmodal (default) or intramodal.")
]
PixelStride = Annotated[
    int | None,
    typer.Option(
        "--pixel-stride",
        min=1,
        help="CFM: 1 (default); 2 or 4: one discrepancy per block of pixels, approximate.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="float32 (default) or int8 (approximate) backbones."),
]
Speed = Annotated[
    str,
    typer.Option("--speed", help="exact, or fast: approximate, some accuracy for time."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option that only this method has, e.g. point_patches=28x28 for m3dm; repeatable. "
        "An unknown name is answered with the known ones.",
        callback=_checked(parse_settings),
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
        callback=_checked(parse_shots),
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
