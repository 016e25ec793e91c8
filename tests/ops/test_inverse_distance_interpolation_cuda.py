"""The CUDA kernel of inverse_distance_interpolation: emulated, or on a GPU (gpu_test_device)."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.cases import CLOUDS, Cloud, by_name, depth_frame, integer_cloud, uniform_cloud
from ops.plain_float32 import weights_in_float32

from mmad_fast.ops.inverse_distance_interpolation import reference

# One point, an odd rest of a block of 128, a tile of 256 centres and one centre more.
CASES = [
    Cloud("one-point", integer_cloud(1), True),
    *(cloud for cloud in CLOUDS if len(cloud.points) >= 3),
]
SEEDS = [0, 1, 2, 3]
GUARD = 3  # rows


@pytest.fixture(params=SEEDS)
def kernels(cuda_kernels: ModuleType, request: pytest.FixtureRequest) -> ModuleType:
    """The module, under several schedules if it is emulated."""
    if TEST_DEVICE == "cpu":
        cuda_kernels.set_schedule(request.param)
    elif request.param != SEEDS[0]:
        pytest.skip("a GPU makes its own schedule")
    return cuda_kernels


def weigh(
    kernels: ModuleType, points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The kernel's indices and weights; what lies around its outputs must stay."""
    rows = len(points) + 2 * GUARD
    device_points = torch.from_numpy(points).to(TEST_DEVICE)
    device_centers = torch.from_numpy(centers).to(TEST_DEVICE)
    indices = torch.full((rows, 3), -77, dtype=torch.int64, device=TEST_DEVICE)
    weights = torch.full((rows, 3), torch.nan, device=TEST_DEVICE)
    kernels.inverse_distance_weights(
        0,
        device_points.data_ptr(),
        len(points),
        device_centers.data_ptr(),
        len(centers),
        indices[GUARD:].data_ptr(),
        weights[GUARD:].data_ptr(),
        0,
    )
    all_indices, all_weights = indices.cpu().numpy(), weights.cpu().numpy()
    for guard in (slice(0, GUARD), slice(-GUARD, None)):
        assert (all_indices[guard] == -77).all()
        assert np.isnan(all_weights[guard]).all()
    return all_indices[GUARD:-GUARD], all_weights[GUARD:-GUARD]


def centers_of(points: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(points) < 3:
        return integer_cloud(3, seed=8)
    return points[np.random.default_rng(0).permutation(len(points))[: max(3, len(points) // 3)]]


@pytest.mark.parametrize("cloud", CASES, ids=by_name)
def test_indices_and_weights_agree_with_the_reference(cloud: Cloud, kernels: ModuleType) -> None:
    centers = centers_of(cloud.points)
    indices, weights = weigh(kernels, cloud.points, centers)
    plain_indices, plain_weights = weights_in_float32(cloud.points, centers)
    np.testing.assert_array_equal(indices, plain_indices)  # the same arithmetic, the same ties
    exact_indices, exact_weights = reference.exact_weights(cloud.points, centers)
    if cloud.is_exact:
        np.testing.assert_array_equal(indices, exact_indices)
    is_same = (indices == exact_indices).all(axis=1)  # others are equally near within rounding
    assert is_same.mean() > 0.99
    error = np.abs(weights - exact_weights)[is_same].max()
    plain_error = np.abs(plain_weights - exact_weights)[is_same].max()
    assert error <= 2 * plain_error + 1e-7, (error, plain_error)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=3e-7)


@pytest.mark.parametrize("num_points", [1, 127, 128, 129])
@pytest.mark.parametrize("num_centers", [3, 255, 256, 257, 513])
def test_blocks_and_tiles_end_where_they_should(
    num_points: int, num_centers: int, cuda_kernels: ModuleType
) -> None:
    points, centers = uniform_cloud(num_points), uniform_cloud(num_centers, seed=1)
    indices, weights = weigh(cuda_kernels, points, centers)
    plain_indices, plain_weights = weights_in_float32(points, centers)
    np.testing.assert_array_equal(indices, plain_indices)
    np.testing.assert_allclose(weights, plain_weights, rtol=1e-6, atol=0)


def test_no_points_write_nothing(cuda_kernels: ModuleType) -> None:
    indices, weights = weigh(cuda_kernels, np.empty((0, 3), np.float32), integer_cloud(3))
    assert indices.shape == weights.shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_centres_without_a_finite_distance_lose(bad: float, cuda_kernels: ModuleType) -> None:
    points, centers = depth_frame(24).points, uniform_cloud(300, seed=3)
    centers[::2, 1] = bad
    indices, weights = weigh(cuda_kernels, points, centers)
    good_indices, good_weights = weights_in_float32(points, centers[1::2])
    np.testing.assert_array_equal(indices, 2 * good_indices + 1)
    np.testing.assert_allclose(weights, good_weights, rtol=1e-6, atol=0)


def test_indices_are_in_range_whatever_the_points_are(cuda_kernels: ModuleType) -> None:
    points, centers = integer_cloud(40), integer_cloud(5)
    points[3], points[7, 0], points[9] = np.nan, np.inf, 3e38
    indices, weights = weigh(cuda_kernels, points, centers)
    assert ((indices >= 0) & (indices < 5)).all()
    is_good = np.isfinite(points).all(axis=1) & (np.abs(points) < 1e30).all(axis=1)
    np.testing.assert_array_equal(indices[is_good], weights_in_float32(points[is_good], centers)[0])
    assert np.isfinite(weights[is_good]).all()
    centers[[0, 1, 2, 4]] = np.nan  # one is left: it has all the weight
    indices, weights = weigh(cuda_kernels, points[is_good], centers)
    assert (indices[:, 0] == 3).all()
    np.testing.assert_array_equal(weights, np.broadcast_to([1.0, 0.0, 0.0], weights.shape))
