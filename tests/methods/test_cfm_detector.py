"""The torch-free detector against the dense reference, on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmad_fast.detector import load
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.branches.point_groups import network as point_groups
from mmad_fast.methods.branches.point_groups.graph import build_point_groups
from mmad_fast.methods.branches.vit_tokens import network as vit_tokens
from mmad_fast.methods.branches.vit_tokens.graph import build_vit_tokens
from mmad_fast.methods.cfm.detector import (
    CfmFeatures,
    CfmPipeline,
    FeatureExtractor,
    mapping_networks,
)
from mmad_fast.methods.cfm.networks import to_tensors
from mmad_fast.methods.cfm.options import MAPPINGS, CfmOptions
from mmad_fast.methods.cfm.reference import (
    ReferenceNetworks,
    ReferenceOptions,
    reference_infer,
)
from mmad_fast.methods.cfm.training import TrainingRecipe, train_mappings
from mmad_fast.methods.fit_request import FitRequest, FitTask, silent
from mmad_fast.ops.registry import Backend, Op
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

SMALL = FitRequest.of(
    rgb_backbone="dinov2-vits14",
    rgb_layers=1,
    point_layers=(0,),
    rgb_weights="random",
    point_weights="random",
    num_groups=128,
    group_size=32,
)
ALL_NETWORKS = tuple(name for by_map in MAPPINGS.values() for name in by_map.values())
FLOAT32_TOLERANCE, FLOAT64_TOLERANCE = 1e-4, 5e-5
"""Measured: up to 2.3e-5 of the map's maximum against float32, 8e-6 against float64."""


@dataclass(frozen=True)
class Fitted:
    """A detector with little training, so that its discrepancies are neither 0 nor saturated."""

    extractor: FeatureExtractor
    options: CfmOptions
    tensors: dict[str, NDArray]
    reference: ReferenceNetworks
    prepared: PreparedScan

    def pipeline(self, **changes: Any) -> CfmPipeline:
        options = replace(self.options, **changes)
        return CfmPipeline(self.extractor, mapping_networks(self.tensors, options), options)

    def differences(self, pipeline: CfmPipeline, dtype: str) -> tuple[float, float]:
        """Largest difference of the maps, and that of the scores, relative to the reference's."""
        fast = pipeline.score(self.prepared, StageClock())
        options = ReferenceOptions.of(pipeline.options, dtype=dtype)
        slow = reference_infer(self.prepared, self.reference, options)
        assert np.isfinite(slow.anomaly_map).all()
        assert slow.image_score > 0.01
        assert fast.anomaly_map.dtype == np.float32
        assert fast.anomaly_map.max() == np.float32(fast.image_score)
        map_difference = np.abs(slow.anomaly_map - fast.anomaly_map).max() / slow.image_score
        score_difference = abs(slow.image_score - fast.image_score) / slow.image_score
        return float(map_difference), score_difference


def fit_a_little(
    request: FitRequest,
    folder: Path,
    make_prepared_dome: Callable[..., PreparedScan],
    names: tuple[str, ...],
    recipe: TrainingRecipe,
    *,
    grid_size: int,
) -> Fitted:
    task = FitTask.of(request, [], folder, silent)
    options = replace(task.options, grid_size=grid_size)
    task = replace(task, options=options)
    rgb, point = build_vit_tokens(task), build_point_groups(task)
    extractor = FeatureExtractor(rgb.extractor, point.extractor, options)
    sizes = {"rgb_size": options.rgb_size, "grid_size": grid_size, "radius": 0.3}
    features = [
        extractor.extract(make_prepared_dome(seed, **sizes), StageClock()) for seed in range(2)
    ]
    networks, _ = train_mappings(features, features[:1], names, recipe=recipe)
    tensors: dict[str, NDArray] = {}
    for name, network in networks.items():
        tensors.update(to_tensors(network, f"{name}."))
    reference = ReferenceNetworks.of_tensors(
        vit_tokens.build_network(options, weights="random", seed=request.seed),
        point_groups.build_network(options, weights="random", seed=request.seed),
        tensors,
    )
    return Fitted(extractor, options, tensors, reference, make_prepared_dome(7, **sizes))


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, make_prepared_dome: Callable[..., PreparedScan]
) -> Fitted:
    recipe = TrainingRecipe(epochs=15, pixels_per_step=512, patience=None)
    folder = tmp_path_factory.mktemp("graphs")
    return fit_a_little(SMALL, folder, make_prepared_dome, ALL_NETWORKS, recipe, grid_size=112)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", FLOAT32_TOLERANCE), ("float64", FLOAT64_TOLERANCE)]
)
@pytest.mark.parametrize("mapping", ["crossmodal", "intramodal"])
def test_detector_equals_reference(fitted: Fitted, mapping: str, dtype: str, tolerance: float):
    pipeline = fitted.pipeline(mapping=mapping)
    map_difference, score_difference = fitted.differences(pipeline, dtype)
    assert map_difference < tolerance
    assert score_difference < tolerance


@pytest.mark.parametrize(
    "parameters",
    [
        {"aggregation": "sum"},
        {"aggregation": "max"},
        {"aggregation": "psi_2d"},
        {"aggregation": "psi_3d"},
        {"smoothing": "sigma4", "score_norm": "raw"},
    ],
    ids=lambda parameters: "-".join(parameters.values()),
)
def test_ablations_equal_reference(fitted: Fitted, parameters: dict[str, str]):
    map_difference, score_difference = fitted.differences(fitted.pipeline(**parameters), "float32")
    assert map_difference < FLOAT32_TOLERANCE
    assert score_difference < FLOAT32_TOLERANCE


@pytest.mark.parametrize("stride", [2, 4])
def test_a_coarser_grid_of_discrepancies_is_close_and_says_so(fitted: Fitted, stride: int):
    exact, coarse = fitted.pipeline(), fitted.pipeline(pixel_stride=stride)
    assert exact.options.is_exact
    assert not coarse.options.is_exact
    features = exact.extractor.extract(fitted.prepared, StageClock())
    expected = exact.score_features(features, StageClock()).anomaly_map
    result = coarse.score_features(features, StageClock()).anomaly_map
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 1e-6 < error < 0.03 * stride  # measured: 0.045 and 0.08
    # The mask is that of all pixels, not of the blocks.
    np.testing.assert_array_equal(result > 0, expected > 0)


def test_published_size_equals_reference(
    tmp_path: Path, make_prepared_dome: Callable[..., PreparedScan]
):
    """CFM-S with 1024 groups of 128 points; 10 s on two idle cores."""
    request = FitRequest.of("cfm-s", rgb_weights="random", point_weights="random")
    recipe = TrainingRecipe(epochs=3, pixels_per_step=256, patience=None)
    names = tuple(MAPPINGS["crossmodal"].values())
    fitted = fit_a_little(request, tmp_path, make_prepared_dome, names, recipe, grid_size=224)
    map_difference, score_difference = fitted.differences(fitted.pipeline(), "float32")
    assert map_difference < FLOAT32_TOLERANCE
    assert score_difference < FLOAT32_TOLERANCE


def test_map_is_zero_where_no_filter_reaches(fitted: Fitted):
    anomaly_map = fitted.pipeline().score(fitted.prepared, StageClock()).anomaly_map
    side = fitted.prepared.grid_size
    foreground = np.zeros(side * side, bool)
    foreground[fitted.prepared.pixel_indices] = True
    rows, columns = np.nonzero(foreground.reshape(side, side))
    reach = 22  # 19 of the boxes, 3 of pooling and resizing
    assert (anomaly_map[: rows.min() - reach] == 0).all()
    assert (anomaly_map[:, columns.max() + 1 + reach :] == 0).all()
    assert (anomaly_map[rows, columns] > 0).all()


def test_every_stage_is_timed(fitted: Fitted):
    clock = StageClock()
    fitted.pipeline().score(fitted.prepared, clock)
    assert list(clock.stage_ms) == [
        "rgb_tokens",
        "sampling",
        "grouping",
        "point_embedding",
        "point_features",
        "interpolation",
        "mapping",
        "scoring",
    ]


def test_scoring_is_thread_safe_and_repeatable(fitted: Fitted):
    pipeline = fitted.pipeline()
    expected = pipeline.score(fitted.prepared, StageClock())
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: pipeline.score(fitted.prepared, StageClock()), range(8)))
    for run in runs:
        np.testing.assert_array_equal(run.anomaly_map, expected.anomaly_map)


def keep_points(prepared: PreparedScan, count: int) -> PreparedScan:
    """The scan with its first points only."""
    return replace(
        prepared, points=prepared.points[:count], pixel_indices=prepared.pixel_indices[:count]
    )


@pytest.mark.parametrize("count", [0, 31])
def test_too_few_points_say_how_many_are_needed(fitted: Fitted, count: int):
    scan = keep_points(fitted.prepared, count)
    words = rf"'dome7' has {count} foreground points .* at least 32; .*empty fixture.*unit"
    with pytest.raises(EmptyScanError, match=words):
        fitted.pipeline().score(scan, StageClock())


@pytest.mark.parametrize("count", [32, 100])
def test_fewer_points_than_groups_give_a_finite_answer(fitted: Fitted, count: int):
    scores = fitted.pipeline().score(keep_points(fitted.prepared, count), StageClock())
    assert np.isfinite(scores.anomaly_map).all()
    assert scores.image_score > 0


def test_no_discrepancy_scores_zero(fitted: Fitted):
    """Networks of zeros against features of zeros: all unit vectors are 0, and so is psi."""
    features = fitted.extractor.extract(fitted.prepared, StageClock())
    nothing = CfmFeatures(
        np.zeros_like(features.tokens),
        features.token_rows,
        np.zeros_like(features.point_features),
        features.point_rows,
        features.pixel_indices,
    )
    tensors = {key: np.zeros_like(tensor) for key, tensor in fitted.tensors.items()}
    pipeline = replace(fitted, tensors=tensors).pipeline()
    scores = pipeline.score_features(nothing, StageClock())
    assert scores.image_score == 0
    assert (scores.anomaly_map == 0).all()


def test_extractor_uses_the_parameters_of_its_detector(fitted: Fitted):
    features = fitted.extractor.extract(fitted.prepared, StageClock())
    assert features.tokens.shape == (784, 384)
    assert features.point_features.shape == (128, 384)
    assert features.point_rows.num_rows == features.token_rows.num_rows
    assert (np.diff(features.pixel_indices) > 0).all()
    assert set(fitted.prepared.pixel_indices) <= set(features.pixel_indices)


def test_backends_are_chosen_when_a_detector_is_loaded(
    tiny_artifact: Path,
    scan_arrays: tuple[NDArray[np.uint8], NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = load(tiny_artifact)
    asked: list[str] = []
    resolve = Op.resolve

    def record(op: Op, backend: str = "auto", *, device: str = "cpu") -> Backend:
        asked.append(backend)
        return resolve(op, backend, device=device)

    monkeypatch.setattr(Op, "resolve", record)
    detector.infer(*scan_arrays)
    assert asked == ["cpu"] * 7  # five for the features, one per direction of the mapping
