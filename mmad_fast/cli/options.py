"""Options that several commands share."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

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


def _known_method(name: str) -> str:
    """The name; an unknown one is wrong usage."""
    try:
        return get_variant(name).name
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from None


def _block_numbers(text: str | None) -> str | None:
    """The text; one that `parse_layers` refuses is wrong usage."""
    try:
        parse_layers(text)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


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
        callback=_block_numbers,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Passes over the training scans; default: the method's."),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="Preprocessing: cfm, m3dm or none (already preprocessed)."),
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
    typer.Option("--aggregation", help="product (default), sum, max, psi_2d or psi_3d."),
]
Mapping = Annotated[
    str | None, typer.Option("--mapping", help="crossmodal (default) or intramodal.")
]
PixelStride = Annotated[
    int | None,
    typer.Option(
        "--pixel-stride",
        min=1,
        help="1 (default); 2 or 4: one discrepancy per block of pixels, approximate.",
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
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Data set: MVTec 3D-AD layout, Eyecandies, or a folder of rgb/xyz pairs."
    ),
]
Aupro = Annotated[
    AuproMode,
    typer.Option("--aupro", help="published: 99 thresholds as the papers; exact: the integral."),
]


def apply_threads(count: int | None) -> int:
    """Sets the number of CPU threads if one was given; the number in force."""
    from mmad_fast.threads import get_num_threads, set_num_threads

    if count is not None:
        set_num_threads(count)
    return get_num_threads()
