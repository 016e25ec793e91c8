"""What a sweep measures of detectors: accuracy, speed beside the published pipeline, fits, and what
is trained once for all categories. See sweep.py."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from detectors import StageTimes, accuracy_columns, differences, fit_request, medians, train_shared
from safetensors import safe_open
from sweep import Setting, Sweep

from mmad_fast.detector import Detector, load
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.evaluation import evaluate
from mmad_fast.measure.memory import measure_detector_process, peak_working_mib, process_peak_mib
from mmad_fast.measure.timing import Timing
from mmad_fast.methods.fit_request import FitRequest
from mmad_fast.methods.fit_run import fit_detector
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads

MAX_DIFFERENCE = 1e-3
"""Of an exact detector's map and score to the published pipeline's, relative; the map may differ by
the steps that its detector rounds to besides."""


def measure_accuracy(sweep: Sweep, folder: Path) -> None:
    """A row per setting and category: the accuracy of a fit, overall and per defect type."""
    shared: dict[int | None, Mapping[str, Any]] = {}
    for setting in sweep.settings():
        for category in sweep.categories:
            identity = {**setting.row, "category": category}
            if sweep.results.has(identity):
                continue
            request = fit_request(setting.fit)
            if setting.more.get("is_shared"):
                shots = request.shots
                if shots not in shared:
                    shared[shots] = shared_options(sweep, setting, folder / f"shared-{shots}")
                request = replace(request, options={**shared[shots], **request.options})
            start = time.perf_counter()
            detector = fit_detector(
                sweep.dataset, folder / "artifact", category=category, request=request
            )
            fit_s = time.perf_counter() - start
            evaluation = evaluate(detector, sweep.dataset.scans(category, "test"))
            defects = {name: accuracy_columns(one) for name, one in evaluation.defects.items()}
            sweep.results.add(
                {
                    **identity,
                    "data": sweep.data,
                    **facts_of(detector),
                    "num_train_scans": len(sweep.dataset.scans(category, "train")[: request.shots]),
                    "fit_s": fit_s,
                    **accuracy_columns(evaluation.overall),
                    "defects": defects,
                }
            )


def shared_options(sweep: Sweep, setting: Setting, folder: Path) -> dict[str, Any]:
    """The options that name what was trained on so many training scans of all categories."""
    request = fit_request({**setting.fit, **sweep.content["shared"]})
    trained = train_shared(sweep.dataset, sweep.categories, request, folder)
    return {
        name: value
        for name, value in trained.options.items()
        if name not in request.options or request.options[name] != value
    }


def facts_of(detector: Detector) -> dict[str, Any]:
    """What a detector is: parameters, backbones, where its weights came from, its banks."""
    manifest = detector.artifact.manifest
    kinds = {role: source["kind"] for role, source in detector.weight_sources.items()}
    return {
        "parameters": manifest.parameters,
        "backbones": {
            name: manifest.parameters[name]
            for branch in detector.family.branches
            if branch.key in kinds
            for name in branch.identity
        },
        "weights": kinds,
        "banks": {
            name.removeprefix("bank."): {"shape": list(tensor["shape"]), "repeated": 0}
            for name, tensor in manifest.tensors.items()
            if name.startswith("bank.")
        },
    }


@torch_threads()
def measure_speed(sweep: Sweep, folder: Path) -> None:
    """Per method a row of the published pipeline and one per setting.

    Every setting is a detector of its own in a torch-free process; the published pipeline runs in
    torch on the same weights. They take turns: where the machine gets slower or faster on the way,
    it does so for all of them. `before`: another version's interpreter, and an artifact of the
    (one) method that it fitted.
    """
    category = sweep.categories[0]
    scans = sweep.dataset.scans(category, "test")
    paths = [(scan.rgb_path, scan.xyz_path) for scan in scans]
    for method in sweep.fit["methods"]:
        detectors: dict[str, tuple[Path | str, str, str | None]] = {}  # artifact, engine, python
        for setting in sweep.settings():
            artifact = folder / method / setting.row["setting"]
            fit = {**setting.fit, "method": method}
            del fit["methods"]
            most = sweep.content.get("max_train_scans")
            fit_detector(
                sweep.dataset,
                artifact,
                category=category,
                request=fit_request(fit),
                max_train_scans=most,
            )
            engine = setting.more.get("engine", "onnxruntime")
            detectors[setting.row["setting"]] = (artifact, engine, None)
        first = load(next(iter(detectors.values()))[0])
        prepared = [first.prepare(scan.load()) for scan in scans[: sweep.options.rounds + 1]]
        published = first.family.reference(first.artifact, fit_request(fit).weights)
        expected = published(prepared[0], StageClock(), ties="lowest")
        found = {
            name: differences(load(path, engine=engine), prepared[0], expected)
            for name, (path, engine, _) in detectors.items()
        }
        check_exact(first, next(iter(found.values())))
        if sweep.options.before:
            python, artifact = sweep.options.before
            detectors["before"] = (artifact, "onnxruntime", python)
        latencies_ms, stages = [], []
        reports: dict[str, list[dict[str, Any]]] = {name: [] for name in detectors}
        for scan in prepared[1:]:
            clock, start = StageClock(), time.perf_counter()
            published(scan, clock, ties="any")
            latencies_ms.append((time.perf_counter() - start) * 1e3)
            stages.append(clock.stage_ms)
            for name, (path, engine, python) in detectors.items():
                report = measure_detector_process(
                    path,
                    paths,
                    num_threads=sweep.options.threads,
                    num_warmup=1,
                    num_runs=sweep.options.runs,
                    engine=engine,
                    python=python,
                )
                reports[name].append(report)
        facts = facts_of(first) | {"method": method, "data": sweep.data, "category": category}
        facts |= {"threads": sweep.options.threads}
        facts["rgb_backbone"] = facts["backbones"].get("rgb_backbone")
        peak = peak_working_mib(partial(published, prepared[0], StageClock(), ties="any"))
        published_ms = statistics.median(latencies_ms)
        row = {**facts, "setting": "published", "engine": "torch", "p50_ms": published_ms}
        row |= {"min_ms": min(latencies_ms), "runs": len(latencies_ms)}
        sweep.results.add({**row, "stage_ms": medians(stages), "peak_working_mib": peak})
        for name, of_setting in reports.items():
            row = {**facts, "setting": name, "engine": detectors[name][1]}
            row |= speed_columns(of_setting)
            row["ratio_to_published"] = published_ms / row["p50_ms"]
            if name in found:
                row["difference"] = dict(zip(("map", "score"), found[name], strict=True))
                row["map_difference"] = found[name][0] if name == next(iter(found)) else None
            sweep.results.add(row)


def check_exact(detector: Detector, difference: tuple[float, float]) -> None:
    """Raises where a detector that should be exact is not.

    Raises:
        MmadFastError: it differs from the published pipeline.
    """
    map_difference, score_difference = difference
    allowed = MAX_DIFFERENCE + detector.options.map_step
    if not (map_difference <= allowed and score_difference <= MAX_DIFFERENCE):
        raise MmadFastError(
            f"the detector differs from the published pipeline by {map_difference:.2e} of the "
            f"map's maximum and {score_difference:.2e} of the score, at most {allowed:.2g} and "
            f"{MAX_DIFFERENCE:g} are allowed; no timing"
        )


def speed_columns(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Time and memory of one detector, of the reports of its processes."""
    latencies_ms = [ms for report in reports for ms in report["prepared_latencies_ms"]]
    timing = Timing.from_latencies(latencies_ms)
    return {
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
        "min_ms": min(latencies_ms),
        "runs": timing.runs,
        "stage_ms": medians([report["stage_ms"] for report in reports]),
        "load_ms": statistics.median(report["load_ms"] for report in reports),
        "weights_mib": reports[0]["weights_mib"],
        "peak_working_mib": max(report["peak_working_mib"] for report in reports),
        "process_peak_mib": max(report["process_peak_mib"] for report in reports),
    }


def measure_fit(sweep: Sweep, folder: Path) -> None:
    """A row per setting: a fit's time by stage and its memory, in a process that runs nothing else
    and may not allocate more than the limit."""
    category = sweep.categories[0]
    limit = int(sweep.content["memory_limit_gib"] * 2**30)
    for setting in sweep.settings():
        num_scans = len(sweep.dataset.scans(category, "train"))
        identity = {**setting.row, "method": setting.fit["method"], "data": sweep.data}
        identity |= {"what": sweep.name, "num_scans": num_scans}
        if sweep.results.has(identity):
            continue
        request = fit_request(setting.fit)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            arguments = (sweep.dataset, folder / "artifact", category, request, limit)
            seconds, peak_mib = pool.submit(limited_fit, *arguments).result()
        detector = load(folder / "artifact")
        tensors = folder / "artifact" / "tensors.safetensors"
        sweep.results.add(
            {
                **identity,
                **facts_of(detector),
                "seconds": sum(seconds.values()),
                "stage_s": seconds,
                "process_peak_mib": peak_mib,
                "memory_limit_mib": limit / 2**20,
                "bank_mib": tensors.stat().st_size / 2**20,
                "num_threads": get_num_threads(),
            }
        )


def limited_fit(
    dataset: Any, output: Path, category: str, request: FitRequest, limit: int
) -> tuple[dict[str, float], float | None]:
    """(seconds by stage, peak memory in MiB) of a fit in this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    times = StageTimes()
    fit_detector(dataset, output, category=category, request=request, progress=times.report)
    times.report("writing", 1, 1)
    return times.seconds, process_peak_mib()


def measure_shared(sweep: Sweep, folder: Path) -> None:
    """A row per setting: what is trained once for all categories, what its file says of the
    training, and the seconds per update."""
    for number, setting in enumerate(sweep.settings()):
        if sweep.results.has(setting.row):
            continue
        times = StageTimes()
        request = fit_request(setting.fit)
        trained = train_shared(
            sweep.dataset, sweep.categories, request, folder / str(number), progress=times.report
        )
        times.report("writing", 1, 1)
        with safe_open(str(trained.options[sweep.content["option"]]), "numpy") as opened:
            (metadata,) = (opened.metadata() or {}).values()
        facts = json.loads(metadata)
        columns = {
            **facts[sweep.content["training"]],
            **{name: facts[of] for name, of in sweep.content["columns"].items()},
        }
        seconds = times.seconds[sweep.content["stage"]]
        sweep.results.add(
            {
                **setting.row,
                **columns,
                "data": sweep.data,
                "weights": facts["weights"],
                "wall_s_per_update": round(seconds / columns["updates"], 4),
                "threads": get_num_threads(),
            }
        )
