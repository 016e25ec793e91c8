from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ops.cases import (
    CLOUDS,
    Cloud,
    by_name,
    depth_frame,
    integer_cloud,
    uniform_cloud,
)
from ops.plain_float32 import nearest_in_float32

from mmad_fast import _kernels
from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.knn_grouping import OP, knn_grouping

ALL_BACKENDS = [backend.name for backend in OP.backends_of("cpu")]
FAST_BACKENDS = [name for name in ALL_BACKENDS if name != "reference"]
law = settings(derandomize=True, deadline=None, max_examples=30)


def some_centers(cloud: Cloud) -> NDArray[np.int64]:
    count = len(cloud.points)
    return np.random.default_rng(0).integers(0, count, min(count, 40))


def neighbor_counts(cloud: Cloud) -> list[int]:
    count = len(cloud.points)
    return sorted({1, min(7, count), min(128, count), count})


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize(
    "cloud", [cloud for cloud in CLOUDS if cloud.is_exact], ids=lambda cloud: cloud.name
)
def test_indices_equal_the_reference_on_integers(cloud: Cloud, backend: str) -> None:
    centers = some_centers(cloud)
    for num_neighbors in neighbor_counts(cloud):
        expected = knn_grouping(cloud.points, centers, num_neighbors, backend="reference")
        got = knn_grouping(cloud.points, centers, num_neighbors, backend=backend)
        assert (got.indices.dtype, got.groups.dtype) == (np.int64, np.float32)
        np.testing.assert_array_equal(got.indices, expected.indices)
        np.testing.assert_array_equal(got.groups, expected.groups)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("cloud", CLOUDS, ids=by_name)
def test_indices_equal_plain_float32(cloud: Cloud, backend: str) -> None:
    centers = some_centers(cloud)
    for num_neighbors in neighbor_counts(cloud):
        got = knn_grouping(cloud.points, centers, num_neighbors, backend=backend)
        expected = nearest_in_float32(cloud.points, centers, num_neighbors)
        np.testing.assert_array_equal(got.indices, expected)
        offsets = cloud.points[expected] - cloud.points[centers][:, None]
        np.testing.assert_array_equal(got.groups, offsets)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("cloud", CLOUDS, ids=by_name)
def test_the_distances_reached_are_the_smallest(cloud: Cloud, backend: str) -> None:
    exact, centers = cloud.points.astype(np.float64), some_centers(cloud)
    num_neighbors = min(64, len(exact))
    indices = knn_grouping(cloud.points, centers, num_neighbors, backend=backend).indices
    assert all(len(set(row)) == num_neighbors for row in indices.tolist())
    for row, center in zip(indices, exact[centers], strict=True):
        distances = np.linalg.norm(exact - center, axis=1)
        smallest = np.sort(distances)[:num_neighbors]
        np.testing.assert_allclose(distances[row], smallest, rtol=1e-6, atol=0)


def test_a_whole_frame_agrees_with_plain_float32() -> None:
    points = depth_frame(96, seed=7).points
    centers = np.arange(0, len(points), 9)
    got = knn_grouping(points, centers, 128)
    np.testing.assert_array_equal(got.indices, nearest_in_float32(points, centers, 128))


def test_equal_points_are_not_slow() -> None:
    """All boxes overlap and nothing can be pruned: a scan per centre, and no worse."""
    points = np.full((20_000, 3), 0.5, np.float32)
    got = knn_grouping(points, np.arange(64), 100)
    np.testing.assert_array_equal(got.indices, np.tile(np.arange(100), (64, 1)))
    assert not got.groups.any()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_repeated_centers_strided_read_only_and_float64_input(backend: str) -> None:
    points, centers = integer_cloud(90, seed=6), np.array([4, 4, 89])
    expected = knn_grouping(points, centers, 9, backend=backend)
    np.testing.assert_array_equal(expected.indices[0], expected.indices[1])
    assert expected.indices[:, 0].tolist() == [4, 4, 89]
    wide = np.full((180, 4), np.nan, np.float32)
    wide[::2, 1:] = points
    frozen = points.copy()
    frozen.flags.writeable = False
    for variant in (wide[::2, 1:], frozen, points.astype(np.float64)):
        for center_variant in (centers.astype(np.int32), np.repeat(centers, 2)[::2], [4, 4, 89]):
            got = knn_grouping(variant, center_variant, 9, backend=backend)
            np.testing.assert_array_equal(got.indices, expected.indices)
            np.testing.assert_array_equal(got.groups, expected.groups)


def test_the_kernel_writes_only_its_outputs() -> None:
    points, centers = depth_frame(40).points, np.array([0, 17, 33])
    indices = np.full((9, 21), -77, np.int64)
    groups = np.full((9, 21, 3), np.nan, np.float32)
    _kernels.knn_grouping(_kernels.PointIndex(points), centers, 21, indices[3:6], groups[3:6])
    expected = nearest_in_float32(points, centers, 21)
    np.testing.assert_array_equal(indices[3:6], expected)
    np.testing.assert_array_equal(groups[3:6], points[expected] - points[centers][:, None])
    for guard in (slice(0, 3), slice(6, 9)):
        assert (indices[guard] == -77).all()
        assert np.isnan(groups[guard]).all()


@law
@given(seed=st.integers(0, 10**6), count=st.integers(2, 150), drop=st.integers(1, 10**6))
def test_points_that_are_no_neighbours_do_not_matter(seed: int, count: int, drop: int) -> None:
    points = uniform_cloud(count, seed=seed)
    num_neighbors = max(1, count // 3)
    full = knn_grouping(points, [0], num_neighbors).indices[0]
    is_kept = np.random.default_rng(drop).uniform(size=count) < 0.5
    is_kept[full] = True
    is_kept[0] = True
    kept = np.flatnonzero(is_kept)
    part = knn_grouping(points[kept], [0], num_neighbors).indices[0]
    np.testing.assert_array_equal(kept[part], full)


@law
@given(seed=st.integers(0, 10**6), count=st.integers(2, 150))
def test_smaller_groups_are_the_beginning_of_larger_ones(seed: int, count: int) -> None:
    points = integer_cloud(count, high=9, seed=seed)
    whole = knn_grouping(points, [count - 1], count).indices
    for num_neighbors in (1, count // 2, count - 1):
        part = knn_grouping(points, [count - 1], num_neighbors).indices
        np.testing.assert_array_equal(part, whole[:, :num_neighbors])


@law
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 100),
    shift=st.tuples(*[st.integers(-1000, 1000)] * 3),
)
def test_the_position_of_the_cloud_does_not_matter(
    seed: int, count: int, shift: tuple[int, int, int]
) -> None:
    points = integer_cloud(count, high=50, seed=seed)
    here = knn_grouping(points, [0], count)
    there = knn_grouping(points + np.float32(shift), [0], count)
    np.testing.assert_array_equal(here.indices, there.indices)
    np.testing.assert_array_equal(here.groups, there.groups)


CLOUD = integer_cloud(10)
WITH_NAN = CLOUD.copy()
WITH_NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("points", "centers", "num_neighbors", "words"),
    [
        (CLOUD, [0], 11, "there are 10 points for groups of 11 .* a larger cloud or a smaller num"),
        (CLOUD[:0], [0], 1, "there are 0 points for groups of 1"),
        (CLOUD, [0], 0, "num_neighbors is 0; it must be at least 1"),
        (CLOUD, [0], 2.5, "num_neighbors is 2.5; it must be an integer"),
        (CLOUD, [], 2, "center_indices is empty; at least 1 centre is needed"),
        (CLOUD, [0, 10], 2, r"center_indices holds 10; it must be in 0\.\.9, the range of the poi"),
        (CLOUD, [-1, 3], 2, "center_indices holds -1"),
        (CLOUD, [0.0], 2, "center_indices has dtype float64; it must hold integer indices"),
        (CLOUD, [True], 2, "center_indices has dtype bool"),
        (CLOUD, [[0]], 2, r"center_indices has shape \(1, 1\); it must be \(any\)"),
        (CLOUD, None, 2, "center_indices is a builtins.NoneType"),
        (WITH_NAN, [0], 2, "a NaN in 1 of 10 rows"),
        (CLOUD.astype(np.int64), [0], 2, "points has dtype int64"),
        (CLOUD.T, [0], 2, r"points has shape \(3, 10\)"),
    ],
)
def test_bad_input_is_refused(points: Any, centers: Any, num_neighbors: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        knn_grouping(points, centers, num_neighbors)
