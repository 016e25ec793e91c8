"""The detector against the published pipeline, prepared arrays to score, and what each switch that
approximates gains: one JSON line per setting.

    python bench/end_to_end.py --method cfm-s --data rendered3d --category cookie \
        --results bench/results/end_to_end.jsonl

Every setting is a detector of its own in a torch-free process; the published pipeline runs in torch
on the same weights. They take turns, so that the machine's moods hit all alike. The networks are
trained for one epoch: time does not depend on it. Accuracy is measured by approximations.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, load
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.environment import environment
from mmad_fast.measure.memory import measure_detector_process
from mmad_fast.measure.timing import Timing
from mmad_fast.methods.cfm.reference import reference_pipeline
from mmad_fast.methods.fitting import FitRequest, fit_detector
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads, set_num_threads

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "pixel_stride=2": {"pixel_stride": 2},
    "pixel_stride=4": {"pixel_stride": 4},
    "group_size=32": {"group_size": 32},
    "batch_norm=calibrated": {"batch_norm": "calibrated"},
    "precision=int8": {"precision": "int8"},
    "fast": {"speed": "fast"},
}
TRAIN_SCANS = 2
MAX_DIFFERENCE = 1e-3
"""Of the exact detector's map to the published pipeline's, relative to its maximum."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", action="append", help="repeatable; default: cfm-s, cfm")
    parser.add_argument("--data", type=Path, help="default: the procedural set")
    parser.add_argument("--category")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="default: all")
    parser.add_argument("--rgb-weights", default="random")
    parser.add_argument("--point-weights", default="random")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5, help="of each detector per round")
    parser.add_argument(
        "--before",
        nargs=2,
        metavar=("PYTHON", "ARTIFACT"),
        help="another version's interpreter and an artifact of the (one) method fitted by it, as "
        "the setting 'before'",
    )
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    set_num_threads(arguments.threads)
    for method in arguments.method or ("cfm-s", "cfm"):
        with tempfile.TemporaryDirectory() as folder, torch_threads():
            for row in measure(method, Path(folder), arguments):
                line = json.dumps(row)
                print(line, flush=True)
                if arguments.results is not None:
                    with arguments.results.open("a") as file:
                        file.write(line + "\n")


def measure(method: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one method: the published pipeline and every setting."""
    dataset = open_dataset(arguments.data or built_in_set(None))
    category = pick_category(dataset, arguments.category)
    weights = {"rgb_weights": arguments.rgb_weights, "point_weights": arguments.point_weights}
    for name in arguments.setting or SETTINGS:
        request = FitRequest(method=method, epochs=1, **weights, **SETTINGS[name])
        fit_detector(
            dataset,
            folder / name,
            category=category,
            request=request,
            max_train_scans=TRAIN_SCANS,
        )
    exact = load(folder / "exact")
    scans = dataset.scans(category, "test")
    prepared = [exact.prepare(scan.load()) for scan in scans[: arguments.rounds + 1]]
    reference = reference_pipeline(exact.artifact, **weights)
    difference = _difference(exact, reference, prepared[0])
    paths = [(scan.rgb_path, scan.xyz_path) for scan in scans]
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.setting or SETTINGS}
    if arguments.before is not None:
        reports["before"] = []
    reference_ms, reference_stages = [], []
    for scan in prepared[1:]:
        clock = StageClock()
        start = time.perf_counter()
        reference(scan, clock, "any")
        reference_ms.append((time.perf_counter() - start) * 1e3)
        reference_stages.append(clock.stage_ms)
        for name, of_setting in reports.items():
            python, artifact = arguments.before if name == "before" else (None, folder / name)
            of_setting.append(
                measure_detector_process(
                    artifact,
                    paths,
                    num_threads=arguments.threads,
                    num_warmup=1,
                    num_runs=arguments.runs,
                    engine=arguments.engine,
                    python=python,
                )
            )
    facts = {
        "method": method,
        "data": dataset.root.resolve().name,
        "category": category,
        "threads": arguments.threads,
        "environment": environment(),
    }
    rows = [
        {
            **facts,
            "setting": "published",
            "engine": "torch",
            "p50_ms": statistics.median(reference_ms),
            "min_ms": min(reference_ms),
            "runs": len(reference_ms),
            "stage_ms": _median(reference_stages),
        }
    ]
    for name, of_setting in reports.items():
        timing = Timing.from_latencies([x for r in of_setting for x in r["prepared_latencies_ms"]])
        rows.append(
            {
                **facts,
                "setting": name,
                "engine": arguments.engine,
                "p50_ms": timing.p50_ms,
                "p95_ms": timing.p95_ms,
                "min_ms": min(x for r in of_setting for x in r["prepared_latencies_ms"]),
                "runs": timing.runs,
                "ratio_to_published": statistics.median(reference_ms) / timing.p50_ms,
                "map_difference": difference if name == "exact" else None,
                "stage_ms": _median([report["stage_ms"] for report in of_setting]),
                "weights_mib": of_setting[0]["weights_mib"],
                "peak_working_mib": max(report["peak_working_mib"] for report in of_setting),
                "process_peak_mib": max(report["process_peak_mib"] for report in of_setting),
            }
        )
    return rows


def _difference(exact: Detector, reference: Callable[..., Any], prepared: PreparedScan) -> float:
    """Largest difference of the maps, relative to the published one's maximum; warms up both."""
    expected = reference(prepared, StageClock()).anomaly_map
    result = exact.infer_prepared(prepared).anomaly_map
    difference = float(np.abs(result - expected).max() / expected.max())
    if not difference <= MAX_DIFFERENCE:
        raise SystemExit(
            f"the detector differs from the published pipeline by {difference:.2e} of the map's "
            f"maximum, at most {MAX_DIFFERENCE:g} is allowed; no timing"
        )
    return difference


def _median(stages: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(stage[name] for stage in stages) for name in stages[0]}


if __name__ == "__main__":
    main()
