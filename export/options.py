"""The options that the scripts of this folder share, and how they end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mmad_fast.cli.export import parse_sms
from mmad_fast.cli.output import notice, print_table, progress_bar, report_error
from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.data.selection import pick_category
from mmad_fast.errors import DataError, InvalidInputError, MmadFastError
from mmad_fast.export.backbone_cut import BackboneCut
from mmad_fast.export.batch import SINGLE, Batch
from mmad_fast.export.deployment_graph import PRECISIONS, QUANTIZED_PRECISIONS, TARGETS
from mmad_fast.export.engine_set import EngineSet, build_engine_set
from mmad_fast.export.export_request import ExportRequest
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.family import get_recipe
from mmad_fast.methods.options import read_option

T = TypeVar("T")
CALIBRATION_SCANS = 16


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The function for argparse: what it refuses is wrong usage, in its own words."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except InvalidInputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def block_numbers(text: str) -> tuple[int, ...]:
    """The block numbers of "1,2,3"."""
    blocks: tuple[int, ...] = read_option(PointGroupOptions, "point_layers", text)
    return blocks


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every script but those of its weights and layers."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=["tensorrt-rtx"])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp16"])
    parser.add_argument(
        "--sm",
        type=argument(parse_sms),
        default=(),
        help="compute capabilities for tensorrt-rtx, all in one engine, e.g. 86,89,120",
    )
    parser.add_argument(
        "--batch",
        type=argument(Batch.parse),
        default=SINGLE,
        metavar="N | MIN,OPT,MAX",
        help="static batch (default: 1), or the profile of a dynamic one",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DATA",
        help="data set whose first nominal training scans give the ranges of "
        + " and ".join(QUANTIZED_PRECISIONS),
    )
    parser.add_argument("--category", help="which category of --calibration, where it has several")
    parser.add_argument(
        "--recipe",
        type=argument(get_recipe),
        help="preprocessing of the detectors that the engines are for, by name; default: "
        "the default method's",
    )
    parser.add_argument("--unit", choices=("m", "mm"), default="m", help="of its XYZ files")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--no-cache", action="store_true", help="build every TensorRT engine anew")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder; an engine set there is replaced"
    )
    return parser


def run(
    parser: argparse.ArgumentParser,
    cuts: Callable[[argparse.Namespace], Sequence[BackboneCut]],
    *,
    weights: Callable[[argparse.Namespace], dict[str, str]],
) -> None:
    """Builds what the arguments ask for and prints a table; exit code 1 on an error, 2 on wrong
    usage."""
    arguments = parser.parse_args()
    # As after Ctrl-C: what was begun is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        requests, wanted = _requests(arguments), cuts(arguments)
    except InvalidInputError as error:
        parser.error(str(error))
    except MmadFastError as error:
        report_error(error, as_json=False)
        sys.exit(1)
    try:
        with progress_bar("engines") as progress:
            built = build_engine_set(
                arguments.output,
                wanted,
                requests,
                calibration=_calibration(arguments),
                recipe=arguments.recipe,
                unit=arguments.unit,
                seed=arguments.seed,
                cache=not arguments.no_cache,
                progress=progress,
                **weights(arguments),
            )
    except (MmadFastError, OSError) as error:
        report_error(error, as_json=False)
        sys.exit(1)
    except KeyboardInterrupt:
        notice("interrupted; nothing was written")
        sys.exit(130)
    _print(built)


def _requests(arguments: argparse.Namespace) -> list[ExportRequest]:
    if arguments.sm and "tensorrt-rtx" not in arguments.to:
        raise InvalidInputError(
            f"--sm is for engines of tensorrt-rtx, and --to is {' '.join(arguments.to)}; leave "
            "--sm out, or add tensorrt-rtx"
        )
    return [
        ExportRequest.of(
            to=target,
            precision=precision,
            sms=arguments.sm if target == "tensorrt-rtx" else (),
            batch=arguments.batch,
        )
        for precision in arguments.precision
        for target in arguments.to
    ]


def _calibration(arguments: argparse.Namespace) -> Sequence[ScanFile]:
    if arguments.calibration is None:
        return ()
    dataset = open_dataset(arguments.calibration)
    category = pick_category(dataset, arguments.category)
    if "train" not in dataset.splits(category):
        raise DataError(
            f"{arguments.calibration}: category {category!r} has no training scans to calibrate "
            "with; put nominal scans into train/good/rgb and train/good/xyz"
        )
    return dataset.scans(category, "train")[:CALIBRATION_SCANS]


def _print(built: EngineSet) -> None:
    from rich.table import Table

    table = Table("file", title=f"{built.path}", title_justify="left")
    for name in ("MiB", "multiply-adds", "parameters", "build s", "layers", "fused attention"):
        table.add_column(name, justify="right")
    for record in built.engines:
        layers = record.layers or {}
        table.add_row(
            record.files[0],
            f"{record.size_bytes / 2**20:.1f}",
            f"{record.multiply_adds / 1e9:.2f} G",
            f"{record.parameters / 1e6:.1f} M",
            "cached" if record.from_cache else f"{record.build_s:.1f}",
            str(layers.get("num_layers", "–")),
            str(layers.get("fused_attention", "–")),
        )
    print_table(table)
    random = [name for name, source in built.weights.items() if source["kind"] == "random"]
    if random:
        notice(f"NOTE: {', '.join(random)}: seeded random weights; the features mean nothing")
