"""Memory in three columns that are never mixed up: weights, peak working memory, process peak.

- weights_mib: bytes of the networks and tensors on disk, what the papers call memory.
- peak_working_mib: how far resident memory rises above its level before, during one call.
- process_peak_mib: the most resident memory that the process ever had.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmad_fast.errors import InvalidInputError, MmadFastError
from mmad_fast.heap import return_freed_memory

MIB = 1024.0 * 1024.0
_STATUS_FILE = Path("/proc/self/status")
_CLEAR_REFS_FILE = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_STDERR_TAIL_LINES = 15

_peak_before_resets_mib = 0.0
"""The process peak that resetting the kernel's high-water mark has erased."""


def weights_mib(artifact_path: Path | str, graphs: Iterable[Path]) -> float:
    """MiB on disk of what a detector loads: its tensors and the graphs of its engine, without
    manifest, golden scan and other engines.

    Args:
        artifact_path: The artifact's folder.
        graphs: The files that the engine opened: Detector.engine_choice.files.
    """
    opened = list(graphs)
    # The weights of an OpenVINO model lie beside its description.
    beside = [file.with_suffix(".bin") for file in opened if file.suffix == ".xml"]
    files = (*opened, *beside, *Path(artifact_path).glob("tensors.safetensors"))
    return sum(file.stat().st_size for file in files) / MIB


def peak_working_mib(function: Callable[[], object]) -> float | None:
    """MiB by which resident memory rises during one call; None where it cannot be measured.

    Measure the first call: a later one reuses what the first has left in the allocators, and would
    look smaller than it is. Memory of other threads counts, so run nothing beside it. Needs Linux:
    the kernel's high-water mark is reset before and read after.

    Args:
        function: Called once, without arguments, also where memory cannot be measured.
    """
    gc.collect()
    return_freed_memory()  # a call would reuse freed heap pages unseen
    before = _reset_peak()
    function()
    after = _read_status_mib("VmHWM")
    if before is None or after is None:
        return None
    return max(0.0, after - before)


def process_peak_mib() -> float | None:
    """MiB of the largest resident memory of this process so far; None where it is not known.

    On Linux from VmHWM, not from getrusage: that one starts at the peak of the parent process.
    """
    peak = _read_status_mib("VmHWM")
    if peak is not None:
        return max(peak, _peak_before_resets_mib)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1.0 if sys.platform == "darwin" else 1024.0  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def measure_detector_process(
    artifact_path: Path | str,
    scan_paths: Sequence[tuple[Path | str, ...]],
    *,
    unit: str = "m",
    num_threads: int | None = None,
    num_warmup: int = 2,
    num_runs: int = 10,
    engine: str = "auto",
    device: str = "cpu",
    precision: str | None = None,
    digest: str | None = None,
    timeout_s: float = 600.0,
    python: str | None = None,
) -> dict[str, Any]:
    """What a detector costs in a process of its own, that never imported the fit half.

    Args:
        artifact_path: The artifact's folder.
        scan_paths: (rgb file, xyz file) of each scan, or the file of its normals as third; run i
            infers scan i modulo their number.
        unit: Unit of the xyz files, "m" or "mm".
        num_threads: Threads of engine and kernels; None means the default.
        num_warmup: Inferences that do not count, after the one whose memory is measured.
        num_runs: Measured inferences, >= 1.
        engine: Engine that runs the graphs, see mmad_fast.load.
        device: Device of the detector.
        precision: Of the graphs; None: that of the detector's own.
        digest: What the artifact must be, where something else of it has been measured before:
            `Artifact.files.digest`. None: any.
        timeout_s: Seconds after which the process is stopped.
        python: Interpreter of the process, for a comparison with another installation; None means
            this one.

    Returns:
        load_ms; latencies_ms (raw arrays to score, per run); prepared_latencies_ms (without the
        preprocess stage, the papers' protocol); stage_ms (median per stage); weights_mib;
        peak_working_mib (of the first inference; None if unknown); process_peak_mib;
        torch_imported (False).

    Raises:
        InvalidInputError: no scans, or fewer than one run.
        MmadFastError: the process failed, said nothing, took too long, or imported torch; or
            another artifact is at the path than the one with this digest.
    """
    if not scan_paths or num_runs < 1 or num_warmup < 0:
        raise InvalidInputError(
            f"got {len(scan_paths)} scans, num_runs {num_runs} and num_warmup {num_warmup}; at "
            "least one scan, one run and zero warm-ups are needed"
        )
    request = {
        "artifact": str(artifact_path),
        "scans": [[str(path) for path in paths] for paths in scan_paths],
        "unit": unit,
        "num_threads": num_threads,
        "num_warmup": num_warmup,
        "num_runs": num_runs,
        "engine": engine,
        "device": device,
        "precision": precision,
        "digest": digest,
    }
    report = _run_child(json.dumps(request), timeout_s, python or sys.executable)
    if report["torch_imported"]:
        raise MmadFastError(
            "the detector process imported torch, so its memory is not that of the run half; "
            "remove what imports torch at start-up (a sitecustomize or .pth file) from this "
            "environment"
        )
    return report


def _run_child(request: str, timeout_s: float, python: str) -> dict[str, Any]:
    command = [python, "-m", "mmad_fast.measure.detector_process"]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MmadFastError(
            f"the detector process was stopped after {timeout_s:g} s; give it more time, or "
            "fewer runs or a smaller variant"
        ) from error
    tail = "\n".join(done.stderr.strip().splitlines()[-_STDERR_TAIL_LINES:]) or "(no message)"
    if done.returncode != 0:
        raise MmadFastError(
            f"the detector process ended with exit code {done.returncode}; it said:\n{tail}"
        )
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise MmadFastError(
            f"the detector process ended without a report; it said:\n{tail}"
        ) from error
    return dict(report)


def _read_status_mib(field: str) -> float | None:
    """MiB of a field of /proc/self/status; None where there is no such file or field."""
    try:
        status = _STATUS_FILE.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024.0
    return None


def _reset_peak() -> float | None:
    """Resident MiB after resetting the high-water mark to it; None where that is not possible."""
    global _peak_before_resets_mib
    peak = _read_status_mib("VmHWM")
    if peak is None:
        return None
    try:
        _CLEAR_REFS_FILE.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return None
    _peak_before_resets_mib = max(_peak_before_resets_mib, peak)
    return _read_status_mib("VmRSS")
