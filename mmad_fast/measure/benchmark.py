"""Fit, evaluate and time detectors: the work behind `mmad-fast bench` and `mmad-fast eval`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from mmad_fast.backbones.weights import resolve_weights
from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, Scores
from mmad_fast.engine_record import own_precision
from mmad_fast.errors import DataError, MmadFastError, WeightsError
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.configuration import configuration_of, is_variants_own
from mmad_fast.measure.engine_of_fit import check_engine_of_fit, on_engine
from mmad_fast.measure.evaluation import Accuracy, AuproMode, evaluate
from mmad_fast.measure.memory import measure_detector_process
from mmad_fast.measure.published import PublishedRow, published_for
from mmad_fast.measure.tables import ACCURACY_COLUMNS, BenchRow, mean_row
from mmad_fast.measure.timing import Timing
from mmad_fast.methods.fitting import FitRequest, Progress, fit_detector
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.methods.variants import FAMILY_REFERENCES, Variant, get_variant
from mmad_fast.scan import Unit
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads

SPEED_ONLY_TRAIN_SCANS = 2
CALIBRATION_SCANS = 32
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
        speed_only: No accuracy; the fit is cut short.
        compare_reference: Add a row of the published pipeline for each row.
    """

    protocol: Literal["paper", "end-to-end"] = "end-to-end"
    aupro_mode: AuproMode = "published"
    engine: str = "auto"
    device: str = "cpu"
    engine_precision: str | None = None
    unit: Unit = "m"
    speed_only: bool = False
    compare_reference: bool = False


def run_benchmark(
    data: Path | None,
    categories: Sequence[str],
    fit_request: FitRequest,
    request: MeasureRequest,
    *,
    output: Path | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    on_row: Callable[[BenchRow], None] | None = None,
) -> list[BenchRow]:
    """One row per category, a mean row where there are several, and rows of the reference if asked.

    Args:
        data: Data set; None: the procedural set, made in the user's cache at the first use.
        categories: Which ones; empty: all.
        fit_request: What to fit.
        request: What to measure.
        output: Keeps the artifacts here, one folder per category; None: they are discarded.
        progress: Called with (what, done, total).
        notice: Called with lines for the user, such as that weights are random.
        on_row: Called with each row as soon as it is made, so that none is lost with a later one.

    Raises:
        InvalidInputError: unknown method, category or precision.
        BackendUnavailableError: no such engine or device, or it cannot be had here.
        DataError: the data set is missing or unreadable.
        WeightsError: a weights file that was named does not serve.
        MmadFastError: an exact detector differs from the published pipeline.
    """
    say = notice or (lambda line: None)
    keep = on_row or (lambda row: None)
    get_variant(fit_request.method)
    check_engine_of_fit(request.engine, request.device, request.engine_precision)
    if data is None:
        data = built_in_set(None if progress is None else _stage(progress, "write procedural set"))
    dataset = open_dataset(data)
    names = [pick_category(dataset, name) for name in categories] or list(dataset.categories())
    fit_request = _with_available_weights(fit_request, say)
    if request.speed_only:
        fit_request = replace(fit_request, epochs=1)
    rows: list[BenchRow] = []
    reference_rows: list[BenchRow] = []
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for done, name in enumerate(names):
            _tell(progress, f"{name}: fit", done, len(names))
            fitted = fit_detector(
                dataset,
                folder / name,
                category=name,
                request=fit_request,
                max_train_scans=SPEED_ONLY_TRAIN_SCANS if request.speed_only else None,
                progress=_nested(progress, name),
            )
            detector = on_engine(
                fitted,
                engine=request.engine,
                device=request.device,
                precision=request.engine_precision,
                calibration=dataset.scans(name, "train")[:CALIBRATION_SCANS],
                unit=request.unit,
            )
            rows.append(
                measure_artifact(detector, dataset, name, request, progress=_nested(progress, name))
            )
            keep(rows[-1])
            if request.compare_reference:
                _tell(progress, f"{name}: published pipeline", done, len(names))
                reference_rows.append(_reference_row(detector, dataset, name, fit_request, request))
                keep(reference_rows[-1])
    means = [mean_row(rows)] if len(rows) > 1 and not request.speed_only else []
    for mean in means:
        keep(mean)
    return [*rows, *means, *reference_rows]


def measure_artifact(
    detector: Detector,
    dataset: Dataset,
    category: str,
    request: MeasureRequest,
    *,
    progress: Progress | None = None,
) -> BenchRow:
    """The row of one detector on one category: accuracy, and speed in a process of its own.

    Args:
        detector: The detector; its artifact is what the other process loads.
        dataset: The data set.
        category: One of its categories.
        request: What to measure.
        progress: Called with (what, done, total).

    Raises:
        DataError: no test scans, or one that cannot be read.
        InvalidInputError: a scan cannot be scored.
        MmadFastError: the measuring process failed.
    """
    scans = _test_scans(dataset, category)
    overall: Accuracy | None = None
    defects: dict[str, Accuracy] = {}
    if not request.speed_only:
        evaluation = evaluate(
            detector,
            scans,
            aupro_mode=request.aupro_mode,
            unit=request.unit,
            progress=None if progress is None else _stage(progress, "evaluate"),
        )
        overall, defects = evaluation.overall, evaluation.defects
    _tell(progress, "time", 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        report = measure_detector_process(
            detector.artifact.path,
            _copy_scans(scans[:: max(1, len(scans) // SPEED_RUNS)], Path(folder), request.unit),
            num_threads=get_num_threads(),
            num_runs=SPEED_RUNS,
            engine=detector.engine_choice.engine,
            device=request.device,
            precision=detector.engine_choice.precision,
        )
    paper = request.protocol == "paper"
    latencies = report["prepared_latencies_ms" if paper else "latencies_ms"]
    stage_ms = {
        name: ms for name, ms in report["stage_ms"].items() if not (paper and name == "preprocess")
    }
    accuracy: dict[str, Any] = {} if overall is None else _accuracy_columns(overall)
    return replace(
        _row(detector, dataset, category, request, engine=engine_column(detector)),
        **_timing_columns(latencies),
        **accuracy,
        weights_mib=report["weights_mib"],
        # The papers' memory is that of the parameters alone.
        peak_working_mib=None if paper else report["peak_working_mib"],
        process_peak_mib=None if paper else report["process_peak_mib"],
        stage_ms=stage_ms,
        aupro_mode=None if overall is None else request.aupro_mode,
        defects={name: _accuracy_columns(accuracy) for name, accuracy in defects.items()} or None,
    )


def _row(
    detector: Detector, dataset: Dataset, category: str, request: MeasureRequest, *, engine: str
) -> BenchRow:
    configuration = configuration_of(detector.artifact.manifest.parameters)
    published = None
    if is_variants_own(detector.method, configuration):
        published = _published(get_variant(detector.method), category)
    return BenchRow(
        method=detector.method,
        category=category,
        protocol=request.protocol,
        device=request.device,
        engine=engine,
        threads=get_num_threads(),
        weights=_describe_weights(detector),
        published=published,
        data=dataset.root.resolve().name,
        configuration=configuration,
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
def _reference_row(
    detector: Detector,
    dataset: Dataset,
    category: str,
    fit_request: FitRequest,
    request: MeasureRequest,
) -> BenchRow:
    """The published pipeline, timed on the same scans, weights and threads as the detector.

    Its preprocessing is the detector's: the published one takes seconds and is run off-line.

    Raises:
        MmadFastError: an exact detector's answer differs from the reference's.
    """
    module, name = FAMILY_REFERENCES[detector.artifact.manifest.family].split(":")
    make_reference: Any = getattr(import_module(module), name)
    reference = make_reference(
        detector.artifact,
        rgb_weights=fit_request.rgb_weights,
        point_weights=fit_request.point_weights,
    )
    scans = _test_scans(dataset, category)
    latencies_ms, stages, differences = [], [], []
    for run in range(1 + REFERENCE_RUNS):
        scan = scans[run % len(scans)].load(unit=request.unit)
        start = time.perf_counter()
        prepared = detector.prepare(scan)
        if request.protocol == "paper":
            start = time.perf_counter()
        clock = StageClock()
        # The first run warms up and is compared: it breaks ties between equally near points as the
        # detector does, which costs a sort. The others are timed as published.
        scores = reference(prepared, clock, "any" if run else "lowest")
        latency_ms = (time.perf_counter() - start) * 1e3
        if run == 0:
            differences.append(_differences(detector.infer_prepared(prepared), scores))
        else:
            latencies_ms.append(latency_ms)
            stages.append(clock.stage_ms)
    largest = np.max(differences, axis=0)  # (2,), NaN where one is
    map_difference, score_difference = (float(value) for value in largest)
    if detector.is_exact and not (largest <= REFERENCE_TOLERANCE).all():
        raise MmadFastError(
            f"{category}: the detector differs from the published pipeline by {map_difference:.2e} "
            f"of the map's maximum and {score_difference:.2e} of the score, at most "
            f"{REFERENCE_TOLERANCE:g} is allowed; no timing. Check the artifact with `mmad-fast "
            "doctor`, and that both got the same weights"
        )
    return replace(
        _row(detector, dataset, category, request, engine="reference"),
        **_timing_columns(latencies_ms),
        stage_ms={name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
        map_difference=map_difference,
        score_difference=score_difference,
    )


def _differences(result: Scores, expected: Scores) -> tuple[float, float]:
    """(map, score) difference of a result, relative to the expected maximum and score."""
    tiny = float(np.finfo(np.float32).tiny)
    map_scale = max(float(np.abs(expected.anomaly_map).max()), tiny)
    score_scale = max(abs(expected.image_score), tiny)
    return (
        float(np.abs(result.anomaly_map - expected.anomaly_map).max()) / map_scale,
        abs(result.image_score - expected.image_score) / score_scale,
    )


def _copy_scans(scans: Sequence[ScanFile], folder: Path, unit: Unit) -> list[tuple[Path, Path]]:
    """(rgb file, xyz file) per scan as PNG and TIFF in metres, whatever layout they came from."""
    paths = []
    for index, file in enumerate(scans):
        scan = file.load(unit=unit)
        rgb_path, xyz_path = folder / f"{index}.png", folder / f"{index}.tiff"
        Image.fromarray(scan.rgb).save(rgb_path)
        tifffile.imwrite(xyz_path, scan.xyz, photometric="rgb")
        paths.append((rgb_path, xyz_path))
    return paths


def _published(variant: Variant, category: str) -> tuple[PublishedRow, ...]:
    """What the papers print for this category, or for the mean where it is none of theirs."""
    of_category = published_for(variant.published, category=category)
    if any(row.metric in ACCURACY_COLUMNS for row in of_category):
        return of_category
    return published_for(variant.published)


def _describe_weights(detector: Detector) -> str:
    weights = detector.artifact.manifest.weights
    return ", ".join(f"{role}: {weights[role]['kind']}" for role in ("rgb", "point"))


def _test_scans(dataset: Dataset, category: str) -> tuple[ScanFile, ...]:
    if "test" not in dataset.splits(category):
        raise DataError(
            f"{dataset.root}: category {category!r} has no test scans to measure on; put scans "
            "into test/good and test/<defect>"
        )
    return dataset.scans(category, "test")


def _with_available_weights(request: FitRequest, say: Callable[[str], None]) -> FitRequest:
    """The request with "auto" weights that cannot be had replaced by seeded random ones."""
    rgb_name = request.rgb_backbone or get_variant(request.method).rgb_backbone
    changes: dict[str, Any] = {}
    for field, name in (("rgb_weights", rgb_name), ("point_weights", "point-mae")):
        spec = getattr(request, field)
        if spec == "auto":
            try:
                resolve_weights(name, "auto")
            except WeightsError as error:
                say(f"note: {error}")
                spec = changes[field] = "random"
        if spec == "random":
            say(f"NOTE: {name} runs on seeded random weights: its accuracy means nothing")
    return replace(request, **changes)


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)


def _stage(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _nested(progress: Progress | None, prefix: str) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{prefix}: {what}", done, total)
