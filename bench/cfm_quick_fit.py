"""Is CFM's quick fit as good as the dense published recipe? One JSON row per category and recipe.

    python bench/cfm_quick_fit.py --data DATA_SET --rgb-weights dinov2_vits14.safetensors

Both recipes train on the same cached features of the same scans and are rated on the same test
scans, so that only the training differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data import Dataset, ScanFile, open_dataset
from mmad_fast.measure.metrics import aupro, image_auroc
from mmad_fast.methods.cfm.fit import cache_features
from mmad_fast.methods.cfm.fit_options import CfmFitOptions
from mmad_fast.methods.cfm.frozen_part import (
    FrozenPart,
    assemble_pipeline,
    build_frozen_part,
    extract_features,
)
from mmad_fast.methods.cfm.networks import to_tensors
from mmad_fast.methods.cfm.scoring import published_evaluation_maps
from mmad_fast.methods.cfm.training import (
    ScanFeatures,
    TrainingRecipe,
    dense_recipe,
    train_mappings,
)
from mmad_fast.preprocess import prepare_ground_truth
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class CategoryFeatures:
    """Features of one category's scans, with the labels and masks (S, S) of its test scans."""

    train: ScanFeatures
    validation: ScanFeatures
    test: ScanFeatures
    labels: tuple[bool, ...]
    masks: tuple[NDArray[np.bool_], ...]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", action="append", help="only this category; repeatable")
    parser.add_argument("--rgb-backbone", default="dinov2-vits14")
    parser.add_argument("--rgb-weights", required=True)
    parser.add_argument("--rgb-layers", type=int, default=8)
    parser.add_argument("--point-weights", default="random")
    parser.add_argument("--point-layers", default="0")
    parser.add_argument("--quick-epochs", type=int, help="default: as many as fit_cfm takes")
    parser.add_argument("--dense-epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1, help="runs per recipe, seeds 0, 1, ...")
    return parser.parse_args()


def extract_category(
    dataset: Dataset, category: str, frozen: FrozenPart, options: CfmFitOptions, scratch: Path
) -> CategoryFeatures:
    """The features of all scans of a category; test scans too go through the deployed graphs."""
    train, validation = cache_features(
        dataset.scans(category, "train"),
        dataset.scans(category, "validation"),
        frozen,
        options,
        scratch,
        progress=lambda *_: None,
    )
    test = dataset.scans(category, "test")
    return CategoryFeatures(
        train,
        validation,
        [extract_features(scan, frozen, options) for scan in test],
        tuple(scan.defect != "good" for scan in test),
        tuple(ground_truth(scan, options) for scan in test),
    )


def ground_truth(scan: ScanFile, options: CfmFitOptions) -> NDArray[np.bool_]:
    mask = scan.load_ground_truth()
    if mask is None:
        sys.exit(f"{scan.name}: has no ground truth; the comparison needs labelled test scans")
    return prepare_ground_truth(mask, RECIPES[options.recipe])


def rate(
    features: CategoryFeatures, frozen: FrozenPart, recipe: TrainingRecipe
) -> dict[str, float | int]:
    """Trains by the recipe and rates the detector as the published evaluation does."""
    start = time.perf_counter()
    networks, record = train_mappings(
        features.train,
        features.validation,
        tuple(frozen.parameters.networks.values()),
        recipe=recipe,
    )
    seconds = time.perf_counter() - start
    tensors: dict[str, NDArray] = {}
    for name, network in networks.items():
        tensors.update(to_tensors(network, f"{name}."))
    pipeline = assemble_pipeline(frozen, tensors)
    scores = [pipeline.score_features(scan, StageClock()) for scan in features.test]
    maps = [published_evaluation_maps(score.anomaly_map)[0] for score in scores]
    areas = aupro(maps, features.masks, limits=(0.3, 0.01), mode="published")
    return {
        "epochs": record.epochs,
        "best_epoch": record.best_epoch,
        "train_seconds": round(seconds, 1),
        "validation_loss": record.validation_losses[record.best_epoch - 1],
        "i_auroc": image_auroc([score.image_score for score in scores], features.labels),
        "aupro_30": areas[0.3],
        "aupro_1": areas[0.01],
    }


def main() -> None:
    arguments = parse_arguments()
    options = CfmFitOptions(
        rgb_backbone=arguments.rgb_backbone,
        rgb_weights=arguments.rgb_weights,
        rgb_layers=arguments.rgb_layers,
        point_weights=arguments.point_weights,
        point_layers=tuple(int(layer) for layer in arguments.point_layers.split(",")),
    )
    dataset = open_dataset(arguments.data)
    recipes: Sequence[tuple[str, Callable[[int], TrainingRecipe]]] = (
        ("quick", lambda seed: TrainingRecipe(epochs=arguments.quick_epochs, seed=seed)),
        ("dense", lambda seed: dense_recipe(epochs=arguments.dense_epochs, seed=seed)),
    )
    with tempfile.TemporaryDirectory() as folder:
        frozen = build_frozen_part([], options, Path(folder), progress=lambda *_: None)
        for category in arguments.category or dataset.categories():
            features = extract_category(dataset, category, frozen, options, Path(folder))
            for name, recipe in recipes:
                for seed in range(arguments.seeds):
                    row = rate(features, frozen, recipe(seed))
                    row = {"category": category, "recipe": name, "seed": seed, **row}
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
