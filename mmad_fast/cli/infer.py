"""`mmad-fast infer`: score scans with a detector artifact."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_fast.cli.options import (
    Device,
    Engine,
    EnginePrecision,
    Json,
    Threads,
    UnitName,
    UnitOption,
    apply_threads,
)
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from mmad_fast.data import ScanFile
    from mmad_fast.scan import Result, Scan


def infer(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder from `mmad-fast fit`.")],
    scans: Annotated[Path, typer.Argument(help="RGB file of one scan, or a folder of scans.")],
    xyz: Annotated[
        Path | None, typer.Option("--xyz", help="XYZ file, if it is not beside the RGB file.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for overlay PNGs and anomaly-map TIFFs."),
    ] = None,
    unit: UnitOption = UnitName.m,
    engine: Engine = "auto",
    engine_precision: EnginePrecision = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score one scan or a folder of scans; write heat maps.

    Example: mmad-fast infer runs/bagel mvtec3d/bagel/test/crack/rgb/000.png --output results

    Example: mmad-fast infer runs/bagel camera_dump --unit mm --json
    """
    apply_threads(threads)
    from mmad_fast.data.selection import find_scan_files
    from mmad_fast.detector import load
    from mmad_fast.errors import MmadFastError

    files = find_scan_files(scans, xyz_path=xyz)
    detector = load(artifact, engine=engine, device=device, precision=engine_precision)
    if output is not None:
        _make_writable(output)
    rows: list[dict[str, Any]] = []
    with progress_bar("infer") as update:
        for done, file in enumerate(files):
            update(file.name, done, len(files))
            try:
                scan = file.load(unit=unit.value)
                result = detector.infer_scan(scan)
            except MmadFastError as error:
                rows.append({"scan": file.name, "error": str(error)})
                continue
            written = _write_pictures(output, file, scan, result) if output else {}
            rows.append(_row(file.name, result, written))
    if as_json:
        choice = detector.engine_choice
        print_json(
            {
                "artifact": str(artifact),
                "method": detector.method,
                "engine": choice.engine,
                "engine_precision": choice.precision,
                "engine_reason": choice.reason,
                "scans": rows,
            }
        )
    else:
        print_table(_table(rows))
    failed = sum("error" in row for row in rows)
    if failed:
        notice(f"error: {failed} of {len(rows)} scans could not be scored")
        raise typer.Exit(1)


def _make_writable(output: Path) -> None:
    """Makes the folder and tries to write into it, before the first scan is scored."""
    from mmad_fast.errors import InvalidInputError

    if output.exists() and not output.is_dir():
        raise InvalidInputError(f"{output}: is a file; name a folder for the pictures")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def _row(name: str, result: Result, written: dict[str, str]) -> dict[str, Any]:
    return {
        "scan": name,
        "image_score": result.image_score,
        "threshold": result.threshold,
        "is_anomalous": result.is_anomalous,
        "stage_ms": dict(result.stage_ms),
        **written,
    }


def _write_pictures(output: Path, file: ScanFile, scan: Scan, result: Result) -> dict[str, str]:
    from mmad_fast.report.pictures import save_map_tiff, save_overlay

    stem = file.name.replace("/", "_")
    overlay, anomaly_map = output / f"{stem}_overlay.png", output / f"{stem}_map.tiff"
    decision = {None: "", True: "  ANOMALOUS", False: "  good"}[result.is_anomalous]
    save_overlay(
        overlay,
        scan.rgb,
        result.native_anomaly_map,
        threshold=result.map_threshold,
        caption=f"{file.name}  score {result.image_score:.4g}{decision}",
    )
    save_map_tiff(anomaly_map, result.native_anomaly_map)
    return {"overlay": str(overlay), "anomaly_map": str(anomaly_map)}


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("scan", "score", "threshold", "decision", "ms")
    anomalous = Text("anomalous", style="red")
    decisions: dict[bool | None, str | Text] = {None: "-", True: anomalous, False: "good"}
    for row in rows:
        if "error" in row:
            error = Text(f"error: {row['error']}", style="red")
            table.add_row(row["scan"], "-", "-", error, "-")
            continue
        threshold = "-" if row["threshold"] is None else f"{row['threshold']:.4g}"
        total_ms = sum(row["stage_ms"].values())
        score = f"{row['image_score']:.4g}"
        table.add_row(
            row["scan"], score, threshold, decisions[row["is_anomalous"]], f"{total_ms:.0f}"
        )
    return table
