"""`mmad-fast doctor`: what runs on this machine, why the rest does not; is an artifact sound?"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_fast.cli.options import Json
from mmad_fast.cli.output import print_json, print_table

OPTIONAL_PACKAGES = (
    ("torch", "fitting; pip install 'mmad-fast[fit]'"),
    ("sklearn", "metrics of eval and bench; pip install 'mmad-fast[fit]'"),
    ("onnx", "fitting; pip install 'mmad-fast[fit]'"),
)


def doctor(
    artifact: Annotated[
        Path | None, typer.Argument(help="Also verify this artifact and replay its golden scan.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print which backend of each op runs here and why the others do not.

    Example: mmad-fast doctor

    Example: mmad-fast doctor runs/bagel
    """
    report: dict[str, Any] = {
        "threads": _num_threads(),
        "ops": _op_rows(),
        "engines": _engine_rows(),
        "packages": [
            {"package": name, "installed": find_spec(name) is not None, "needed_for": why}
            for name, why in OPTIONAL_PACKAGES
        ],
        "artifact": None if artifact is None else _replay_golden(artifact),
    }
    if as_json:
        print_json(report)
    else:
        print_table(*_tables(report))
    if report["artifact"] is not None and not report["artifact"]["agrees"]:
        raise typer.Exit(1)


def _num_threads() -> int | None:
    """The kernels' threads; None where they do not load: the rows of the ops say why."""
    from mmad_fast.errors import BackendUnavailableError
    from mmad_fast.threads import get_num_threads

    try:
        return get_num_threads()
    except BackendUnavailableError:
        return None


def _op_rows() -> list[dict[str, Any]]:
    from mmad_fast.ops import all_ops

    rows = []
    for op in all_ops():
        chosen = op.resolve("auto").name
        for backend in op.backends:
            reason = backend.refusal()
            rows.append(
                {
                    "op": op.name,
                    "backend": backend.name,
                    "runs": reason is None,
                    "chosen": backend.name == chosen,
                    "reason": reason,
                }
            )
        rows.extend(
            {"op": op.name, "backend": name, "runs": False, "chosen": False, "reason": reason}
            for name, reason in op.absent.items()
        )
    return rows


def _engine_rows() -> list[dict[str, Any]]:
    """Versions are those of the modules: several packages provide one (onnxruntime-gpu)."""
    from mmad_fast.engines import DEVICES, ENGINES, engine_refusal, engine_version

    rows = []
    for name in ENGINES:
        reason = engine_refusal(name)
        version = engine_version(name) if reason is None else None
        rows.append(
            {"engine": name, "version": version, "devices": list(DEVICES), "reason": reason}
        )
    return rows


def _replay_golden(path: Path) -> dict[str, Any]:
    from mmad_fast.detector import load

    replay = load(path).replay_golden()
    return {
        "path": str(path),
        "expected_score": replay.expected_score,
        "score": replay.score,
        "map_difference": replay.map_difference,
        "tolerance": replay.tolerance,
        "agrees": replay.agrees,
    }


def _tables(report: dict[str, Any]) -> list[Any]:
    from rich.table import Table

    threads = "no compiled kernels" if report["threads"] is None else f"{report['threads']} threads"
    ops = Table("op", "backend", "runs", "auto", "why not", title=threads)
    for row in report["ops"]:
        runs, auto = ("yes" if row[key] else "" for key in ("runs", "chosen"))
        ops.add_row(row["op"], row["backend"], runs, auto, row["reason"] or "")
    engines = Table("engine", "version", "devices", "why not")
    for row in report["engines"]:
        version, reason = row["version"] or "", row["reason"] or ""
        engines.add_row(row["engine"], version, ", ".join(row["devices"]), reason)
    packages = Table("optional package", "installed", "needed for")
    for row in report["packages"]:
        packages.add_row(row["package"], "yes" if row["installed"] else "no", row["needed_for"])
    tables = [ops, engines, packages]
    if report["artifact"] is not None:
        golden = Table("artifact", "expected score", "score", "map difference", "verdict")
        row = report["artifact"]
        golden.add_row(
            row["path"],
            f"{row['expected_score']:.6g}",
            f"{row['score']:.6g}",
            f"{row['map_difference']:.2e}",
            "agrees" if row["agrees"] else f"DIFFERS by more than {row['tolerance']:g}",
        )
        tables.append(golden)
    return tables
