from __future__ import annotations

from gpu_test_device import TEST_DEVICE  # isort: skip  (before any triton)

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import CLOUDS, Cloud, by_name, depth_frame, integer_cloud, uniform_cloud
from ops.plain_float32 import weights_in_float32

from mmad_fast.ops.inverse_distance_interpolation import reference

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from mmad_fast.ops.inverse_distance_interpolation import triton_kernel  # noqa: E402

CLOUDS_WITH_THREE_POINTS = [cloud for cloud in CLOUDS if len(cloud.points) >= 3]
GUARD = 64
SENTINEL = -77


def on_device(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(TEST_DEVICE)


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """An output filled with NaN or a sentinel, and what it is a part of, with a guard behind."""
    filler = float("nan") if dtype.is_floating_point else SENTINEL
    size = int(np.prod(shape))
    whole = torch.full((size + GUARD,), filler, dtype=dtype, device=TEST_DEVICE)
    return whole[:size].view(shape), whole


def assert_guard_is_untouched(*wholes: torch.Tensor) -> None:
    for whole in wholes:
        guard = whole[-GUARD:].cpu()
        assert (guard.isnan() if whole.dtype.is_floating_point else guard == SENTINEL).all()


def centers_of(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return points[np.random.default_rng(0).permutation(len(points))[: max(3, len(points) // 9)]]


def weights_of(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The kernel's, with outputs whose guard zones are checked."""
    indices, all_indices = guarded((len(points), 3), torch.int64)
    weights, all_weights = guarded((len(points), 3), torch.float32)
    triton_kernel._launch_weights(on_device(points), on_device(centers), indices, weights)
    assert_guard_is_untouched(all_indices, all_weights)
    return indices.cpu().numpy(), weights.cpu().numpy()


@pytest.mark.parametrize("cloud", CLOUDS_WITH_THREE_POINTS, ids=by_name)
def test_weights_are_those_of_plain_float32(cloud: Cloud) -> None:
    centers = centers_of(cloud.points)
    indices, weights = weights_of(cloud.points, centers)
    plain_indices, plain_weights = weights_in_float32(cloud.points, centers)
    np.testing.assert_array_equal(indices, plain_indices)
    exact_indices, exact = reference.exact_weights(cloud.points, centers)
    if cloud.is_exact:
        np.testing.assert_array_equal(indices, exact_indices)
    is_same = (indices == exact_indices).all(axis=1)  # others are equally near within rounding
    assert is_same.mean() > 0.99
    error = np.abs(weights - exact)[is_same].max()
    plain_error = np.abs(plain_weights - exact)[is_same].max()
    assert error <= 2 * plain_error + 1e-7, (error, plain_error)


@pytest.mark.parametrize("num_centers", [3, 4, 31, 32, 33, 97])
@pytest.mark.parametrize("num_points", [1, 63, 65])
def test_centres_that_do_not_fill_the_lanes(num_points: int, num_centers: int) -> None:
    points, centers = integer_cloud(num_points, high=9), integer_cloud(num_centers, high=9, seed=1)
    indices, weights = weights_of(points, centers)
    expected_indices, expected = reference.exact_weights(points, centers)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_three_nearest_may_share_a_lane() -> None:
    centers = np.full((200, 3), 100, np.float32)
    centers[[5, 37, 69]] = [[3, 0, 0], [1, 0, 0], [2, 0, 0]]  # all in lane 5
    indices, _ = weights_of(np.zeros((1, 3), np.float32), centers)
    assert indices.tolist() == [[37, 69, 5]]
    centers[[5, 37, 70]] = 1  # two in one lane, and a tie
    indices, _ = weights_of(np.zeros((1, 3), np.float32), centers)
    assert indices.tolist() == [[5, 37, 70]]


def test_every_configuration_gives_the_same() -> None:
    points, centers = uniform_cloud(70), uniform_cloud(75, seed=1)
    expected = weights_in_float32(points, centers)[0]
    kernel = triton_kernel._WEIGHTS
    for config in kernel.configs_for(80):
        tiles = config.constants
        indices, whole = guarded((70, 3), torch.int64)
        weights, _ = guarded((70, 3), torch.float32)
        triton_kernel._weights_kernel[(-(-70 // tiles["BLOCK_N"]),)](
            on_device(points),
            on_device(centers),
            indices,
            weights,
            70,
            75,
            **tiles,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=kernel.enable_fp_fusion,
        )
        np.testing.assert_array_equal(indices.cpu().numpy(), expected)
        assert_guard_is_untouched(whole)


def test_coordinates_that_are_not_finite_never_win() -> None:
    points, centers = integer_cloud(40, seed=1), integer_cloud(50, seed=2)
    bad = np.arange(0, 50, 3)
    centers[bad[0::3]] = np.nan
    centers[bad[1::3], 1] = np.inf
    centers[bad[2::3], 2] = np.nan
    is_good = np.isfinite(centers).all(axis=1)
    indices, weights = weights_of(points, centers)
    expected, expected_weights = reference.exact_weights(points, centers[is_good])
    np.testing.assert_array_equal(indices, np.flatnonzero(is_good)[expected])
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_without_a_finite_centre_the_indices_stay_in_range() -> None:
    points, centers = integer_cloud(5), integer_cloud(4)
    points[2, 1] = np.nan
    indices, weights = weights_of(points, centers)
    assert ((indices >= 0) & (indices < 4)).all()
    assert np.isnan(weights[2]).all()
    assert np.isfinite(np.delete(weights, 2, axis=0)).all()
    centers[:3] = np.nan
    indices, weights = weights_of(integer_cloud(5), centers)
    np.testing.assert_array_equal(indices, np.tile([3, 0, 0], (5, 1)))
    np.testing.assert_array_equal(weights, np.tile(np.float32([1, 0, 0]), (5, 1)))


@pytest.mark.parametrize("channels", [1, 7, 12, 132, 384])
def test_dense_features_agree_with_the_reference(channels: int) -> None:
    points = depth_frame(16, seed=4).points
    centers = centers_of(points)
    features = np.random.default_rng(1).normal(size=(len(centers), channels)).astype(np.float32)
    expected = reference.inverse_distance_interpolation(features, centers, points)
    plain_indices, plain_weights = weights_in_float32(points, centers)
    plain = (plain_weights[:, :, None] * features[plain_indices]).sum(axis=1)
    indices, weights = triton_kernel.inverse_distance_weights(on_device(points), on_device(centers))
    dense, whole = guarded((len(points), channels), torch.float32)
    triton_kernel._launch_dense(on_device(features), indices, weights, dense)
    assert_guard_is_untouched(whole)
    error, plain_error = np.abs(dense.cpu().numpy() - expected), np.abs(plain - expected)
    assert error.max() <= 2 * plain_error.max() + 1e-7
    public = triton_kernel.inverse_distance_interpolation(
        on_device(features), on_device(centers), on_device(points)
    )
    assert torch.equal(public, dense)


def test_indices_out_of_range_are_clamped() -> None:
    features = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    indices = np.array([[-5, 2, 6], [2**40, -(2**40), 3]])
    weights = np.float32([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    dense, whole = guarded((2, 8), torch.float32)
    triton_kernel._launch_dense(on_device(features), on_device(indices), on_device(weights), dense)
    expected = (weights[:, :, None] * features[np.clip(indices, 0, 5)]).sum(axis=1)
    np.testing.assert_allclose(dense.cpu().numpy(), expected, rtol=1e-5)
    assert_guard_is_untouched(whole)


def test_no_points_or_channels_give_empty_results() -> None:
    centers = on_device(integer_cloud(3))
    nothing = torch.empty((0, 3), device=TEST_DEVICE)
    indices, weights = triton_kernel.inverse_distance_weights(nothing, centers)
    assert (indices.shape, indices.dtype) == ((0, 3), torch.int64)
    assert (weights.shape, weights.dtype) == ((0, 3), torch.float32)
    features = torch.ones((3, 4), device=TEST_DEVICE)
    dense = triton_kernel.inverse_distance_interpolation(features, centers, nothing)
    assert dense.shape == (0, 4)
    dense = triton_kernel.inverse_distance_interpolation(features[:, :0], centers, centers)
    assert dense.shape == (3, 0)
    windows = torch.empty((0, 9), device=TEST_DEVICE)
    columns, values = triton_kernel.pooled_interpolation_rows(
        indices, weights, windows.int(), windows
    )
    assert (columns.shape, columns.dtype) == ((0,), torch.int32)
    assert (values.shape, values.dtype) == ((0,), torch.float32)


@pytest.mark.parametrize(("num_pixels", "window"), [(1, 1), (7, 9), (63, 16), (129, 4)])
def test_entries_of_pooled_rows(num_pixels: int, window: int) -> None:
    rng = np.random.default_rng(num_pixels)
    indices = rng.integers(0, 90, (50, 3))
    weights = rng.uniform(size=(50, 3)).astype(np.float32)
    points = rng.integers(-20, 50, (num_pixels, window)).astype(np.int32)
    shares = rng.uniform(size=points.shape).astype(np.float32)
    is_point = (points >= 0)[:, :, None]
    expected_columns = np.where(is_point, indices[points], 0).ravel()
    expected_values = np.where(is_point, shares[:, :, None] * weights[points], 0).ravel()
    columns, all_columns = guarded((points.size * 3,), torch.int32)
    values, all_values = guarded((points.size * 3,), torch.float32)
    arguments = tuple(map(on_device, (indices, weights, points, shares)))
    triton_kernel._launch_pooled_rows(*arguments, columns, values)
    np.testing.assert_array_equal(columns.cpu().numpy(), expected_columns)
    np.testing.assert_array_equal(values.cpu().numpy(), expected_values)
    assert_guard_is_untouched(all_columns, all_values)
    public_columns, public_values = triton_kernel.pooled_interpolation_rows(*arguments)
    assert torch.equal(public_columns, columns)
    assert torch.equal(public_values, values)


def test_windows_with_points_that_do_not_exist() -> None:
    indices = on_device(np.array([[4, 5, 6], [7, 8, 9]]))
    weights = on_device(np.float32([[1, 2, 3], [4, 5, 6]]))
    points = on_device(np.int32([[0, 2**31 - 1, -(2**31)]]))
    shares = on_device(np.float32([[1, 1, np.nan]]))
    columns, values = triton_kernel.pooled_interpolation_rows(indices, weights, points, shares)
    assert columns.tolist() == [4, 5, 6, 7, 8, 9, 0, 0, 0]
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0]
    columns, values = triton_kernel.pooled_interpolation_rows(
        indices[:0], weights[:0], points, shares
    )
    assert columns.tolist() == values.tolist() == [0] * 9


def test_entries_sum_to_the_pooled_rows_of_the_reference() -> None:
    """With the windows of one smoothing: grid 8, no pooling, so that each pixel averages 3 x 3."""
    grid, output = 8, 6
    frame = depth_frame(grid, coverage=0.5, seed=2)
    centers = centers_of(frame.points)
    indices, weights = weights_in_float32(frame.points, centers)
    pixels, offsets, columns, values = reference.pooled_interpolation_rows(
        indices, weights, frame.pixel_indices, len(centers), grid, output
    )
    point_at = np.full(grid * grid, -1, np.int32)
    point_at[frame.pixel_indices] = np.arange(len(frame.points))
    corner = pixels // output * grid + pixels % output
    step = np.add.outer(np.arange(3) * grid, np.arange(3)).ravel()
    windows = point_at[corner[:, None] + step]  # (P, 9)
    shares = np.full(windows.shape, 1 / 9, np.float32)
    got_columns, got_values = triton_kernel.pooled_interpolation_rows(
        *map(on_device, (indices, weights, windows, shares))
    )
    dense, expected = np.zeros((2, len(pixels), len(centers)))
    rows = np.repeat(np.arange(len(pixels)), 27)
    np.add.at(dense, (rows, got_columns.cpu().numpy()), got_values.cpu().numpy())
    np.add.at(expected, (np.repeat(np.arange(len(pixels)), np.diff(offsets)), columns), values)
    np.testing.assert_allclose(dense, expected, rtol=1e-6, atol=1e-9)
