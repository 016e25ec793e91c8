"""Accuracy of M3DM's configurations and switches, and few-shot: one JSON line per setting, number
of training scans and category.

    python bench/m3dm_configurations.py --data rendered3d --rgb-backbone dinov2-vits14 \
        --rgb-weights dinov2_vits14.safetensors --point-weights random --rgb-layers 8 \
        --point-layers 0 --results bench/results/m3dm_configurations.jsonl

One UFF is trained on the training scans of all categories first, as published, and given to every
fit that uses one; few-shot rows get one of their own, trained on their few scans. Rows that are in
the results file already are skipped, so that an interrupted run goes on. Time is measured by
m3dm_inference.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.measure.environment import environment
from mmad_fast.measure.evaluation import Accuracy, evaluate
from mmad_fast.methods.fitting import FitRequest, fit_detector
from mmad_fast.methods.m3dm.uff_categories import train_shared_uff
from mmad_fast.methods.variants import get_variant


@dataclass(frozen=True)
class Setting:
    """A detector that is fitted.

    Attributes:
        method: A name in methods/variants.py.
        options: What differs from the method's own: fields of FitRequest, or of its family.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method, and what differs from its own."""
        parts = (f"{name}={value}" for name, value in self.options.items())
        return " ".join((self.method, *parts))


REQUEST_FIELDS = ("num_groups", "group_size", "speed")
BACKBONE_PARAMETERS = {"rgb": ("rgb_backbone", "rgb_layers"), "point": ("point_layers",)}
SMALL_GROUPS = {"num_groups": 784, "group_size": 64}
GROUPS: dict[str, tuple[Setting, ...]] = {
    "configurations": (
        Setting("m3dm-rgb"),
        Setting("m3dm-3d"),
        Setting("m3dm-fusion", {"uff": "none"}),
        Setting("m3dm-fusion"),
        Setting("m3dm-rgb+3d-add"),
        Setting("m3dm-rgb+3d"),
        Setting("m3dm", {"uff": "none"}),
        Setting("m3dm"),
    ),
    "few-shot": (Setting("m3dm"), Setting("cfm-s")),
    "points": (
        Setting("m3dm-3d", {"point_patches": "groups", **SMALL_GROUPS}),
        Setting("m3dm-3d", {"point_patches": "groups"}),
        Setting("m3dm-3d", {"point_patches": "28x28", **SMALL_GROUPS}),
        Setting("m3dm-3d", {"point_patches": "28x28"}),
    ),
    "switches": (
        Setting("m3dm", {"bank_dtype": "float16"}),
        Setting("m3dm", {"speed": "fast"}),
        Setting("m3dm", {"bank_norm": "own"}),
        Setting("m3dm", {"coreset": "paper"}),
        Setting("m3dm", {"reweighting": "paper"}),
        Setting("m3dm", {"blur": "float"}),
    ),
}
"""The paper's Table 4; its Table 6; its Table 5; what its text and the public code differ in, and
what approximates."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", action="append", help="repeatable; default: all")
    parser.add_argument("--group", action="append", choices=GROUPS, help="repeatable; default: all")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10], help="few-shot numbers")
    parser.add_argument("--rgb-backbone")
    parser.add_argument("--rgb-weights", default="auto")
    parser.add_argument("--point-weights", default="auto")
    parser.add_argument("--rgb-layers", type=int)
    parser.add_argument("--point-layers", type=int, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--uff", type=Path, help="keep the UFF here; one that is there is used")
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    dataset = open_dataset(arguments.data)
    categories = arguments.category or list(dataset.categories())
    done = _done(arguments.results)
    wanted = [
        (setting, shots, category)
        for setting, shots in dict.fromkeys(_settings(arguments))
        for category in categories
        if (setting, shots, category, arguments.seed) not in done
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, shots, category in wanted:
            setting = next(s for group in GROUPS.values() for s in group if s.name == name)
            uff = arguments.uff or Path(folder) / "uff.safetensors"
            if shots is not None:
                uff = uff.with_stem(f"{uff.stem}-{shots}shot")
            if _uses_uff(setting) and not uff.exists():
                request = _request(Setting("m3dm"), shots, arguments)
                train_shared_uff(dataset, categories, request, uff)
            row = measure(dataset, category, setting, shots, uff, arguments)
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: row[key] for key in ("setting", "shots", "category")}))


def _settings(arguments: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """(setting, number of training scans or None for all) of the groups that were asked for."""
    for group in arguments.group or GROUPS:
        for setting in GROUPS[group]:
            for shots in (*arguments.shots, None) if group == "few-shot" else (None,):
                yield setting.name, shots


def measure(
    dataset: Dataset,
    category: str,
    setting: Setting,
    shots: int | None,
    uff: Path,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The row of one fit: its accuracy, overall and per defect type."""
    request = _request(setting, shots, arguments, uff)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        detector = fit_detector(dataset, folder, category=category, request=request)
        fit_s = time.perf_counter() - start
        evaluation = evaluate(detector, dataset.scans(category, "test"))
        manifest = detector.artifact.manifest
    return {
        "setting": setting.name,
        "shots": shots,
        "category": category,
        "seed": arguments.seed,
        "data": dataset.root.resolve().name,
        "backbones": {
            name: manifest.parameters[name]
            for modality in get_variant(setting.method).modalities
            for name in BACKBONE_PARAMETERS[modality]
        },
        "weights": {
            role: source["kind"] for role, source in manifest.weights.items() if role != "seed"
        },
        "num_train_scans": len(dataset.scans(category, "train")[:shots]),
        "banks": {
            name: tensor["shape"]
            for name, tensor in manifest.tensors.items()
            if name.startswith("bank.")
        },
        "fit_s": fit_s,
        **_columns(evaluation.overall),
        "defects": {name: _columns(accuracy) for name, accuracy in evaluation.defects.items()},
        "environment": environment(),
    }


def _request(
    setting: Setting, shots: int | None, arguments: argparse.Namespace, uff: Path | None = None
) -> FitRequest:
    modalities = get_variant(setting.method).modalities
    layers = arguments.point_layers if "point" in modalities else None
    reads_rgb = "rgb" in modalities
    common = {name: value for name, value in setting.options.items() if name in REQUEST_FIELDS}
    options = {name: value for name, value in setting.options.items() if name not in common}
    if uff is not None and _uses_uff(setting):
        options = {"uff": str(uff), **options}
    return FitRequest(
        method=setting.method,
        rgb_backbone=arguments.rgb_backbone if reads_rgb else None,
        rgb_weights=arguments.rgb_weights if reads_rgb else "auto",
        point_weights=arguments.point_weights if "point" in modalities else "auto",
        rgb_layers=arguments.rgb_layers if reads_rgb else None,
        point_layers=None if layers is None else tuple(layers),
        seed=arguments.seed,
        shots=shots,
        options=options,
        **common,
    )


def _uses_uff(setting: Setting) -> bool:
    return setting.method in ("m3dm", "m3dm-fusion") and setting.options.get("uff") != "none"


def _columns(accuracy: Accuracy) -> dict[str, float | None]:
    return {
        "i_auroc": accuracy.i_auroc,
        "p_auroc": accuracy.p_auroc,
        **{f"aupro_{round(100 * limit)}": value for limit, value in accuracy.aupro.items()},
    }


def _done(results: Path) -> set[tuple[str, int | None, str, int]]:
    if not results.exists():
        return set()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {(row["setting"], row["shots"], row["category"], row["seed"]) for row in rows}


if __name__ == "__main__":
    main()
