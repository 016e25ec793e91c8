"""`mmad-fast doctor`: what runs on this machine, why the rest does not; is an artifact sound?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_fast import __version__
from mmad_fast.cli.options import Device, Json, Trust
from mmad_fast.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mmad_fast.golden_replays import EngineReplay
    from mmad_fast.ops.registry import Op

OPTIONAL_PACKAGES = (
    ("torch", "fitting; pip install 'mmad-fast[fit]'"),
    ("sklearn", "fitting; metrics of eval and bench; pip install 'mmad-fast[fit]'"),
    ("onnx", "fitting and exporting; pip install 'mmad-fast[export]'"),
    ("cryptography", "signed artifacts; pip install 'mmad-fast[sign]'"),
    ("imagecodecs", "TIFF with LZW, LZMA or Zstandard; pip install imagecodecs"),
)

ARRAYS = {"cpu": "numpy arrays", "cuda": "cuda arrays"}
"""What a backend takes, by its device."""

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader")
_NVIDIA_SMI_TIMEOUT_S = 20.0


def doctor(
    artifact: Annotated[
        Path | None,
        typer.Argument(help="Also verify this artifact and replay its golden scan on its engines."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="Replay on this engine only; default: on all that run here."),
    ] = None,
    device: Device = "cpu",
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="Replay graphs of this precision only, e.g. fp16."),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Print which backend of each op runs here, for NumPy arrays and for arrays on a CUDA device,
    and why the others do not.

    Example: mmad-fast doctor

    Example: mmad-fast doctor runs/bagel --engine openvino
    """
    if artifact is None and (engine, precision) != (None, None):
        raise typer.BadParameter("--engine and --precision go with an ARTIFACT; name its folder")
    report: dict[str, Any] = {
        "version": __version__,
        "threads": _num_threads(),
        "ops": _op_rows(),
        "gpu": _gpu_report(),
        "engines": _engine_rows(),
        "packages": [
            {"package": name, "installed": find_spec(name) is not None, "needed_for": why}
            for name, why in OPTIONAL_PACKAGES
        ],
        "artifact": None
        if artifact is None
        else _replay_golden(artifact, engine, device, precision, trust),
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
    from mmad_fast.ops import all_tables

    return [row for op in all_tables() for device in ARRAYS for row in _rows(op, device)]


def _rows(op: Op, device: str) -> list[dict[str, Any]]:
    """A row per backend that takes the arrays of a device; the first that runs is chosen."""
    reasons = {backend.name: backend.refusal() for backend in op.backends_of(device)}
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    if device == "cuda":
        reasons |= op.absent
    return [
        {
            "op": op.name,
            "arrays": ARRAYS[device],
            "backend": name,
            "runs": reason is None,
            "chosen": name == chosen,
            "reason": reason,
        }
        for name, reason in reasons.items()
    ]


def _gpu_report() -> dict[str, Any]:
    """What the backends of CUDA arrays need: versions, None where there is none to be had."""
    from mmad_fast.gpu.cuda_kernels import cuda_refusal, torch_refusal

    driver, devices = _nvidia_devices()
    torch_refusal()  # imports it, where it is installed
    torch = sys.modules.get("torch")
    return {
        "driver": driver,
        "devices": devices,
        "cuda_kernels": cuda_refusal() or "run",
        "torch": None if torch is None else torch.__version__,
        "torch_cuda": None if torch is None else torch.version.cuda,
        "triton": _version("triton"),
    }


def _nvidia_devices() -> tuple[str | None, list[dict[str, str]]]:
    """The driver's version, and the devices with their compute capabilities."""
    if shutil.which(_NVIDIA_SMI[0]) is None:
        return None, []
    try:
        done = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None, []
    rows = [line.split(", ", 2) for line in done.stdout.splitlines() if line.count(", ") >= 2]
    devices = [{"name": name, "compute_capability": capability} for _, capability, name in rows]
    return (rows[0][0] if rows else None), devices


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _engine_rows() -> list[dict[str, Any]]:
    """Versions are those of the modules: several packages provide one (onnxruntime-gpu)."""
    from mmad_fast.engines import ENGINES, engine_refusal, engine_version
    from mmad_fast.errors import BackendUnavailableError

    rows = []
    for name, entry in ENGINES.items():
        try:
            version = engine_version(name)
        except (ImportError, BackendUnavailableError):  # the refusal says why
            version = None
        for device in entry.devices:
            reason = engine_refusal(name, device)
            rows.append({"engine": name, "version": version, "device": device, "reason": reason})
    return rows


def _replay_golden(
    path: Path, engine: str | None, device: str, precision: str | None, trust: Path | None = None
) -> dict[str, Any]:
    """The golden scan by each engine of the artifact.

    Raises:
        BackendUnavailableError: the engine that was asked for cannot run here, or the artifact
            holds nothing for it.
    """
    from mmad_fast.artifact import read_artifact
    from mmad_fast.detector import GOLDEN_TOLERANCE
    from mmad_fast.engines import check_engine
    from mmad_fast.engines.selection import AUTO, choose_engine
    from mmad_fast.golden_replays import DIFFERS, FAILS, replay_engines

    artifact = read_artifact(path, trust=trust)
    if engine is not None:
        check_engine(engine, device)
    replays = replay_engines(artifact, engine=engine, device=device, precision=precision)
    rows = [_replay_row(replay) for replay in replays]
    if not rows:  # says what there is instead
        files = artifact.engine_files()
        choose_engine(files, engine=engine or AUTO, device=device, precision=precision)
    verdicts = {row["verdict"] for row in rows} - {None}
    return {
        "path": str(path),
        "device": device,
        "expected_score": artifact.golden().expected_score,
        "tolerance": GOLDEN_TOLERANCE,
        "agrees": bool(verdicts) and not verdicts & {DIFFERS, FAILS},
        "engines": rows,
    }


def _replay_row(replayed: EngineReplay) -> dict[str, Any]:
    files, replay = replayed.files, replayed.replay
    return {
        "engine": replayed.engine,
        "target": files.target,
        "precision": files.precision,
        "batch": [files.batch_min, files.batch_max],
        "sms": list(files.sms),
        "library": files.library,
        "files": {name: path.name for name, path in files.files.items()},
        "measured": None if files.measured is None else dict(files.measured),
        "score": None if replay is None else replay.score,
        "map_difference": None if replay is None else replay.map_difference,
        "verdict": replayed.verdict,
        "reason": replayed.reason,
    }


def _tables(report: dict[str, Any]) -> list[Any]:
    from rich.table import Table

    threads = "no compiled kernels" if report["threads"] is None else f"{report['threads']} threads"
    title = f"mmad-fast {report['version']}, {threads}"
    ops = Table("op", "takes", "backend", "runs", "auto", "why not", title=title)
    for row in report["ops"]:
        runs, auto = ("yes" if row[key] else "" for key in ("runs", "chosen"))
        ops.add_row(row["op"], row["arrays"], row["backend"], runs, auto, row["reason"] or "")
    engines = Table("engine", "version", "device", "runs", "why not")
    for row in report["engines"]:
        version, reason = row["version"] or "", row["reason"] or ""
        engines.add_row(
            row["engine"], version, row["device"], "" if row["reason"] else "yes", reason
        )
    packages = Table("optional package", "installed", "needed for")
    for row in report["packages"]:
        packages.add_row(row["package"], "yes" if row["installed"] else "no", row["needed_for"])
    tables = [ops, _gpu_table(report["gpu"]), engines, packages]
    if report["artifact"] is not None:
        tables.append(_golden_table(report))
    return tables


def _gpu_table(gpu: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("for cuda arrays", "found")
    for device in gpu["devices"]:
        table.add_row("device", f"{device['name']}, compute {device['compute_capability']}")
    table.add_row("driver", gpu["driver"] or "none (nvidia-smi)")
    table.add_row("CUDA kernels", gpu["cuda_kernels"])
    torch = (
        "none" if gpu["torch"] is None else f"{gpu['torch']}, CUDA {gpu['torch_cuda'] or 'none'}"
    )
    table.add_row("torch", torch)
    table.add_row("triton", gpu["triton"] or "none")
    return table


def _golden_table(report: dict[str, Any]) -> Any:
    """A row per engine and file; what the engines' table has said is not said again."""
    from rich.table import Table

    artifact = report["artifact"]
    refused = {
        row["engine"]
        for row in report["engines"]
        if row["device"] == artifact["device"] and row["reason"] is not None
    }
    table = Table("engine", "graphs", "score", "map difference", "verdict")
    table.title = (
        f"{artifact['path']}: golden scan, expected score {artifact['expected_score']:.6g}"
    )
    for row in artifact["engines"]:
        graphs = next(iter(row["files"].values()), "")
        if row["score"] is None:
            reason = "see the engines above" if row["engine"] in refused else row["reason"]
            verdict = f"FAILS: {row['reason']}" if row["verdict"] else f"not run: {reason}"
            table.add_row(row["engine"] or "-", graphs, "-", "-", verdict)
            continue
        verdict = {
            "differs": "DIFFERS by more than is accepted",
            "approximate": f"approximate ({row['precision']}), nothing recorded to compare with",
        }.get(row["verdict"], row["verdict"])
        table.add_row(
            row["engine"], graphs, f"{row['score']:.6g}", f"{row['map_difference']:.2e}", verdict
        )
    return table
