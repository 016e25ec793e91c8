"""The CUDA kernel of grouping, emulated on the host or on a device."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.cases import (
    ADVERSARIAL_CLOUDS,
    CLOUDS,
    Cloud,
    by_name,
    depth_frame,
    float32_squared_distances,
    integer_cloud,
    uniform_cloud,
)
from ops.neighbor_kernels import find_neighbors
from ops.plain_float32 import nearest_in_float32

from mmad_fast.ops.knn_grouping import reference

GUARD = 64  # elements before and behind each output and the workspace
SENTINEL = -77
MOST_NEIGHBORS = 1024

Groups = tuple[NDArray[np.int64], NDArray[np.float32]]


def group(
    kernels: ModuleType, points: NDArray[np.float32], centers: NDArray[np.int64], k: int
) -> Groups:
    """indices (G, K) and groups (G, K, 3) of the kernel, which wrote nothing else."""
    count = len(centers) * k
    num_bytes = kernels.knn_grouping_workspace(len(points), len(centers), k)
    indices = torch.full((count + 2 * GUARD,), SENTINEL, dtype=torch.int64, device=TEST_DEVICE)
    groups = torch.full((3 * count + 2 * GUARD,), torch.nan, device=TEST_DEVICE)
    # NaN where the kernel would read what it has not written: no box would be near anything.
    workspace = torch.full((num_bytes // 4 + 2 * GUARD,), torch.nan, device=TEST_DEVICE)
    device_points = torch.from_numpy(points).to(TEST_DEVICE)
    device_centers = torch.from_numpy(centers).to(TEST_DEVICE)
    kernels.knn_grouping(
        0,
        device_points.data_ptr(),
        len(points),
        device_centers.data_ptr(),
        len(centers),
        k,
        indices[GUARD:].data_ptr(),
        groups[GUARD:].data_ptr(),
        workspace[GUARD:].data_ptr(),
        0,
    )
    host_indices, host_groups = indices.cpu().numpy(), groups.cpu().numpy()
    host_workspace = workspace.cpu().numpy()
    for guard in (slice(None, GUARD), slice(-GUARD, None)):
        assert (host_indices[guard] == SENTINEL).all()
        assert np.isnan(host_groups[guard]).all()
        assert np.isnan(host_workspace[guard]).all()
    inside = slice(GUARD, -GUARD)
    return (
        host_indices[inside].reshape(len(centers), k),
        host_groups[inside].reshape(len(centers), k, 3),
    )


def check_against_plain_float32(
    kernels: ModuleType, points: NDArray[np.float32], centers: NDArray[np.int64], k: int
) -> None:
    indices, groups = group(kernels, points, centers, k)
    expected = nearest_in_float32(points, centers, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(groups, points[expected] - points[centers][:, None])


def some_centers(num_points: int, count: int = 6) -> NDArray[np.int64]:
    """The first and last point, and others in no order, some of them twice."""
    others = np.random.default_rng(0).integers(0, num_points, count - 2)
    return np.concatenate([[num_points - 1], others, [0]])


def neighbor_counts(cloud: Cloud) -> list[int]:
    count = len(cloud.points)
    return sorted({min(k, count) for k in (1, 32, 128, min(count, MOST_NEIGHBORS))})


@pytest.mark.parametrize("cloud", [cloud for cloud in CLOUDS if cloud.is_exact], ids=by_name)
def test_indices_equal_the_reference_on_integers(cuda_kernels: ModuleType, cloud: Cloud) -> None:
    centers = some_centers(len(cloud.points))
    for k in neighbor_counts(cloud):
        indices, groups = group(cuda_kernels, cloud.points, centers, k)
        expected = reference.knn_grouping(cloud.points, centers, k)
        np.testing.assert_array_equal(indices, expected[0])
        np.testing.assert_array_equal(groups, expected[1])


@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_indices_equal_plain_float32(cuda_kernels: ModuleType, cloud: Cloud) -> None:
    """Among them duplicates, all points equal, millimetres and clouds of many leaves."""
    is_large = len(cloud.points) > 5000
    centers = some_centers(len(cloud.points), 3 if is_large else 6)
    for k in (128,) if is_large else neighbor_counts(cloud):
        check_against_plain_float32(cuda_kernels, cloud.points, centers, k)


@pytest.mark.parametrize("cloud", [c for c in CLOUDS if not c.is_exact], ids=by_name)
def test_the_distances_reached_are_the_smallest(cuda_kernels: ModuleType, cloud: Cloud) -> None:
    exact, centers = cloud.points.astype(np.float64), some_centers(len(cloud.points))
    indices, _ = group(cuda_kernels, cloud.points, centers, 64)
    for row, center in zip(indices, exact[centers], strict=True):
        assert len(set(row.tolist())) == 64
        distances = np.linalg.norm(exact - center, axis=1)
        np.testing.assert_allclose(distances[row], np.sort(distances)[:64], rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [31, 33, 127, 129, 256, 257, 512, 513, 1023, 1024])
def test_group_sizes_around_each_change_of_the_buffer(cuda_kernels: ModuleType, k: int) -> None:
    """Its capacity doubles above 128, 256 and 512, the warps per block halve above 512; three
    centres leave a block's last warp without one."""
    points = depth_frame(72, seed=3).points
    assert len(points) > MOST_NEIGHBORS
    check_against_plain_float32(cuda_kernels, points, some_centers(len(points), 3), k)


@pytest.mark.parametrize("num_points", [1, 2, 31, 32, 33, 63, 1024, 1025, 1057])
def test_cloud_sizes_around_leaves(cuda_kernels: ModuleType, num_points: int) -> None:
    """A leaf has 32 points; the first 32 leaves are searched in order."""
    points, centers = uniform_cloud(num_points, seed=1), some_centers(num_points)
    for k in {1, min(32, num_points), min(num_points, MOST_NEIGHBORS)}:
        check_against_plain_float32(cuda_kernels, points, centers, k)


def test_a_shuffled_cloud_whose_boxes_all_overlap(cuda_kernels: ModuleType) -> None:
    points = np.random.default_rng(0).permutation(depth_frame(160, coverage=0.4).points)
    assert len(points) > 8 * MOST_NEIGHBORS  # more boxes than the buffer has room for
    check_against_plain_float32(cuda_kernels, points, some_centers(len(points), 4), 128)


def shrinking_shells(num_points: int) -> NDArray[np.float32]:
    """(N, 3) around the last point: each is nearer to it than all before, and almost every box
    holds it, so that every point is taken and the buffer is cut most often."""
    directions = np.random.default_rng(0).normal(size=(num_points, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions * np.linspace(1, 0, num_points)[:, None]).astype(np.float32)


@pytest.mark.parametrize("k", [1, 32, 128])
def test_points_that_come_nearer_and_nearer(cuda_kernels: ModuleType, k: int) -> None:
    check_against_plain_float32(cuda_kernels, shrinking_shells(3000), np.array([2999]), k)


def test_distances_of_all_magnitudes(cuda_kernels: ModuleType) -> None:
    """No even spacing: the threshold of a cut is not where interpolation looks for it."""
    rng = np.random.default_rng(1)
    points = (10.0 ** rng.uniform(-18, 18, (2500, 1)) * [1, 0, 0]).astype(np.float32)
    points[0] = 0
    check_against_plain_float32(cuda_kernels, points, np.array([0, 5]), 100)


def test_more_duplicates_than_the_buffer_holds(cuda_kernels: ModuleType) -> None:
    """Ties of 1000 are cut by index; the nearer ones come last."""
    points = np.repeat(np.float32([[2, 0, 0], [1, 0, 0], [0, 0, 0]]), [1000, 1000, 20], axis=0)
    for order in (np.arange(2020), np.random.default_rng(2).permutation(2020)):
        cloud = points[order]
        centers = np.flatnonzero(~cloud.any(axis=1))[[0, 7, 7]]
        for k in (20, 100, 1024):
            check_against_plain_float32(cuda_kernels, cloud, centers, k)


def test_repeated_centers_get_equal_groups(cuda_kernels: ModuleType) -> None:
    points, centers = integer_cloud(300, seed=6), np.full(9, 17)
    indices, _ = group(cuda_kernels, points, centers, 40)
    np.testing.assert_array_equal(indices, np.tile(indices[0], (9, 1)))
    assert (indices[:, 0] == 17).all()


def test_center_indices_out_of_range_are_clamped(cuda_kernels: ModuleType) -> None:
    points = integer_cloud(90, seed=6)
    limits = np.iinfo(np.int64)
    wild = np.array([-1, 90, limits.min, limits.max, 2**32 + 5])
    indices, groups = group(cuda_kernels, points, wild, 12)
    expected = group(cuda_kernels, points, np.array([0, 89, 0, 89, 89]), 12)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(groups, expected[1])


def nearest_finite_first(
    points: NDArray[np.float32], centers: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """As in plain float32, with what has no finite distance infinitely far away."""
    rows = []
    for center in centers:
        with np.errstate(invalid="ignore"):
            squared = float32_squared_distances(points, points[center])
        squared[~np.isfinite(squared)] = np.inf
        rows.append(np.argsort(squared, kind="stable")[:k])
    return np.stack(rows)


@pytest.mark.parametrize("share", [0.1, 0.8, 1.0])
def test_points_that_are_not_finite_come_last(cuda_kernels: ModuleType, share: float) -> None:
    """At 80 % some groups need them, some leaves have nothing else, and some centres are such."""
    rng = np.random.default_rng(4)
    points = uniform_cloud(500, seed=2)
    broken = np.flatnonzero(rng.uniform(size=500) < share)
    values = np.float32([np.nan, np.inf, -np.inf])
    points[broken, rng.integers(0, 3, len(broken))] = rng.choice(values, len(broken))
    points[96:160] = np.nan  # two whole leaves
    centers = np.concatenate([some_centers(500, 5), [100]])
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    for k in (32, 128, 500):
        indices, groups = group(cuda_kernels, points, centers, k)
        expected = nearest_finite_first(points, centers, k)
        np.testing.assert_array_equal(indices, expected)
        with np.errstate(invalid="ignore"):
            offsets = points[expected] - points[centers][:, None]
        np.testing.assert_array_equal(groups, offsets)
        if k <= len(finite):
            is_finite_center = np.isfinite(points[centers]).all(axis=1)
            assert np.isin(indices[is_finite_center], finite).all()


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="a device does not count warp operations")
@pytest.mark.parametrize("k", [1, 32, 128])
def test_no_cloud_takes_more_than_a_few_scans(cuda_kernels: ModuleType, k: int) -> None:
    """Counted in warp operations (votes, shuffles, barriers) per leaf of 32 points: the boxes take
    30, a plain scan 4; what grows faster than N would take hundreds."""
    num_leaves = 300
    count = 32 * num_leaves
    clouds = {
        "equal": np.ones((count, 3), np.float32),
        "two values": np.repeat(np.float32([[1, 0, 0], [0, 0, 0]]), count // 2, axis=0),
        "shuffled": uniform_cloud(count),
        "shells": shrinking_shells(count),
    }
    for name, points in clouds.items():
        before = cuda_kernels.num_switches()
        group(cuda_kernels, points, np.array([count - 1]), k)
        operations = (cuda_kernels.num_switches() - before) / 32
        assert operations < 80 * num_leaves, name


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="a device has no schedule to set")
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_the_order_of_threads_does_not_matter(cuda_kernels: ModuleType, seed: int) -> None:
    """Full leaves, cuts and both passes over the boxes, with lanes and warps in another order."""
    points = depth_frame(72, seed=3).points
    cuda_kernels.set_schedule(seed)
    try:
        for k in (5, 130, 600):
            check_against_plain_float32(cuda_kernels, points, some_centers(len(points)), k)
    finally:
        cuda_kernels.set_schedule(0)


def test_the_workspace_holds_the_boxes(cuda_kernels: ModuleType) -> None:
    for num_points, num_leaves in ((1, 1), (32, 1), (33, 2), (200_000, 6250)):
        assert cuda_kernels.knn_grouping_workspace(num_points, 1024, 128) == 24 * num_leaves


@pytest.mark.parametrize(
    "cloud", [cloud for cloud in ADVERSARIAL_CLOUDS if len(cloud.points) < 1000], ids=by_name
)
@pytest.mark.parametrize("share", [np.inf, 0.05], ids=["all", "radius"])
def test_neighbors_of_every_point(cuda_kernels: ModuleType, cloud: Cloud, share: float) -> None:
    """As plain float32 has them, up to the radius and not beyond."""
    points = cloud.points
    k = min(20, len(points))
    radius = share * float(np.ptp(points, axis=0).max(initial=1))
    found = find_neighbors(cuda_kernels, points, k, radius)
    nearest = nearest_in_float32(points, np.arange(len(points)), k)
    offsets = points[nearest] - points[:, None]
    squares = offsets * offsets
    squared = (squares[..., 0] + squares[..., 1]) + squares[..., 2]
    is_within = squared < np.float32(radius * radius)
    np.testing.assert_array_equal(found.indices.read(), np.where(is_within, nearest, -1))
    distances = np.where(is_within, squared, np.inf)
    np.testing.assert_array_equal(found.squared_distances.read(), distances)
    np.testing.assert_array_equal(found.counts.read(), is_within.sum(axis=1))


def test_neighbors_that_are_not_finite_are_none(cuda_kernels: ModuleType) -> None:
    points = uniform_cloud(70, seed=2)
    points[[3, 40]] = np.nan
    points[9, 1] = np.inf
    found = find_neighbors(cuda_kernels, points, 70)
    counts = found.counts.read()
    is_finite = np.isfinite(points).all(axis=1)
    np.testing.assert_array_equal(counts, np.where(is_finite, 67, 0))
    indices = found.indices.read()
    assert (indices[:, 67:] == -1).all()
    assert (indices[~is_finite] == -1).all()
    assert set(indices[is_finite, :67].ravel()) == set(np.flatnonzero(is_finite))
    assert np.isinf(found.squared_distances.read()[:, 67:]).all()
