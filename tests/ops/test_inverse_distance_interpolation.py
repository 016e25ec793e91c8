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
from ops.plain_float32 import weights_in_float32

from mmad_fast import _kernels
from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    OP,
    POOLED_ROWS_OP,
    InterpolationWeights,
    PooledRows,
    inverse_distance_interpolation,
    inverse_distance_weights,
    pooled_interpolation_rows,
    reference,
)

ALL_BACKENDS = [backend.name for backend in OP.backends_of("cpu")]
FAST_BACKENDS = [name for name in ALL_BACKENDS if name != "reference"]
CLOUDS_WITH_THREE_POINTS = [cloud for cloud in CLOUDS if len(cloud.points) >= 3]
law = settings(derandomize=True, deadline=None, max_examples=30)


def centers_of(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return points[np.random.default_rng(0).permutation(len(points))[: max(3, len(points) // 9)]]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("cloud", CLOUDS_WITH_THREE_POINTS, ids=by_name)
def test_the_nearest_centres_are_found(cloud: Cloud, backend: str) -> None:
    centers = centers_of(cloud.points)
    indices, _ = inverse_distance_weights(cloud.points, centers, backend=backend)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, weights_in_float32(cloud.points, centers)[0])
    exact_indices, _ = reference.exact_weights(cloud.points, centers)
    if cloud.is_exact:
        np.testing.assert_array_equal(indices, exact_indices)
    distances = np.linalg.norm(
        cloud.points[:, None].astype(np.float64) - centers[indices].astype(np.float64), axis=-1
    )
    smallest = np.linalg.norm(
        cloud.points[:, None].astype(np.float64) - centers[exact_indices].astype(np.float64),
        axis=-1,
    )
    np.testing.assert_allclose(distances, smallest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("cloud", CLOUDS_WITH_THREE_POINTS, ids=by_name)
def test_weights_are_as_good_as_weights_in_float32(cloud: Cloud, backend: str) -> None:
    centers = centers_of(cloud.points)
    indices, weights = inverse_distance_weights(cloud.points, centers, backend=backend)
    exact_indices, exact = reference.exact_weights(cloud.points, centers)
    plain = weights_in_float32(cloud.points, centers)[1]
    is_same = (indices == exact_indices).all(axis=1)  # others are equally near within rounding
    assert is_same.mean() > 0.99
    error = np.abs(weights - exact)[is_same].max()
    plain_error = np.abs(plain - exact)[is_same].max()
    assert error <= 2 * plain_error + 1e-7, (error, plain_error)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=3e-7)
    assert (weights > 0).all()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_point_on_a_centre_takes_its_feature(backend: str) -> None:
    frame = depth_frame(64, seed=4)
    centers = frame.points[farthest_point_sampling(frame.points, 60)]
    features = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    dense = inverse_distance_interpolation(features, centers, centers, backend=backend)
    np.testing.assert_allclose(dense, features, atol=1e-2)
    indices, weights = inverse_distance_weights(centers, centers, backend=backend)
    assert indices[:, 0].tolist() == list(range(60))
    assert (weights[:, 0] > 0.99).all()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("channels", [1, 7, 384])
def test_dense_features_agree_with_the_reference(channels: int, backend: str) -> None:
    points = depth_frame(40, seed=4).points
    centers = centers_of(points)
    features = np.random.default_rng(1).normal(size=(len(centers), channels)).astype(np.float32)
    expected = reference.inverse_distance_interpolation(features, centers, points)
    got = inverse_distance_interpolation(features, centers, points, backend=backend)
    assert got.shape == (len(points), channels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_no_points_give_no_weights(backend: str) -> None:
    centers = integer_cloud(3)
    nothing = np.empty((0, 3), np.float32)
    indices, weights = inverse_distance_weights(nothing, centers, backend=backend)
    assert indices.shape == weights.shape == (0, 3)
    dense = inverse_distance_interpolation(
        np.ones((3, 4), np.float32), centers, nothing, backend=backend
    )
    assert dense.shape == (0, 4)


def test_strided_read_only_and_float64_input() -> None:
    points, centers = integer_cloud(50, seed=6), integer_cloud(11, seed=7)
    expected = inverse_distance_weights(points, centers)
    wide = np.full((100, 4), np.nan, np.float32)
    wide[::2, 1:] = points
    frozen = centers.copy()
    frozen.flags.writeable = False
    got = inverse_distance_weights(wide[::2, 1:], frozen)
    np.testing.assert_array_equal(got.indices, expected.indices)
    np.testing.assert_array_equal(got.weights, expected.weights)
    got = inverse_distance_weights(points.astype(np.float64), centers.tolist())
    np.testing.assert_array_equal(got.weights, expected.weights)


def test_the_kernel_writes_only_its_outputs() -> None:
    points = depth_frame(52).points[:601]
    assert len(points) == 601
    centers = centers_of(points)
    indices = np.full((607, 3), -77, np.int64)
    weights = np.full((607, 3), np.nan, np.float32)
    _kernels.inverse_distance_weights(
        _kernels.PointIndex(points), centers, indices[3:-3], weights[3:-3]
    )
    np.testing.assert_array_equal(indices[3:-3], weights_in_float32(points, centers)[0])
    assert np.isfinite(weights[3:-3]).all()
    for guard in (slice(0, 3), slice(-3, None)):
        assert (indices[guard] == -77).all()
        assert np.isnan(weights[guard]).all()


@law
@given(seed=st.integers(0, 10**6), num_centers=st.integers(3, 80))
def test_the_order_of_points_and_centres_does_not_matter(seed: int, num_centers: int) -> None:
    points, centers = uniform_cloud(20, seed=seed), uniform_cloud(num_centers, seed=seed + 1)
    rng = np.random.default_rng(seed)
    point_order, center_order = rng.permutation(20), rng.permutation(num_centers)
    here = inverse_distance_weights(points, centers)
    there = inverse_distance_weights(points[point_order], centers[center_order])
    np.testing.assert_array_equal(center_order[there.indices], here.indices[point_order])
    np.testing.assert_array_equal(there.weights, here.weights[point_order])


@pytest.mark.parametrize(
    ("points", "centers", "words"),
    [
        (integer_cloud(5), integer_cloud(2), "centers has 2 rows; at least 3 are needed"),
        (integer_cloud(5)[:, :2], integer_cloud(4), r"points has shape \(5, 2\)"),
        (integer_cloud(5), integer_cloud(4).astype(int), "centers has dtype int64"),
        (integer_cloud(5) * np.nan, integer_cloud(4), "points has a NaN in 5 of 5 rows"),
        (integer_cloud(5), integer_cloud(4) + np.inf, "centers has an infinite"),
        (object(), integer_cloud(4), "points is a builtins.object; it must be a NumPy array"),
    ],
)
def test_bad_input_is_refused(points: Any, centers: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        inverse_distance_weights(points, centers)


def test_features_must_fit_the_centres() -> None:
    with pytest.raises(InvalidInputError, match="features has 4 rows and there are 5 centers"):
        inverse_distance_interpolation(
            np.ones((4, 2), np.float32), integer_cloud(5), integer_cloud(9)
        )


def rows_of_frame(
    grid_size: int, output_size: int, num_centers: int, backend: str, coverage: float = 0.28
) -> tuple[InterpolationWeights, NDArray[np.int64], PooledRows]:
    frame = depth_frame(grid_size, seed=3, coverage=coverage)
    centers = frame.points[farthest_point_sampling(frame.points, num_centers)]
    weights = inverse_distance_weights(frame.points, centers)
    pooled = pooled_interpolation_rows(
        weights,
        frame.pixel_indices,
        num_centers=num_centers,
        grid_size=grid_size,
        output_size=output_size,
        backend=backend,
    )
    return weights, frame.pixel_indices, pooled


def check_is_well_formed(pooled: PooledRows, output_size: int) -> None:
    rows, pixels = pooled
    assert rows.offsets.dtype == pixels.dtype == np.int64
    assert (rows.columns.dtype, rows.values.dtype) == (np.int32, np.float32)
    assert rows.offsets[0] == 0
    assert rows.offsets[-1] == len(rows.columns) == len(rows.values)
    assert rows.num_rows == len(pixels)
    assert (np.diff(rows.offsets) > 0).all()
    assert (np.diff(pixels) > 0).all()
    assert len(pixels) == 0 or 0 <= pixels[0] <= pixels[-1] < output_size**2
    for begin, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        assert (np.diff(rows.columns[begin:end]) > 0).all()
    if len(rows.columns):
        assert 0 <= rows.columns.min() <= rows.columns.max() < rows.num_columns


@pytest.mark.parametrize("backend", [b.name for b in POOLED_ROWS_OP.backends_of("cpu")][:-1])
@pytest.mark.parametrize(
    ("grid_size", "output_size"), [(3, 1), (3, 4), (16, 1), (17, 5), (17, 15), (20, 20), (20, 31)]
)
@pytest.mark.parametrize("coverage", [0.28, 1.5])
def test_pooled_rows_equal_the_reference(
    grid_size: int, output_size: int, coverage: float, backend: str
) -> None:
    arguments = (grid_size, output_size, 7)
    _, _, expected = rows_of_frame(*arguments, "reference", coverage)
    _, _, got = rows_of_frame(*arguments, backend, coverage)
    check_is_well_formed(got, output_size)
    np.testing.assert_array_equal(got.pixel_indices, expected.pixel_indices)
    np.testing.assert_array_equal(got.rows.offsets, expected.rows.offsets)
    np.testing.assert_array_equal(got.rows.columns, expected.rows.columns)
    np.testing.assert_allclose(got.rows.values, expected.rows.values, rtol=3e-7)


@pytest.mark.parametrize("backend", [b.name for b in POOLED_ROWS_OP.backends_of("cpu")])
@pytest.mark.parametrize("output_size", [224, 56, 28])
@pytest.mark.parametrize("coverage", [0.02, 0.28])
def test_pooled_rows_equal_the_published_steps(
    output_size: int, coverage: float, backend: str
) -> None:
    torch = pytest.importorskip("torch")
    num_centers = 24 if backend == "reference" else 150
    weights, pixel_indices, pooled = rows_of_frame(224, output_size, num_centers, backend, coverage)
    check_is_well_formed(pooled, output_size)
    features = np.random.default_rng(2).uniform(1, 2, (num_centers, 3))
    values = (weights.weights[:, :, None].astype(np.float64) * features[weights.indices]).sum(1)
    grid = torch.zeros(1, 3, 224 * 224, dtype=torch.float64)
    grid[0][:, torch.from_numpy(pixel_indices)] = torch.from_numpy(values.T.copy())
    smoothed = torch.nn.AvgPool2d(3, stride=1)(grid.reshape(1, 3, 224, 224))
    dense = torch.nn.AdaptiveAvgPool2d(output_size)(smoothed)[0].flatten(1).T.numpy()
    np.testing.assert_array_equal(pooled.pixel_indices, np.flatnonzero(dense.sum(axis=1)))
    got = pooled.rows.apply(features.astype(np.float32))
    np.testing.assert_allclose(got, dense[pooled.pixel_indices], rtol=1e-6)


@pytest.mark.parametrize("backend", [b.name for b in POOLED_ROWS_OP.backends_of("cpu")])
def test_no_points_give_no_rows(backend: str) -> None:
    nothing = InterpolationWeights(np.empty((0, 3), np.int64), np.empty((0, 3), np.float32))
    pooled = pooled_interpolation_rows(
        nothing, np.empty(0, np.int64), num_centers=5, backend=backend
    )
    check_is_well_formed(pooled, 224)
    assert pooled.pixel_indices.shape == (0,)
    assert pooled.rows.offsets.tolist() == [0]
    assert pooled.rows.apply(np.ones((5, 2), np.float32)).shape == (0, 2)


def test_inside_the_object_the_values_sum_to_one_and_at_the_rim_to_less() -> None:
    pixels = np.arange(12 * 12).reshape(12, 12)[:, :8].ravel()
    frame = depth_frame(64).points[: len(pixels)]
    weights = inverse_distance_weights(frame, frame[::9])
    rows, kept = pooled_interpolation_rows(
        weights, pixels, num_centers=len(frame[::9]), grid_size=12, output_size=10
    )
    sums = np.zeros(100)
    sums[kept] = np.add.reduceat(rows.values, rows.offsets[:-1])
    by_column = [1.0] * 6 + [2 / 3, 1 / 3] + [0.0] * 2
    np.testing.assert_allclose(sums.reshape(10, 10), np.tile(by_column, (10, 1)), atol=1e-6)


def test_a_centre_with_weight_zero_still_counts_as_an_entry() -> None:
    weights = InterpolationWeights(np.array([[0, 1, 2]]), np.float32([[1, 0, 0]]))
    for backend in [b.name for b in POOLED_ROWS_OP.backends_of("cpu")]:
        rows, pixels = pooled_interpolation_rows(
            weights, [4], num_centers=3, grid_size=3, output_size=1, backend=backend
        )
        assert pixels.tolist() == [0]
        assert rows.columns.tolist() == [0, 1, 2]
        np.testing.assert_allclose(rows.values, [1 / 9, 0, 0], rtol=1e-6)


WEIGHTS = inverse_distance_weights(integer_cloud(4), integer_cloud(5))
TALL = InterpolationWeights(WEIGHTS.indices, np.ones((5, 3), np.float32))


@pytest.mark.parametrize(
    ("weights", "pixels", "options", "words"),
    [
        (WEIGHTS, [0, 1, 2, 2], {}, "pixel_indices has duplicates"),
        (WEIGHTS, [0, 1, 2, 64], {}, r"holds 64; it must be in 0\.\.63, the range of the 8x8 grid"),
        (WEIGHTS, [0, 1, 2, -1], {}, "pixel_indices holds -1"),
        (WEIGHTS, [0, 1, 2], {}, r"weights.indices has shape \(4, 3\); it must be \(3, 3\)"),
        (TALL, [0, 1, 2, 3], {}, "weights.weights has 5 rows and there are 4 pixel_indices"),
        (WEIGHTS, [0, 1, 2, 3], {"num_centers": 1}, r"weights.indices holds \d; .* the centres"),
        (WEIGHTS, [0, 1, 2, 3], {"num_centers": 0}, "num_centers is 0; it must be in 1"),
        (WEIGHTS, [0, 1, 2, 3], {"grid_size": 2}, "grid_size is 2; it must be in 3"),
        (WEIGHTS, [0, 1, 2, 3], {"output_size": 0}, "output_size is 0; it must be in 1"),
    ],
)
def test_bad_pooling_input_is_refused(
    weights: InterpolationWeights, pixels: list[int], options: dict[str, int], words: str
) -> None:
    sizes = {"num_centers": 5, "grid_size": 8, "output_size": 8} | options
    with pytest.raises(InvalidInputError, match=words):
        pooled_interpolation_rows(weights, pixels, **sizes)
