"""The child of `memory.measure_detector_process`: loads an artifact, infers, reports one JSON line.

It imports the run half only, so that its memory is that of a deployed detector. The request comes
as JSON on standard input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmad_fast.data import ScanFile
from mmad_fast.detector import load
from mmad_fast.errors import ArtifactError, MmadFastError
from mmad_fast.measure.memory import peak_working_mib, process_peak_mib, weights_mib
from mmad_fast.scan import Scan
from mmad_fast.threads import set_num_threads


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The report on one artifact; see `memory.measure_detector_process` for both dictionaries."""
    if request["num_threads"] is not None:
        set_num_threads(request["num_threads"])  # of the kernels; `load` sets the engine's
    start = time.perf_counter()
    detector = load(
        request["artifact"],
        engine=request["engine"],
        device=request["device"],
        precision=request["precision"],
        num_threads=request["num_threads"],
    )
    load_ms = (time.perf_counter() - start) * 1e3
    if request["digest"] not in (None, detector.artifact.files.digest):
        raise ArtifactError(
            f"{request['artifact']}: the artifact was replaced while it was measured; measure it "
            "again"
        )
    first = _load_scan(request, 0)
    working_mib = peak_working_mib(lambda: detector.infer_scan(first))
    for run in range(request["num_warmup"]):
        detector.infer_scan(_load_scan(request, run))
    latencies_ms, stages = [], []
    for run in range(request["num_runs"]):
        scan = _load_scan(request, run)
        start = time.perf_counter()
        result = detector.infer_scan(scan)
        latencies_ms.append((time.perf_counter() - start) * 1e3)
        stages.append(dict(result.stage_ms))
    return {
        "load_ms": load_ms,
        "latencies_ms": latencies_ms,
        "prepared_latencies_ms": [
            latency - stage.get("preprocess", 0.0)
            for latency, stage in zip(latencies_ms, stages, strict=True)
        ],
        "stage_ms": {
            name: float(np.median([s.get(name, 0.0) for s in stages])) for name in stages[0]
        },
        "weights_mib": weights_mib(request["artifact"], detector.engine_choice.files.values()),
        "peak_working_mib": working_mib,
        "process_peak_mib": process_peak_mib(),
        "torch_imported": "torch" in sys.modules,
    }


def _load_scan(request: dict[str, Any], run: int) -> Scan:
    """The scan of a run. Read each time: a whole set in memory would count as process peak."""
    rgb_path, xyz_path, *normals_path = request["scans"][run % len(request["scans"])]
    file = ScanFile(
        name=Path(rgb_path).stem,
        category="",
        split="test",
        defect="",
        rgb_path=Path(rgb_path),
        xyz_path=Path(xyz_path),
        ground_truth_path=None,
        normals_path=Path(*normals_path) if normals_path else None,
    )
    return file.load(unit=request["unit"], with_normals=True)  # copied where they are read


def main() -> int:
    """Exit code: 0 with a report on standard output, 1 with a message on standard error."""
    try:
        report = measure(json.load(sys.stdin))
    except MmadFastError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
