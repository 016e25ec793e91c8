"""The ops on one shared index, on clouds made to break it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import ADVERSARIAL_CLOUDS, Cloud, by_name, depth_frame, integer_cloud
from ops.plain_float32 import nearest_in_float32, sample_in_float32, weights_in_float32

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_interpolation,
    inverse_distance_weights,
)
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.threads import get_num_threads, set_num_threads


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def some_of(count: int, num: int) -> NDArray[np.int64]:
    return np.random.default_rng(count).permutation(count)[:num].astype(np.int64)


@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_samples_equal_plain_float32(cloud: Cloud) -> None:
    points = cloud.points
    for start_index, skip_near_origin in ((0, False), (len(points) // 2, True)):
        got = farthest_point_sampling(
            points, 200, start_index=start_index, skip_near_origin=skip_near_origin
        )
        expected = sample_in_float32(points, 200, start_index, skip_near_origin=skip_near_origin)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_groups_equal_plain_float32(cloud: Cloud) -> None:
    index, count = PointIndex(cloud.points), len(cloud.points)
    centers = some_of(count, 12)
    for num_neighbors in sorted({min(k, count) for k in (1, 3, 32, 128, 700)}):
        got = knn_grouping(cloud.points, centers, num_neighbors, index=index)
        expected = nearest_in_float32(cloud.points, centers, num_neighbors)
        np.testing.assert_array_equal(got.indices, expected)
        offsets = cloud.points[expected] - cloud.points[centers][:, None]
        np.testing.assert_array_equal(got.groups, offsets)


@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_weights_equal_plain_float32(cloud: Cloud) -> None:
    points = cloud.points
    centers = points[some_of(len(points), 300)]
    centers = np.concatenate([centers, centers[:2], points[:1], points[:1]])  # with duplicates
    got = inverse_distance_weights(points, centers)
    is_checked = some_of(len(points), 2500)
    expected_indices, expected_weights = weights_in_float32(points[is_checked], centers)
    np.testing.assert_array_equal(got.indices[is_checked], expected_indices)
    np.testing.assert_array_equal(got.weights[is_checked], expected_weights)
    assert np.isfinite(got.weights).all()


def test_centres_far_from_all_points_are_found() -> None:
    points, centers = integer_cloud(500, high=9), integer_cloud(40, high=90, seed=1) + 5000
    indices, weights = weights_in_float32(points, centers)
    got = inverse_distance_weights(points, centers)
    np.testing.assert_array_equal(got.indices, indices)
    np.testing.assert_array_equal(got.weights, weights)


def all_results(
    points: NDArray[np.float32], index: PointIndex | None, backend: str
) -> list[NDArray[Any]]:
    options: Any = {"index": index, "backend": backend}
    samples = farthest_point_sampling(points, 60, start_index=7, **options)
    centers = points[samples]
    features = np.random.default_rng(0).normal(size=(60, 21)).astype(np.float32)
    return [
        samples,
        *knn_grouping(points, samples, 50, **options),
        *inverse_distance_weights(points, centers, **options),
        inverse_distance_interpolation(features, centers, points, **options),
    ]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_shared_index_changes_nothing(backend: str) -> None:
    points = depth_frame(64, seed=8).points
    index = PointIndex(points)
    alone = all_results(points, None, backend)
    for variant in (points, points.copy(), points.astype(np.float64)):
        for got, expected in zip(all_results(variant, index, backend), alone, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_the_reference_never_builds_the_kernels_index() -> None:
    points = integer_cloud(80)
    index = PointIndex(points)
    all_results(points, index, "reference")
    assert index._kernel_index is None
    all_results(points, index, "cpu")
    built = index.kernel_index
    all_results(points, index, "cpu")
    assert index.kernel_index is built


@pytest.mark.usefixtures("restored_threads")
def test_the_number_of_threads_changes_nothing() -> None:
    points = depth_frame(448, coverage=0.5).points
    assert len(points) > 80_000  # several subtrees
    set_num_threads(1)
    expected = all_results(points, None, "cpu")
    for num_threads in (2, 5):
        set_num_threads(num_threads)
        for got, wanted in zip(all_results(points, None, "cpu"), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(expected[0], sample_in_float32(points, 60, 7))


def test_the_index_keeps_its_points_alive() -> None:
    index = PointIndex(depth_frame(40).points.astype(np.float64))  # converted: nobody else has it
    points = index.points.copy()
    kernel_index = index.kernel_index
    expected = all_results(points, None, "cpu")
    del index.points
    index.points = points
    assert index.kernel_index is kernel_index
    for got, wanted in zip(all_results(points, index, "cpu"), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_index_of_other_points_is_refused() -> None:
    points = integer_cloud(80)
    index = PointIndex(points)
    for other in (points[:79], points + 1, points[::-1]):
        with pytest.raises(InvalidInputError, match="index is of 80 other points; .*PointIndex"):
            farthest_point_sampling(other, 5, index=index)
    with pytest.raises(InvalidInputError, match="index is of 80 other points"):
        knn_grouping(points[1:], [0], 5, index=index)
    with pytest.raises(InvalidInputError, match="index is of 80 other points"):
        inverse_distance_weights(points[1:], points[:9], index=index)
    with pytest.raises(InvalidInputError, match="index is a ndarray; it must be a PointIndex"):
        farthest_point_sampling(points, 5, index=points)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"points has shape \(4, 2\)"):
        PointIndex(np.zeros((4, 2), np.float32))


def test_dense_features_equal_the_weighted_rows_to_the_bit() -> None:
    points = depth_frame(64).points
    centers = points[::40]
    for channels in (1, 3, 16, 101):
        features = np.random.default_rng(2).normal(size=(len(centers), channels))
        features = features.astype(np.float32)
        indices, weights = inverse_distance_weights(points, centers)
        terms = weights[:, :, None] * features[indices]
        np.testing.assert_array_equal(
            inverse_distance_interpolation(features, centers, points),
            (terms[:, 0] + terms[:, 1]) + terms[:, 2],
        )
