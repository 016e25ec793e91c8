"""What the switches that approximate cost in accuracy: one JSON line per setting and category.

    python bench/approximations.py --data rendered3d --rgb-backbone dinov2-vits14 \
        --rgb-weights dinov2_vits14.safetensors --point-weights random --rgb-layers 8 \
        --point-layers 0 --seed 0 --results bench/results/approximations.jsonl

Each setting is fitted and evaluated with the same seed; rows that are in the results file already
are skipped, so that an interrupted run goes on. Their time is measured by end_to_end.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.detector import Detector, load
from mmad_fast.measure.environment import environment
from mmad_fast.measure.evaluation import evaluate
from mmad_fast.methods.cfm.detector import CfmFeatures, CfmPipeline, FeatureExtractor
from mmad_fast.methods.cfm.fit_options import SPEEDS
from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.fitting import FitRequest, fit_detector
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

FITS: dict[str, dict[str, Any]] = {
    "exact": {},
    "group_size=32": {"group_size": 32},
    "batch_norm=calibrated": {"batch_norm": "calibrated"},
    "precision=int8": {"precision": "int8"},
    "fast": {key: value for key, value in SPEEDS["fast"].items() if key != "pixel_stride"},
}
"""Switches that a detector is fitted with. The stride of the pixels is none of them."""

STRIDES: dict[str, tuple[int, ...]] = {
    "exact": (1, 2, 4),
    "fast": (SPEEDS["fast"]["pixel_stride"],),
}


class RememberedFeatures:
    """An extractor that computes the features of each scan once."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.backends = extractor.backends
        self._extractor = extractor
        self._features: dict[str, CfmFeatures] = {}

    def extract(self, prepared: PreparedScan, clock: StageClock) -> CfmFeatures:
        if prepared.name not in self._features:
            self._features[prepared.name] = self._extractor.extract(prepared, clock)
        return self._features[prepared.name]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", action="append", help="repeatable; default: all")
    parser.add_argument("--fit", action="append", choices=FITS, help="repeatable; default: all")
    parser.add_argument("--method", default="cfm-s")
    parser.add_argument("--rgb-backbone")
    parser.add_argument("--rgb-weights", default="auto")
    parser.add_argument("--point-weights", default="auto")
    parser.add_argument("--rgb-layers", type=int)
    parser.add_argument("--point-layers", type=int, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    dataset = open_dataset(arguments.data)
    done = _done(arguments.results)
    for category in arguments.category or dataset.categories():
        for name in arguments.fit or FITS:
            settings = [(name, stride) for stride in STRIDES.get(name, (1,))]
            if all((category, *setting, arguments.seed) in done for setting in settings):
                continue
            for row in measure(dataset, category, name, arguments):
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps({key: row[key] for key in ("category", "fit", "pixel_stride")}))


def measure(
    dataset: Dataset, category: str, name: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of one fit: its accuracy with each stride."""
    layers = arguments.point_layers
    request = FitRequest(
        method=arguments.method,
        rgb_backbone=arguments.rgb_backbone,
        rgb_weights=arguments.rgb_weights,
        point_weights=arguments.point_weights,
        rgb_layers=arguments.rgb_layers,
        point_layers=None if layers is None else tuple(layers),
        seed=arguments.seed,
        **FITS[name],
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fit_detector(dataset, folder, category=category, request=request)
        detector = load(folder)
        choice = detector.engine_choice
        pipeline = CfmPipeline.from_artifact(detector.artifact, engine=choice)
        pipeline.extractor = RememberedFeatures(pipeline.extractor)
        for stride in STRIDES.get(name, (1,)):
            pipeline.parameters = replace(pipeline.parameters, pixel_stride=stride)
            evaluation = evaluate(
                Detector(detector.artifact, pipeline, choice), dataset.scans(category, "test")
            )
            accuracy = evaluation.overall
            rows.append(
                {
                    "category": category,
                    "fit": name,
                    "pixel_stride": stride,
                    "seed": arguments.seed,
                    "parameters": _shown(pipeline.parameters),
                    "i_auroc": accuracy.i_auroc,
                    "p_auroc": accuracy.p_auroc,
                    **{f"aupro_{round(100 * x)}": value for x, value in accuracy.aupro.items()},
                    "data": dataset.root.resolve().name,
                    "environment": environment(),
                }
            )
    return rows


def _shown(parameters: CfmParameters) -> dict[str, Any]:
    names = ("rgb_backbone", "rgb_layers", "point_layers", "group_size", "batch_norm", "precision")
    return {name: parameters.to_dict()[name] for name in names}


def _done(results: Path) -> set[tuple[str, str, int, int]]:
    if not results.exists():
        return set()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {(row["category"], row["fit"], row["pixel_stride"], row["seed"]) for row in rows}


if __name__ == "__main__":
    main()
