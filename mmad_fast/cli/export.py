"""`mmad-fast export`: make an engine of an artifact's graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_fast.cli.options import Json, Threads, UnitName, UnitOption, apply_threads, checked
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar
from mmad_fast.engine_record import PRECISIONS
from mmad_fast.errors import InvalidInputError
from mmad_fast.export.batch import Batch
from mmad_fast.export.deployment_graph import TARGETS

if TYPE_CHECKING:
    from mmad_fast.export import ExportReport

MIB = 1024.0 * 1024.0


def parse_sms(text: str | None) -> tuple[int, ...]:
    """The compute capabilities of "86,89"; none for None.

    Raises:
        InvalidInputError: not a comma-separated list of numbers.
    """
    if text is None:
        return ()
    if not re.fullmatch(r"\s*\d{2,3}\s*(,\s*\d{2,3}\s*)*", text, re.ASCII):
        raise InvalidInputError(
            f"the compute capabilities are {text!r}; they must be numbers with commas, without the "
            "dot, e.g. 86,89 for 8.6 and 8.9"
        )
    return tuple(int(part) for part in text.split(","))


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    """A callback that gives the name back; an unknown one is wrong usage."""

    def check(name: str) -> None:
        if name not in known:
            raise InvalidInputError(f"there is no {name!r}; known are {', '.join(known)}")

    return checked(check)


def export(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder from `mmad-fast fit`.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="onnx, openvino, tensorrt-rtx or tensorrt.", callback=_one_of(TARGETS)
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp32, fp16, bf16, int8 or fp8 of the graphs.",
            callback=_one_of(PRECISIONS),
        ),
    ] = "fp32",
    sm: Annotated[
        str | None,
        typer.Option(
            "--sm",
            help="Compute capabilities of the GPUs, e.g. 86,89,120; needed for tensorrt-rtx.",
            callback=checked(parse_sms),
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            help="Scans per run: 1, or 1,4,8 (smallest, usual, largest) for a dynamic batch.",
            callback=checked(Batch.parse),
        ),
    ] = "1",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", help="Data set whose nominal scans give the ranges of int8 and fp8."
        ),
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="Which category of the calibration data set.")
    ] = None,
    unit: UnitOption = UnitName.m,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write a new artifact here; default: into ARTIFACT itself."
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build TensorRT engines anew, and keep none.")
    ] = False,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not time the engine on this machine.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make an engine of an artifact's graphs, check it on the golden scan, and put it into the
    artifact: one more choice for infer, eval and `mmad_fast.load`.

    Example: mmad-fast export runs/bagel --to tensorrt-rtx --precision fp16 --sm 86,89

    Example: mmad-fast export runs/bagel --to openvino --precision int8 --calibration mvtec3d
    --category bagel
    """
    apply_threads(threads)
    from mmad_fast.export import export_detector

    with progress_bar("export") as update:
        report = export_detector(
            artifact,
            to=to,
            precision=precision,
            sms=parse_sms(sm),
            batch=Batch.parse(batch),
            calibration=calibration,
            category=category,
            unit=unit.value,
            output=output,
            cache=not no_cache,
            measure=not no_measure,
            progress=update,
        )
    for line in report.notices:
        notice(f"note: {line}")
    if as_json:
        print_json(report.to_dict())
        return
    print_table(_table(report))
    notice(_verdict(report))
    notice(f"wrote {report.artifact}")


def _table(report: ExportReport) -> Any:
    """A row per graph; columns that this target has nothing for are left out."""
    from rich.table import Table

    sms = "".join(f" sm_{sm}" for sm in report.sms)
    title = f"{report.target} {report.precision}{sms} ({report.library})"
    has_layers, graph_ms = bool(report.layers), (report.measured or {}).get("graph_ms", {})
    columns = ["graph", "file", "MiB", "build s"]
    columns += ["layers", "fused attention"] if has_layers else []
    columns += ["p50 ms"] if graph_ms else []
    table = Table(*columns, title=title)
    for name, graph in report.graphs.items():
        size = sum(path.stat().st_size for path in graph.paths)
        build = f"{graph.build_s:.1f}{' (cached)' if graph.from_cache else ''}"
        layers = graph.layers or {}
        cells = [str(layers.get(key, "-")) for key in ("num_layers", "fused_attention")]
        table.add_row(
            name,
            graph.paths[0].name,
            f"{size / MIB:.1f}",
            build,
            *(cells if has_layers else ()),
            *([f"{graph_ms[name]:.1f}"] if graph_ms else ()),
        )
    return table


def _verdict(report: ExportReport) -> str:
    """What the engine did on this machine, in a sentence or two."""
    if report.not_run is not None:
        return f"not tried here: {report.not_run}"
    golden = report.record.golden or {}
    text = (
        f"golden scan by {golden['engine']}: map differs by {golden['map_difference']:.2e} of its "
        f"maximum, score {golden['score']:.6g}"
    )
    if report.measured is None:
        return text
    own = (
        "" if report.own_p50_ms is None else f", the artifact's own graphs {report.own_p50_ms:.1f}"
    )
    return (
        f"{text}; graphs take {report.measured['p50_ms']:.1f} ms with "
        f"{report.measured['threads']} threads{own}"
    )
