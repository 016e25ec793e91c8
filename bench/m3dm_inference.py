"""The M3DM detector against the published pipeline, prepared arrays to score, with banks of bagel's
size (76,518 point, 7,651 RGB and 7,651 fused rows): one JSON line per setting.

    python bench/m3dm_inference.py --data rendered3d --category cookie \
        --results bench/results/m3dm_inference.jsonl

By default DINO ViT-B/8 and Point-MAE with random weights, so that rows have the published widths
(1152, 768, 1920). With real weights of another width:

    python bench/m3dm_inference.py --data rendered3d --category cookie \
        --rgb-backbone dinov2-vits14 --rgb-weights dinov2_vits14.safetensors

The banks are drawn at random from the patches of the set's good scans, not by the coreset; where
there are too few, rows are repeated with a little noise, and `bank_rows` says how many are. The
feature fusion has the weights of a file, or initial ones: time does not depend on them.

Every setting is a detector in a torch-free process of its own; the published pipeline runs in torch
here, on the same weights and banks. They take turns, so that the machine's moods hit all alike. The
published pipeline's peak working memory is that of its first scan.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact, write_artifact
from mmad_fast.backbones.table import get_rgb_spec
from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, load
from mmad_fast.errors import EmptyScanError
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.environment import environment
from mmad_fast.measure.memory import measure_detector_process, peak_working_mib
from mmad_fast.measure.timing import Timing
from mmad_fast.methods.fitting import FitRequest, fit_detector
from mmad_fast.methods.m3dm.bank_queries import bank_queries, normalize_rows
from mmad_fast.methods.m3dm.detector import M3dmPipeline
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, save_uff
from mmad_fast.methods.m3dm.parameters import BANK_PREFIX, M3dmParameters
from mmad_fast.methods.m3dm.reference import ReferenceScores, reference_pipeline
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.methods.variants import get_variant
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS
from mmad_fast.scan import PreparedScan, Result
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads, set_num_threads

BAGEL_ROWS = {"point": 76_518, "rgb": 7_651, "fusion": 7_651}
DTYPES = ("float32", "float16")
TRAIN_SCANS = 2
REPEAT_NOISE = 0.05
"""Of repeated rows, relative to the standard deviation of all elements."""
MAX_DIFFERENCE = 1e-3
"""Of the exact detector's score to the published pipeline's, relative; its map may differ by steps
of the 8-bit blur."""

Reference = Callable[..., ReferenceScores]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="default: the procedural set")
    parser.add_argument("--category", help="of the scans that are scored")
    parser.add_argument("--rgb-backbone")
    parser.add_argument("--rgb-weights", default="random")
    parser.add_argument("--rgb-layers", type=int)
    parser.add_argument("--point-weights", default="random")
    parser.add_argument("--point-layers", type=int, nargs="+")
    parser.add_argument("--uff", type=Path, help="weights of the feature fusion; default: initial")
    parser.add_argument("--scale", type=float, default=1.0, help="of the banks' numbers of rows")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5, help="of each detector per round")
    parser.add_argument("--results", type=Path, help="append the rows here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="mmad-fast-bench-") as folder, torch_threads():
        for row in measure(Path(folder), arguments):
            line = json.dumps(row)
            print(line, flush=True)
            if arguments.results is not None:
                with arguments.results.open("a") as file:
                    file.write(line + "\n")


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows: the published pipeline, and a detector per type of the banks."""
    dataset = open_dataset(arguments.data or built_in_set())
    category = pick_category(dataset, arguments.category)
    small = fit_small(dataset, category, folder, arguments)
    banks, repeated = make_banks(dataset, small, arguments.scale)
    artifacts = {
        dtype: write_with_banks(small.artifact, banks, dtype, folder / dtype) for dtype in DTYPES
    }
    bank_rows = {
        name: {"shape": list(rows.shape), "repeated": repeated[name]}
        for name, rows in banks.items()
    }
    del banks
    reference = reference_pipeline(
        artifacts["float32"].artifact,
        rgb_weights=arguments.rgb_weights,
        point_weights=arguments.point_weights,
    )
    scans = dataset.scans(category, "test")
    prepared = [small.prepare(scan.load()) for scan in scans[: arguments.rounds + 1]]
    published = {
        "setting": "published",
        "engine": "torch",
        "peak_working_mib": peak_working_mib(lambda: reference(prepared[0], StageClock(), "any")),
    }
    expected = reference(prepared[0], StageClock())
    differences = {
        dtype: difference(detector.infer_prepared(prepared[0]), expected)
        for dtype, detector in artifacts.items()
    }
    if not differences["float32"]["score"] <= MAX_DIFFERENCE:
        raise SystemExit(f"not the published pipeline's answer: {differences}; no timing")
    paths = [(scan.rgb_path, scan.xyz_path) for scan in scans]
    timed, reports = take_turns(reference, prepared[1:], paths, folder, arguments)
    facts = {
        "what": "m3dm_inference",
        "method": "m3dm",
        "data": dataset.root.resolve().name,
        "category": category,
        "rgb_backbone": small.artifact.manifest.parameters["rgb_backbone"],
        "weights": {"rgb": kind(arguments.rgb_weights), "point": kind(arguments.point_weights)},
        "banks": bank_rows,
        "threads": arguments.threads,
        "environment": environment(),
    }
    rows = [{**facts, **published, **timed}]
    for dtype, of_setting in reports.items():
        costs = summary(of_setting, timed["p50_ms"])
        setting = {"setting": dtype, "engine": arguments.engine, "difference": differences[dtype]}
        rows.append({**facts, **setting, **costs})
    return rows


def kind(weights: str) -> str:
    """Random, or the file's name: no path, since it names a machine."""
    return Path(weights).name


def fit_small(
    dataset: Dataset, category: str, folder: Path, arguments: argparse.Namespace
) -> Detector:
    """A detector with the backbones and banks of a few scans."""
    backbones = {
        "rgb_backbone": arguments.rgb_backbone,
        "rgb_weights": arguments.rgb_weights,
        "rgb_layers": arguments.rgb_layers,
        "point_weights": arguments.point_weights,
        "point_layers": tuple(arguments.point_layers) if arguments.point_layers else None,
    }
    uff = arguments.uff
    if uff is None:
        variant = get_variant("m3dm")
        spec = get_rgb_spec(arguments.rgb_backbone or variant.rgb_backbone)
        layers = arguments.point_layers or variant.point_layers
        initial = FeatureFusionBlock(TOKEN_CHANNELS * len(layers), spec.dim)
        uff = save_uff(initial, folder / "uff.safetensors", {})
    request = FitRequest(method="m3dm", options={"uff": str(uff)}, **backbones)
    return fit_detector(
        dataset,
        folder / "small",
        category=category,
        request=request,
        max_train_scans=TRAIN_SCANS,
    )


def make_banks(
    dataset: Dataset, detector: Detector, scale: float
) -> tuple[dict[str, NDArray[np.float32]], dict[str, int]]:
    """(normalised rows (M, C) by bank, drawn from the set's good scans; how many are repeated)."""
    pipeline = pipeline_of(detector)
    parameters = pipeline.parameters
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in parameters.banks}
    wanted = {name: max(3, round(scale * rows)) for name, rows in BAGEL_ROWS.items()}
    rng = np.random.default_rng(0)
    for scan in good_scans(dataset):
        if all(sum(map(len, parts[name])) >= wanted[name] for name in parts):
            break
        try:
            features = pipeline.extractor.extract(detector.prepare(scan.load()), StageClock())
        except EmptyScanError:
            continue
        for name, part in parts.items():
            rows = bank_queries(features, parameters, name).rows
            if name != "point":  # a part of each scan, so that they come from many
                rows = rows[rng.permutation(len(rows))[: wanted[name] // 40 + 1]]
            part.append(normalize_rows(rows, parameters.bank_scales[name]).copy())
    banks, repeated = {}, {}
    for name, part in parts.items():
        rows = np.concatenate(part)
        repeated[name] = max(0, wanted[name] - len(rows))
        chosen = rng.permutation(len(rows))
        chosen = np.resize(chosen, wanted[name])
        bank = rows[chosen]
        noisy = bank[len(rows) :]
        noisy += (REPEAT_NOISE * rows.std()) * rng.standard_normal(noisy.shape, np.float32)
        banks[name] = bank
    return banks, repeated


def good_scans(dataset: Dataset) -> list[Any]:
    """Of all categories, in turns, training scans first."""
    by_category = [
        [
            scan
            for split in ("train", "validation")
            for scan in dataset.scans(category, split)
            if scan.defect in ("", "good")
        ]
        for category in dataset.categories()
    ]
    longest = max(map(len, by_category))
    return [scans[i] for i in range(longest) for scans in by_category if i < len(scans)]


def pipeline_of(detector: Detector) -> M3dmPipeline:
    pipeline = detector._pipeline
    assert isinstance(pipeline, M3dmPipeline)
    return pipeline


def write_with_banks(
    artifact: Artifact, banks: Mapping[str, NDArray[np.float32]], dtype: str, path: Path
) -> Detector:
    """The artifact's detector with other banks."""
    manifest = artifact.manifest
    parameters = M3dmParameters.from_dict(manifest.parameters)
    stored = {BANK_PREFIX + name: rows.astype(dtype) for name, rows in banks.items()}
    write_artifact(
        path,
        method=manifest.method,
        family=manifest.family,
        preprocess=manifest.preprocess,
        parameters=replace(parameters, bank_dtype=dtype).to_dict(),
        threshold=manifest.threshold,
        weights=manifest.weights,
        graphs={name: artifact.graph_path(name) for name in manifest.graphs},
        tensors={**artifact.tensors(), **stored},
        golden=artifact.golden(),  # of the small banks; nothing replays it here
    )
    return load(path, engine="onnxruntime")


def difference(result: Result, expected: ReferenceScores) -> dict[str, float]:
    """Of the score, relative, and of the map, relative to the published one's maximum."""
    largest = float(np.abs(expected.anomaly_map).max())
    return {
        "score": abs(result.image_score - expected.image_score) / abs(expected.image_score),
        "map": float(np.abs(result.anomaly_map - expected.anomaly_map).max()) / largest,
    }


def take_turns(
    reference: Reference,
    prepared: list[PreparedScan],
    paths: list[tuple[Path, Path]],
    folder: Path,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(the published pipeline's times, the reports of each detector's processes)."""
    latencies_ms, stages = [], []
    reports: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in DTYPES}
    for scan in prepared:
        clock = StageClock()
        start = time.perf_counter()
        reference(scan, clock, "any")
        latencies_ms.append((time.perf_counter() - start) * 1e3)
        stages.append(clock.stage_ms)
        for dtype, of_setting in reports.items():
            of_setting.append(
                measure_detector_process(
                    folder / dtype,
                    paths,
                    num_threads=arguments.threads,
                    num_warmup=1,
                    num_runs=arguments.runs,
                    engine=arguments.engine,
                )
            )
    timed = {
        "p50_ms": statistics.median(latencies_ms),
        "min_ms": min(latencies_ms),
        "runs": len(latencies_ms),
        "stage_ms": median(stages),
    }
    return timed, reports


def summary(reports: list[dict[str, Any]], published_ms: float) -> dict[str, Any]:
    """Time, ratio and memory of one detector."""
    latencies_ms = [ms for report in reports for ms in report["prepared_latencies_ms"]]
    timing = Timing.from_latencies(latencies_ms)
    return {
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
        "min_ms": min(latencies_ms),
        "runs": timing.runs,
        "ratio_to_published": published_ms / timing.p50_ms,
        "stage_ms": median([report["stage_ms"] for report in reports]),
        "load_ms": statistics.median(report["load_ms"] for report in reports),
        "weights_mib": reports[0]["weights_mib"],
        "peak_working_mib": max(report["peak_working_mib"] for report in reports),
        "process_peak_mib": max(report["process_peak_mib"] for report in reports),
    }


def median(stages: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(stage[name] for stage in stages) for name in stages[0]}


if __name__ == "__main__":
    main()
