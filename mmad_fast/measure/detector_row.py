"""The row of one detector: its accuracy, its speed and memory in a process of its own, and the
published pipeline beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from mmad_fast.data.dataset import Dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.detector import Detector
from mmad_fast.engine_record import own_precision
from mmad_fast.errors import DataError, MmadFastError
from mmad_fast.measure.configuration import configuration_of, published_name
from mmad_fast.measure.evaluation import Accuracy, AuproMode, Decisions, evaluate
from mmad_fast.measure.memory import measure_detector_process
from mmad_fast.measure.published import published_beside
from mmad_fast.measure.tables import BenchRow
from mmad_fast.measure.timing import Timing
from mmad_fast.methods.family import Scores
from mmad_fast.methods.fit_request import FitRequest, Progress, silent
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.scan import PreparedScan, Unit
from mmad_fast.scratch_folder import temporary_folder
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads

SPEED_RUNS = 20
REFERENCE_RUNS = 3
REFERENCE_TOLERANCE = 1e-3
"""Largest relative difference of map and score to the published pipeline that lets it be timed."""


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure.

    Attributes:
        protocol: "end-to-end" (raw arrays to score, peak memory) or "paper" (prepared scan to
            smoothed map, parameters only as memory).
        aupro_mode: "published" or "exact".
        engine: Engine of the graphs, see mmad_fast.load.
        device: Device of the detector.
        engine_precision: Precision of the graphs; None: that of the detector's own.
        unit: Unit of the XYZ files.
        missing: Number that stands for no measurement in them; see Scan.from_arrays.
        speed_only: No accuracy; the fit is cut short.
        compare_reference: Add a row of the published pipeline for each row.
        few_shot: Numbers of training scans; each is a fit and a row of its own, beside that of all.
    """

    protocol: Literal["paper", "end-to-end"] = "end-to-end"
    aupro_mode: AuproMode = "published"
    engine: str = "auto"
    device: str = "cpu"
    engine_precision: str | None = None
    unit: Unit = "m"
    missing: float | None = None
    speed_only: bool = False
    compare_reference: bool = False
    few_shot: tuple[int, ...] = ()


def measure_artifact(
    detector: Detector,
    dataset: Dataset,
    category: str,
    request: MeasureRequest,
    *,
    shots: int | None = None,
    progress: Progress = silent,
) -> BenchRow:
    """The row of one detector on one category: accuracy, and speed in a process of its own.

    Args:
        detector: The detector; its artifact is what the other process loads.
        dataset: The data set.
        category: One of its categories.
        request: What to measure.
        shots: Training scans that the detector was fitted on; None: all.
        progress: Called with (what, done, total).

    Raises:
        DataError: no test scans.
        MmadFastError: a scan cannot be read or scored, or the measuring process failed.
    """
    scans = _test_scans(dataset, category)
    overall: Accuracy | None = None
    defects: dict[str, Accuracy] = {}
    notes: tuple[str, ...] = ()
    decisions: Decisions | None = None
    if not request.speed_only:
        evaluation = evaluate(
            detector,
            scans,
            aupro_mode=request.aupro_mode,
            unit=request.unit,
            missing=request.missing,
            progress=partial(progress, "evaluate"),
        )
        overall, defects = evaluation.overall, evaluation.defects
        decisions, notes = evaluation.decisions, evaluation.notes
    progress("time", 0, 1)
    with temporary_folder("scans") as folder:
        report = measure_detector_process(
            detector.artifact.path,
            _copy_scans(detector, scans[:: max(1, len(scans) // SPEED_RUNS)], folder, request),
            num_threads=get_num_threads(),
            num_runs=SPEED_RUNS,
            engine=detector.engine_choice.engine,
            device=request.device,
            precision=detector.engine_choice.precision,
            digest=detector.artifact.files.digest,
        )
    paper = request.protocol == "paper"
    latencies = report["prepared_latencies_ms" if paper else "latencies_ms"]
    stage_ms = {
        name: ms for name, ms in report["stage_ms"].items() if not (paper and name == "preprocess")
    }
    accuracy: dict[str, Any] = {} if overall is None else _accuracy_columns(overall)
    return replace(
        blank_row(
            detector, dataset, category, request, shots=shots, engine=engine_column(detector)
        ),
        **_timing_columns(latencies),
        **accuracy,
        weights_mib=report["weights_mib"],
        # The papers' memory is that of the parameters alone.
        peak_working_mib=None if paper else report["peak_working_mib"],
        process_peak_mib=None if paper else report["process_peak_mib"],
        stage_ms=stage_ms,
        aupro_mode=None if overall is None else request.aupro_mode,
        defects={name: _accuracy_columns(accuracy) for name, accuracy in defects.items()} or None,
        notes=notes or None,
        decisions=None if decisions is None else decisions.to_dict(),
    )


def blank_row(
    detector: Detector,
    dataset: Dataset,
    category: str,
    request: MeasureRequest,
    *,
    engine: str,
    shots: int | None = None,
) -> BenchRow:
    """The row that says what is measured and what the papers print of it, not yet how it did."""
    configuration = configuration_of(detector.artifact.manifest.parameters)
    name = published_name(detector.method, configuration, shots)
    return BenchRow(
        method=detector.method,
        category=category,
        protocol=request.protocol,
        device=request.device,
        engine=engine,
        threads=get_num_threads(),
        weights=_describe_weights(detector),
        published=None if name is None else published_beside(name, category),
        data=dataset.root.resolve().name,
        configuration=configuration,
        shots=shots,
    )


def engine_column(detector: Detector) -> str:
    """What runs a detector's graphs, with their precision where they are not its own."""
    choice = detector.engine_choice
    if choice.precision == own_precision(detector.artifact.manifest.parameters):
        return choice.engine
    return f"{choice.engine} {choice.precision}"


def _timing_columns(latencies_ms: Sequence[float]) -> dict[str, Any]:
    timing = Timing.from_latencies(latencies_ms)
    return {
        "latency_ms_p50": timing.p50_ms,
        "latency_ms_p95": timing.p95_ms,
        "latency_ms_p99": timing.p99_ms,
        "fps": timing.fps,
        "runs": timing.runs,
    }


def _accuracy_columns(accuracy: Accuracy) -> dict[str, float | None]:
    return {
        "i_auroc": accuracy.i_auroc,
        "p_auroc": accuracy.p_auroc,
        **{f"aupro_{round(100 * limit)}": value for limit, value in accuracy.aupro.items()},
    }


@torch_threads()
def reference_row(
    detector: Detector,
    dataset: Dataset,
    category: str,
    fit_request: FitRequest,
    request: MeasureRequest,
    *,
    shots: int | None = None,
) -> BenchRow:
    """The published pipeline, timed on the same scans, weights and threads as the detector.

    Its preprocessing is the detector's: the published one takes seconds and is run off-line.

    Raises:
        MmadFastError: an exact detector's answer differs from the reference's.
    """
    reference = detector.family.reference(detector.artifact, fit_request.weights)
    scans = _test_scans(dataset, category)
    latencies_ms, stages, differences = [], [], []
    for run in range(1 + REFERENCE_RUNS):
        scan = scans[run % len(scans)].load(
            unit=request.unit, missing=request.missing, with_normals=detector.reads_normals
        )
        start = time.perf_counter()
        prepared = detector.prepare(scan)
        if request.protocol == "paper":
            start = time.perf_counter()
        clock = StageClock()
        # The first run warms up and is compared: it breaks ties between equally near points as the
        # detector does, which costs a sort. The others are timed as published.
        scores = reference(prepared, clock, ties="any" if run else "lowest")
        latency_ms = (time.perf_counter() - start) * 1e3
        if run == 0:
            differences.append(_differences(detector, prepared, scores))
        else:
            latencies_ms.append(latency_ms)
            stages.append(clock.stage_ms)
    largest = np.max(differences, axis=0)  # (2,), NaN where one is
    map_difference, score_difference = (float(value) for value in largest)
    allowed = np.array([REFERENCE_TOLERANCE + detector.options.map_step, REFERENCE_TOLERANCE])
    if detector.is_exact and not (largest <= allowed).all():
        raise MmadFastError(
            f"{category}: the detector differs from the published pipeline by {map_difference:.2e} "
            f"of the map's maximum and {score_difference:.2e} of the score, at most "
            f"{allowed[0]:.2g} and {allowed[1]:g} are allowed; no timing. Check the artifact "
            "with `mmad-fast doctor`, and that both got the same weights"
        )
    return replace(
        blank_row(detector, dataset, category, request, shots=shots, engine="reference"),
        **_timing_columns(latencies_ms),
        stage_ms={name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
        map_difference=map_difference,
        score_difference=score_difference,
    )


def _differences(
    detector: Detector, prepared: PreparedScan, expected: Scores
) -> tuple[float, float]:
    """(map, score) difference of the detector's answer, relative to the expected maximum and
    score."""
    result = detector.infer_prepared(prepared)
    tiny = float(np.finfo(np.float32).tiny)
    map_scale = max(float(np.abs(expected.anomaly_map).max()), tiny)
    return (
        float(np.abs(result.anomaly_map - expected.anomaly_map).max()) / map_scale,
        abs(result.image_score - expected.image_score) / detector.score_scale(expected.image_score),
    )


def _copy_scans(
    detector: Detector, scans: Sequence[ScanFile], folder: Path, request: MeasureRequest
) -> list[tuple[Path, ...]]:
    """(rgb file, xyz file) per scan as PNG and TIFF in metres, whatever layout they came from, and
    the PNG file of the normals where the detector reads it."""
    paths: list[tuple[Path, ...]] = []
    for index, file in enumerate(scans):
        scan = file.load(
            unit=request.unit, missing=request.missing, with_normals=detector.reads_normals
        )
        rgb_path, xyz_path = folder / f"{index}.png", folder / f"{index}.tiff"
        Image.fromarray(scan.rgb).save(rgb_path)
        tifffile.imwrite(xyz_path, scan.xyz, photometric="rgb")
        paths.append((rgb_path, xyz_path))
        if scan.normals is not None:
            normals_path = folder / f"{index}_normals.png"
            Image.fromarray(scan.normals).save(normals_path)
            paths[-1] += (normals_path,)
    return paths


def _describe_weights(detector: Detector) -> str:
    sources = detector.weight_sources.items()
    return ", ".join(f"{role}: {source['kind']}" for role, source in sources) or "none"


def _test_scans(dataset: Dataset, category: str) -> tuple[ScanFile, ...]:
    if "test" not in dataset.splits(category):
        raise DataError(
            f"{dataset.root}: category {category!r} has no test scans to measure on; put scans "
            "into test/good and test/<defect>"
        )
    return dataset.scans(category, "test")
