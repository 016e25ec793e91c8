"""`mmad-fast infer`: score scans with a detector artifact."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_fast.cli.interrupts import Interrupted, finish, uninterrupted
from mmad_fast.cli.json_lines import STDOUT, JsonLines, json_lines
from mmad_fast.cli.options import (
    Device,
    Engine,
    EnginePrecision,
    Json,
    Missing,
    Threads,
    Trust,
    UnitName,
    UnitOption,
    apply_threads,
)
from mmad_fast.cli.output import (
    describe_error,
    discard_stdout,
    json_line,
    notice,
    print_json,
    print_table,
    progress_bar,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmad_fast.data import ScanFile
    from mmad_fast.detector import Detector
    from mmad_fast.scan import Result, Scan, Unit

Row = dict[str, Any]


def infer(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder from `mmad-fast fit`.")],
    scans: Annotated[Path, typer.Argument(help="RGB file of one scan, or a folder of scans.")],
    xyz: Annotated[
        Path | None, typer.Option("--xyz", help="XYZ file, if it is not beside the RGB file.")
    ] = None,
    normals: Annotated[
        Path | None,
        typer.Option("--normals", help="PNG of the surface normals, if it is not in normals/."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for overlay PNGs and anomaly-map TIFFs."),
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl",
            metavar="FILE",
            help="Add one JSON line per scan to this file as soon as the scan is scored; - writes "
            "them to stdout in place of the table. The lines are the rows of --json.",
        ),
    ] = None,
    unit: UnitOption = UnitName.m,
    missing: Missing = None,
    engine: Engine = "auto",
    engine_precision: EnginePrecision = None,
    device: Device = "cpu",
    threads: Threads = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Score one scan or a folder of scans; write heat maps.

    Each scan ends as a row: its decision, or the error that says why there is none. Masks are not
    read. Ctrl-C and SIGTERM end the command after the scan in hand, when what was decided is
    printed; a second one ends it at once.

    Exit codes: 0 all scans were scored and all pictures written; 1 some were not, or the command
    failed; 2 wrong usage; 130 interrupted by Ctrl-C (SIGINT); 143 ended by SIGTERM.

    Example: mmad-fast infer runs/bagel mvtec3d/bagel/test/crack/rgb/000.png --output results

    Example: mmad-fast infer runs/bagel camera_dump --unit mm --json

    Example: mmad-fast infer runs/bagel camera_dump --jsonl decisions.jsonl
    """
    if as_json and jsonl == STDOUT:
        raise typer.BadParameter(
            "--jsonl - and --json both write to stdout; leave one out, or name a file for lines",
            param_hint="--jsonl",
        )
    apply_threads(threads)
    from mmad_fast.data.selection import find_scan_files
    from mmad_fast.detector import load
    from mmad_fast.threshold import describe_threshold

    files = find_scan_files(scans, xyz_path=xyz, normals_path=normals)
    _tell_of_own_pictures(scans)
    detector = load(artifact, engine=engine, device=device, precision=engine_precision, trust=trust)
    if output is not None:
        _make_writable(output)
    pictures = _picture_stems(output, files)
    rows: list[Row] = []
    stop: Interrupted | None = None
    lines: JsonLines | None = None
    try:
        with json_lines(jsonl) as lines, progress_bar("infer") as update:
            for done, file in enumerate(files):
                update(shown(file.name), done, len(files))
                with uninterrupted():  # what is decided is written
                    row = _score(detector, file, unit.value, missing, pictures.get(file.name))
                    rows.append(row)
                    lines.write(row)
    except Interrupted as interrupted:
        stop = interrupted
    record = detector.artifact.manifest.threshold
    not_reached = [file.name for file in files[len(rows) :]]
    with uninterrupted():
        if as_json:
            choice = detector.engine_choice
            content = {
                "artifact": str(artifact),
                "method": detector.method,
                "engine": choice.engine,
                "engine_precision": choice.precision,
                "engine_reason": choice.reason,
                "threshold": record.to_dict() if record else None,
                "threshold_note": describe_threshold(record),
                "scans": rows,
                "interrupted": None if stop is None else stop.signal_name,
                "not_reached": not_reached,
            }
            _print_or_rescue(rows, lambda: print_json(content))
        elif jsonl != STDOUT:
            _print_or_rescue(rows, lambda: print_table(_table(rows), describe_threshold(record)))
        if stop is not None:
            notice(
                f"interrupted by {stop.signal_name}: {len(not_reached)} of {len(files)} scans were "
                "not reached"
            )
        exit_code = _tell_of_failures(rows) or int(lines is not None and lines.is_refused)
        finish()  # within: a signal that comes now finds all printed, and must not add to it
        raise typer.Exit(exit_code if stop is None else stop.exit_code)


def _tell_of_failures(rows: Sequence[Row]) -> int:
    """1 if something of the rows failed, which is said; else 0."""
    failed = sum("error" in row for row in rows)
    without_picture = sum("picture_error" in row for row in rows)
    if failed:
        notice(f"error: {failed} of {len(rows)} scans could not be scored")
    if without_picture:
        notice(f"error: {without_picture} of {len(rows)} scans lack a picture")
    return int(bool(failed or without_picture))


def _tell_of_own_pictures(scans: Path) -> None:
    """Says that pictures of an earlier run lie among the scans, and are not read as scans."""
    from mmad_fast.data.own_pictures import own_pictures

    pictures = own_pictures(Path(folder) for folder, _, _ in os.walk(scans))
    if pictures:
        notice(
            f"note: {len(pictures)} pictures that infer wrote lie among the scans, such as "
            f"{shown(str(pictures[0]))}; they are not read as scans"
        )


def _picture_stems(output: Path | None, files: Sequence[ScanFile]) -> dict[str, Path]:
    """Scan name -> where its pictures go, without their endings; empty without an output."""
    from mmad_fast.report.pictures import picture_names

    names = picture_names([file.name for file in files])
    return {} if output is None else {name: output / names[name] for name in names}


def _score(
    detector: Detector, file: ScanFile, unit: Unit, missing: float | None, picture: Path | None
) -> Row:
    """The row of one scan, whatever happens to it: the others must be scored as well."""
    from mmad_fast.errors import MmadFastError

    try:
        scan = file.load(unit=unit, missing=missing, with_normals=detector.reads_normals)
        result = detector.infer_scan(scan)
    except (MmadFastError, OSError) as error:
        return {"scan": file.name, "error": describe_error(error)}
    except Exception as error:
        unexpected = f"{type(error).__name__}: {error}"
        return {"scan": file.name, "error": f"{unexpected}; if it stays, report it with the scan"}
    row: Row = {
        "scan": file.name,
        "image_score": result.image_score,
        "threshold": result.threshold,
        "is_anomalous": result.is_anomalous,
        "stage_ms": dict(result.stage_ms),
    }
    if picture is not None:
        row |= _write_pictures(picture, file, scan, result)
    return row


def _print_or_rescue(rows: list[Row], print_them: Callable[[], None]) -> None:
    """Prints the rows to stdout; as JSON lines to stderr if stdout refuses.

    Raises:
        BrokenPipeError: who reads stdout has closed it, and so wants no more.
    """
    try:
        print_them()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        error.filename = "stdout"
        notice(f"error: {describe_error(error)}; the rows follow here")
        for row in rows:
            notice(json_line(row).rstrip())
        raise typer.Exit(1) from error


def _make_writable(output: Path) -> None:
    """Makes the folder and tries to write into it, before the first scan is scored."""
    from mmad_fast.errors import InvalidInputError

    if output.exists() and not output.is_dir():
        raise InvalidInputError(f"{output}: is a file; name a folder for the pictures")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def _write_pictures(picture: Path, file: ScanFile, scan: Scan, result: Result) -> Row:
    """Where the pictures are; if one cannot be written, why: the decision stands without it."""
    from mmad_fast.data.own_pictures import MAP_ENDING, OVERLAY_ENDING
    from mmad_fast.report.pictures import save_map_tiff, save_overlay

    written: Row = {}
    decision = {None: "", True: "  ANOMALOUS", False: "  good"}[result.is_anomalous]
    try:
        overlay = save_overlay(
            picture.with_name(picture.name + OVERLAY_ENDING),
            scan.rgb,
            result.native_anomaly_map,
            threshold=result.map_threshold,
            caption=f"{shown(file.name)}  score {result.image_score:.4g}{decision}",
        )
        written["overlay"] = str(overlay)
        anomaly_map = save_map_tiff(
            picture.with_name(picture.name + MAP_ENDING), result.native_anomaly_map
        )
        written["anomaly_map"] = str(anomaly_map)
    except Exception as error:
        written["picture_error"] = describe_error(error) or type(error).__name__
    return written


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("scan", "score", "threshold", "decision", "ms")
    anomalous = Text("anomalous", style="red")
    decisions: dict[bool | None, str | Text] = {None: "-", True: anomalous, False: "good"}
    for row in rows:
        if "error" in row:
            error = Text(f"error: {shown(row['error'])}", style="red")
            table.add_row(shown(row["scan"]), "-", "-", error, "-")
            continue
        threshold = "-" if row["threshold"] is None else f"{row['threshold']:.4g}"
        total_ms = sum(row["stage_ms"].values())
        score = f"{row['image_score']:.4g}"
        decision = Text.assemble(decisions[row["is_anomalous"]])
        if "picture_error" in row:
            decision.append(f" (no picture: {shown(row['picture_error'])})", style="red")
        table.add_row(shown(row["scan"]), score, threshold, decision, f"{total_ms:.0f}")
    return table
