"""M3DM's run half against its own definition: all patches densely, all distances in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmad_fast.errors import ArtifactError
from mmad_fast.methods.branches.point_groups.extractor import PointGroups
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures, bank_queries, distinct_rows
from mmad_fast.methods.m3dm.detector import (
    BankScores,
    M3dmPipeline,
    PatchExtractor,
    PatchFusion,
    decide,
    read_banks,
)
from mmad_fast.methods.m3dm.options import BANKS, M3dmOptions
from mmad_fast.methods.memory_bank import scoring
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_weights
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.stage_clock import StageClock

TOKEN_GRID, POINT_CHANNELS, RGB_CHANNELS = 7, 5, 3
WIDTHS = {"point": POINT_CHANNELS, "rgb": RGB_CHANNELS, "fusion": POINT_CHANNELS + RGB_CHANNELS}


def parameters(**changes: Any) -> M3dmOptions:
    values = {
        "rgb_backbone": "dinov2-vits14",
        "rgb_size": 98,
        "token_grid": TOKEN_GRID,
        "rgb_layers": 1,
        "point_layers": (0,),
        "bank_scales": dict.fromkeys(changes.get("banks", BANKS), (0.25, 1.5)),
        "blur": "float",
    }
    return M3dmOptions(**{**values, **changes})


def random_rows(num_rows: int, num_channels: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (num_rows, num_channels)).astype(np.float32)


def patch_features(patches: NDArray[np.int64], *, uses_uff: bool = True) -> PatchFeatures:
    num_rows, num_tokens = len(patches), TOKEN_GRID**2
    return PatchFeatures(
        tokens=random_rows(num_tokens, RGB_CHANNELS, 1),
        point_rows=random_rows(num_rows, POINT_CHANNELS, 2),
        patches=patches,
        fused_points=random_rows(num_rows + 1, POINT_CHANNELS, 3) if uses_uff else None,
        fused_tokens=random_rows(num_tokens, RGB_CHANNELS, 4) if uses_uff else None,
    )


def disc(grid: int) -> NDArray[np.int64]:
    rows, columns = np.mgrid[0:grid, 0:grid]
    return np.flatnonzero(np.hypot(rows - grid / 2, columns - grid / 2.2) < grid / 3)


def banks_of(num_rows: int = 60, dtype: str = "float32") -> dict[str, NDArray]:
    return {
        bank: random_rows(num_rows, width, 10 + i).astype(dtype)
        for i, (bank, width) in enumerate(WIDTHS.items())
    }


def pipeline_of(params: M3dmOptions, banks: Mapping[str, NDArray]) -> M3dmPipeline:
    prepared = {bank: PreparedBank(banks[bank]) for bank in params.banks}
    return M3dmPipeline(PatchExtractor(None, None, params), prepared, params)


def dense_patches(features: PatchFeatures, params: M3dmOptions, bank: str) -> NDArray:
    """(L, C) the feature of every patch, one by one."""
    if bank == "rgb":
        return features.tokens
    grid = params.patch_grid
    points, tokens = features.point_rows, features.tokens
    background = np.zeros(POINT_CHANNELS, np.float32)
    if bank == "fusion" and params.uses_uff:
        points, tokens = features.fused_points[:-1], features.fused_tokens
        background = features.fused_points[-1]
    rows = []
    for patch in range(grid**2):
        place = np.flatnonzero(features.patches == patch)
        point = points[place[0]] if len(place) else background
        row, column = (position * TOKEN_GRID // grid for position in divmod(patch, grid))
        token = tokens[row * TOKEN_GRID + column]
        rows.append(np.concatenate([point, token]) if bank == "fusion" else point)
    return np.stack(rows)


def dense_scores(features: PatchFeatures, params: M3dmOptions, bank: str, rows: NDArray):
    """(distances (L,), image score of the bank), by definition."""
    mean, std = params.bank_scales[bank]
    patches = (dense_patches(features, params, bank) - np.float32(mean)) / np.float32(std)
    differences = patches.astype(np.float64)[:, None] - rows.astype(np.float64)
    distances = np.sqrt((differences**2).sum(axis=2))  # (L, M)
    nearest = distances.min(axis=1)
    worst = nearest.argmax()
    center = rows[distances[worst].argmin()].astype(np.float64)
    order = np.argsort(((rows - center) ** 2).sum(axis=1), kind="stable")
    score = scoring.reweight(
        nearest[worst],
        distances[worst, order[1:3]],
        num_channels=rows.shape[1],
        reweighting=params.reweighting,
        weight_epsilon=params.weight_epsilon,
        distance_divisor=params.distance_divisor,
    )
    return nearest, score


PATCHES = {
    "a disc": lambda grid: disc(grid),
    "all": lambda grid: np.arange(grid**2),
    "one": lambda grid: np.array([grid + 1]),
}


@pytest.mark.parametrize("foreground", PATCHES)
@pytest.mark.parametrize("point_patches", ["56x56", "28x28"])
@pytest.mark.parametrize("uses_uff", [True, False])
def test_each_bank_is_its_dense_definition(
    foreground: str, point_patches: str, uses_uff: bool
) -> None:
    params = parameters(point_patches=point_patches, uses_uff=uses_uff)
    features = patch_features(PATCHES[foreground](params.patch_grid), uses_uff=uses_uff)
    banks = banks_of()
    got = pipeline_of(params, banks).bank_scores(features, StageClock())
    assert tuple(got) == BANKS
    for bank in BANKS:
        distances, score = dense_scores(features, params, bank, banks[bank])
        side = TOKEN_GRID if bank == "rgb" else params.patch_grid
        upsampled = torch.nn.functional.interpolate(
            torch.from_numpy(distances.reshape(1, 1, side, side)), size=(224, 224), mode="bilinear"
        )[0, 0].numpy()
        expected = scoring.blur_float(upsampled.astype(np.float32))
        np.testing.assert_allclose(got[bank].anomaly_map, expected, rtol=1e-6, err_msg=bank)
        assert got[bank].score == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("foreground", PATCHES)
def test_distinct_rows_are_all_patches_and_no_row_twice(bank: str, foreground: str) -> None:
    params = parameters(point_patches="28x28")
    features = patch_features(PATCHES[foreground](28))
    rows, owner = bank_queries(features, params, bank)
    np.testing.assert_array_equal(rows[owner], dense_patches(features, params, bank))
    assert sorted(set(owner.tolist())) == list(range(len(rows)))
    assert len(np.unique(rows, axis=0)) == len(rows)
    point_index, token_index, same_owner = distinct_rows(features.patches, params, bank)
    np.testing.assert_array_equal(owner, same_owner)
    assert (point_index is None, token_index is None) == (bank == "rgb", bank == "point")


def test_the_first_of_equally_far_patches_is_reweighted() -> None:
    """Background patches come first in the dense order, their row is the last of the distinct."""
    params = parameters(banks=("point",), decision="single", bank_scales={})
    rows = np.array([[1, 0, 0, 0, 0], [0, 3, 0, 0, 0], [0, 3.5, 0, 0, 0], [1, 0, 0, 9, 0]], "f")
    at_the_second = np.array([[0, 2, 0, 0, 0]], "f")
    expected = {}
    for first, neighbors in (
        ("background", [3.0, 3.5]),
        ("foreground", [1.5, np.sqrt(5)]),
    ):
        features = PatchFeatures(
            None, at_the_second, np.array([100 if first == "background" else 0])
        )
        pipeline = pipeline_of(params, {"point": rows})
        score = pipeline.bank_scores(features, StageClock())["point"].score
        expected[first] = scoring.reweight(
            1.0, np.array(neighbors), num_channels=5, reweighting="code"
        )
        assert score == pytest.approx(expected[first], rel=1e-6)
    assert expected["background"] != pytest.approx(expected["foreground"])


def test_point_groups_as_patches_spread_their_distances(make_prepared_dome) -> None:
    prepared = make_prepared_dome(0, rgb_size=56)
    params = parameters(banks=("point",), decision="single", point_patches="groups", num_groups=40)
    centers = prepared.points[:: len(prepared.points) // 40][:40]
    groups = PointGroups(
        random_rows(40, POINT_CHANNELS, 5), inverse_distance_weights(prepared.points, centers)
    )
    extractor = PatchExtractor(None, FakePoints(groups), params)
    features = extractor.extract(prepared, StageClock())
    rows = banks_of()["point"]
    got = M3dmPipeline(extractor, {"point": PreparedBank(rows)}, params).bank_scores(
        features, StageClock()
    )["point"]
    mean, std = params.bank_scales["point"]
    normalized = (groups.features - np.float32(mean)) / np.float32(std)
    distances = np.sqrt(((normalized[:, None] - rows) ** 2).sum(axis=2)).min(axis=1)  # (G,)
    per_point = (groups.weights.weights * distances[groups.weights.indices]).sum(axis=1)
    dense = torch.zeros(224 * 224)
    dense[torch.from_numpy(prepared.pixel_indices)] = torch.from_numpy(per_point)
    pooled = torch.nn.functional.avg_pool2d(dense.reshape(1, 1, 224, 224), 3, stride=1)
    resized = torch.nn.functional.adaptive_avg_pool2d(pooled, 224)[0, 0].numpy()
    np.testing.assert_allclose(got.anomaly_map, scoring.blur_float(resized), rtol=1e-5, atol=1e-6)


def test_the_decision_is_a_weighted_sum() -> None:
    params = parameters(
        score_weights={"point": 2.0, "rgb": -0.5, "fusion": 1.0},
        map_weights={"point": 1.0, "rgb": 0.1, "fusion": -1.0},
        score_offset=0.25,
        map_offset=-3.0,
    )
    maps = {bank: random_rows(224, 224, i) for i, bank in enumerate(BANKS)}
    given = {bank: BankScores(float(i + 1), maps[bank]) for i, bank in enumerate(BANKS)}
    decided = decide(given, params)
    assert decided.image_score == pytest.approx(2.0 * 1 - 0.5 * 2 + 3 + 0.25)
    expected = maps["point"] + 0.1 * maps["rgb"] - maps["fusion"] - 3
    np.testing.assert_allclose(decided.anomaly_map, expected, rtol=1e-5, atol=1e-6)
    assert decided.anomaly_map.dtype == np.float32


def test_scores_and_stages_of_a_scan() -> None:
    params = parameters(score_weights={"rgb": 0.1}, map_weights={"rgb": 0.1}, blur="pil8bit")
    pipeline, clock = pipeline_of(params, banks_of()), StageClock()
    features = patch_features(disc(56))
    scores = pipeline.score_features(features, clock)
    decided = decide(pipeline.bank_scores(features, StageClock()), params)
    assert scores.image_score == decided.image_score
    np.testing.assert_array_equal(scores.anomaly_map, decided.anomaly_map)
    assert list(clock.stage_ms) == [
        "point_bank",
        "reweighting",
        "maps",
        "rgb_bank",
        "fusion_bank",
        "decision",
    ]
    np.testing.assert_array_equal(
        pipeline.published_evaluation_maps(scores.anomaly_map), [scores.anomaly_map] * 2
    )


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_a_bank_of_few_rows(num_rows: int) -> None:
    params = parameters()
    scores = pipeline_of(params, banks_of(num_rows)).score_features(
        patch_features(disc(56)), StageClock()
    )
    assert np.isfinite(scores.image_score)
    assert np.isfinite(scores.anomaly_map).all()


def test_half_precision_bank_is_scored_as_its_float32_values() -> None:
    params = parameters(bank_dtype="float16")
    banks = banks_of(dtype="float16")
    features = patch_features(disc(56))
    half = pipeline_of(params, banks).score_features(features, StageClock())
    widened = {bank: rows.astype(np.float32) for bank, rows in banks.items()}
    full = pipeline_of(params, widened).score_features(features, StageClock())
    assert half.image_score == full.image_score
    np.testing.assert_array_equal(half.anomaly_map, full.anomaly_map)


@dataclass
class FakePoints:
    """A PointExtractor whose groups are given."""

    point_groups: PointGroups

    def groups(self, prepared: Any, clock: StageClock) -> PointGroups:
        return self.point_groups


@dataclass
class FakeEngine:
    """A graph that adds 1 to its rows, and remembers what it was given."""

    input_shapes: dict[str, tuple[int, ...]]
    given: list[NDArray] = field(default_factory=list)

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        (rows,) = inputs.values()
        assert rows.shape == self.input_shapes["rows"]
        assert rows.dtype == np.float32
        self.given.append(rows)
        return {"fused": rows + 1}


@pytest.mark.parametrize(("num_rows", "num_blocks"), [(1, 1), (3, 1), (4, 2), (9, 3)])
def test_fusion_runs_in_blocks_and_ends_with_the_background(num_rows: int, num_blocks: int) -> None:
    point = FakeEngine({"rows": (1, 4, POINT_CHANNELS)})
    rgb = FakeEngine({"rows": (1, TOKEN_GRID**2, RGB_CHANNELS)})
    features = patch_features(np.arange(num_rows), uses_uff=False)
    fused = PatchFusion(point, rgb).fuse(features)
    assert len(point.given) == num_blocks
    assert not point.given[-1][0, num_rows % 4 :].any()
    np.testing.assert_array_equal(fused.fused_points[:num_rows], features.point_rows + 1)
    np.testing.assert_array_equal(fused.fused_points[num_rows], np.ones(POINT_CHANNELS))
    np.testing.assert_array_equal(fused.fused_tokens, features.tokens + 1)
    np.testing.assert_array_equal(fused.point_rows, features.point_rows)


@pytest.mark.parametrize("point_patches", ["56x56", "28x28"])
def test_point_rows_are_the_dense_pooled_map(make_prepared_dome, point_patches: str) -> None:
    prepared = make_prepared_dome(0, rgb_size=56)
    params = parameters(banks=("point",), decision="single", point_patches=point_patches)
    centers = prepared.points[:: len(prepared.points) // 50][:50]
    groups = PointGroups(
        random_rows(50, POINT_CHANNELS, 5), inverse_distance_weights(prepared.points, centers)
    )
    features = PatchExtractor(None, FakePoints(groups), params).extract(prepared, StageClock())
    assert features.tokens is None
    per_point = (groups.weights.weights[..., None] * groups.features[groups.weights.indices]).sum(
        axis=1
    )
    dense = torch.zeros(POINT_CHANNELS, 224 * 224)
    dense[:, torch.from_numpy(prepared.pixel_indices)] = torch.from_numpy(per_point.T.copy())
    pooled = torch.nn.functional.avg_pool2d(dense.reshape(1, -1, 224, 224), 3, stride=1)
    grid = params.patch_grid
    expected = torch.nn.functional.adaptive_avg_pool2d(pooled, grid)[0].reshape(-1, grid**2).T
    got = np.zeros((grid**2, POINT_CHANNELS), np.float32)
    got[features.patches] = features.point_rows
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)
    is_foreground = expected.numpy().any(axis=1)
    np.testing.assert_array_equal(features.patches, np.flatnonzero(is_foreground))


def fake_artifact(tensors: dict[str, NDArray]) -> Any:
    shapes = {"tokens": (1, TOKEN_GRID**2, RGB_CHANNELS), "features": (1, 40, POINT_CHANNELS)}
    return SimpleNamespace(
        path=Path("detector"),
        tensors=lambda: tensors,
        output_shape=lambda graph, output: shapes[output],
    )


def test_banks_are_read_as_they_lie() -> None:
    rows = banks_of()["point"]
    params = parameters(banks=("point",), decision="single")
    banks = read_banks(fake_artifact({"bank.point": rows}), params)
    assert np.shares_memory(banks["point"].rows, rows)
    everything = {f"bank.{bank}": rows for bank, rows in banks_of().items()}
    assert tuple(read_banks(fake_artifact(everything), parameters())) == BANKS


@pytest.mark.parametrize("bank", BANKS)
def test_a_bank_of_other_width_is_an_artifact_error(bank: str) -> None:
    params = parameters(banks=(bank,), decision="single")
    rows = random_rows(20, WIDTHS[bank] + 1, 0)
    with pytest.raises(ArtifactError, match=f"bank '{bank}' has shape.*{WIDTHS[bank]} channels"):
        read_banks(fake_artifact({f"bank.{bank}": rows}), params)


def test_a_bank_of_another_type_or_with_nan_is_an_artifact_error() -> None:
    params = parameters(banks=("point",), decision="single")
    rows = banks_of()["point"]
    half = replace(params, bank_dtype="float16")
    with pytest.raises(ArtifactError, match="bank 'point' is float32.*say float16.*fit"):
        read_banks(fake_artifact({"bank.point": rows}), half)
    rows[3, 2] = np.nan
    with pytest.raises(ArtifactError, match="bank 'point' cannot be searched.*fit"):
        read_banks(fake_artifact({"bank.point": rows}), params)
