"""The CUDA kernels of FPFH, emulated on the host or on a device."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.cases import Cloud, by_name, depth_frame, uniform_cloud
from ops.neighbor_kernels import (
    Guarded,
    Neighbors,
    find_neighbors,
    fit_normals,
    fpfh_features,
)

from mmad_fast.ops.fpfh import reference
from mmad_fast.ops.surface_normals import ORIENTATIONS

ROUNDING = 200 * 1e-5
"""Of a histogram's sum of 200: a tenth of what is allowed, for 100 weights in float32."""
CLOUDS = (
    Cloud("sixty-three-uniform", uniform_cloud(63, seed=1), False),
    Cloud("uniform-200", uniform_cloud(200), False),
    Cloud("depth-frame", depth_frame(24, seed=1).points, False),
    Cloud("millimetres", depth_frame(24, seed=2).points * np.float32(1000), False),
)


def random_normals(num_points: int) -> NDArray[np.float64]:
    normals = np.random.default_rng(8).normal(size=(num_points, 3))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def reference_features(
    points: NDArray[np.float32],
    normals: NDArray[np.float64],
    neighbors: Neighbors,
    k: int | None = None,
    radius: float = np.inf,
) -> NDArray[np.float64]:
    return reference.fpfh(points, normals, *neighbors.within(k, radius))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("k", "radius"), [(100, np.inf), (20, np.inf), (60, 0.3)])
@pytest.mark.parametrize("cloud", CLOUDS, ids=by_name)
def test_features_equal_the_reference(
    cuda_kernels: ModuleType, cloud: Cloud, k: int, radius: float, orientation: str
) -> None:
    """Of normals as both ops have them, and no bin differs by a pair: that were 1 % of 100."""
    points = cloud.points
    radius *= float(np.ptp(points, axis=0).max())
    neighbors = find_neighbors(cuda_kernels, points, min(k + 3, len(points)))
    normals = fit_normals(cuda_kernels, points, neighbors, orientation, k=30)
    found = fpfh_features(cuda_kernels, points, normals, neighbors, k=k, radius=radius)
    expected = reference_features(points, normals, neighbors, k, radius)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    assert (expected.max(axis=1) > 10).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_given_normals_of_both_types(cuda_kernels: ModuleType, dtype: type) -> None:
    """Also random ones, which fill all bins."""
    points, normals = uniform_cloud(150, seed=2), random_normals(150).astype(dtype)
    neighbors = find_neighbors(cuda_kernels, points, 40)
    found = fpfh_features(cuda_kernels, points, normals, neighbors)
    expected = reference_features(points, normals.astype(np.float64), neighbors)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    assert (expected > 0).mean() > 0.8
    np.testing.assert_allclose(found.reshape(-1, 3, 11).sum(axis=2), 200, atol=1e-3)


@pytest.mark.parametrize("num_points", [1, 2, 3, 4, 5, 31, 32, 33, 65])
def test_sizes_around_blocks_and_tiles(cuda_kernels: ModuleType, num_points: int) -> None:
    """A block counts the pairs of 4 points, one warp each, and weighs for 32 points."""
    points, normals = uniform_cloud(num_points, seed=5), random_normals(num_points)
    neighbors = find_neighbors(cuda_kernels, points, min(num_points, 37))
    found = fpfh_features(cuda_kernels, points, normals, neighbors)
    expected = reference_features(points, normals, neighbors)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    if num_points == 1:
        np.testing.assert_array_equal(found, np.zeros((1, 33)))


def test_most_neighbors(cuda_kernels: ModuleType) -> None:
    """1023 pairs in one bin still fit in its 16 bits. Here they are those of few points again and
    again, which a search never finds."""
    rng = np.random.default_rng(3)
    points, normals = uniform_cloud(20, seed=3), np.tile([0.0, 0.0, 1.0], (20, 1))
    indices = rng.integers(0, 20, (20, 1024)).astype(np.int32)
    offsets = points[indices].astype(np.float64) - points[:, None]
    neighbors = Neighbors(
        Guarded.of(indices),
        Guarded.of((offsets**2).sum(axis=2).astype(np.float32)),
        Guarded.of(np.full(20, 1024, np.int32)),
    )
    found = fpfh_features(cuda_kernels, points, normals, neighbors)
    expected = reference.fpfh(points, normals, indices, np.full(20, 1024, np.int32))
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    np.testing.assert_allclose(found[:, 5], 200, atol=1e-3)


def test_points_in_one_place_have_their_own_histogram_alone(cuda_kernels: ModuleType) -> None:
    points = np.tile(np.float32([[0.1, -0.4, 0.7]]), (50, 1))
    neighbors = find_neighbors(cuda_kernels, points, 20)
    found = fpfh_features(cuda_kernels, points, random_normals(50), neighbors)
    expected = np.zeros((50, 33))
    expected[:, [5, 16, 27]] = 100  # no distance, no angles: the middle bins
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_points_on_a_line_and_on_one_another(cuda_kernels: ModuleType) -> None:
    """Normals along the line, for which two angles are not defined; and duplicates, which have no
    weight."""
    along = np.repeat(np.arange(40, dtype=np.float32), 2)
    points = along[:, None] * np.float32([0.5, 0, 0])
    normals = random_normals(len(points))
    normals[::3] = [1, 0, 0]
    neighbors = find_neighbors(cuda_kernels, points, 15)
    found = fpfh_features(cuda_kernels, points, normals, neighbors)
    np.testing.assert_allclose(found, reference_features(points, normals, neighbors), atol=ROUNDING)


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12, 1e17])
def test_distances_whose_squares_are_hardly_in_range(
    cuda_kernels: ModuleType, scale: float
) -> None:
    points = uniform_cloud(120, seed=7) * np.float32(scale)
    normals = random_normals(120)
    neighbors = find_neighbors(cuda_kernels, points, 30)
    found = fpfh_features(cuda_kernels, points, normals, neighbors)
    np.testing.assert_allclose(found, reference_features(points, normals, neighbors), atol=ROUNDING)


def test_a_radius_that_leaves_points_alone(cuda_kernels: ModuleType) -> None:
    """Their histograms are 0, and nobody weighs them: they are not among others' neighbours."""
    points = uniform_cloud(200, seed=9)
    normals = random_normals(200)
    radius = 0.12 * float(np.ptp(points, axis=0).max())
    listed = find_neighbors(cuda_kernels, points, 30)
    ended = find_neighbors(cuda_kernels, points, 30, radius)
    expected = reference_features(points, normals, listed, radius=radius)
    is_alone = ended.counts.read() == 1
    assert 0 < is_alone.sum() < 200
    found = fpfh_features(cuda_kernels, points, normals, listed, radius=radius)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    np.testing.assert_array_equal(found[is_alone], 0)
    np.testing.assert_array_equal(fpfh_features(cuda_kernels, points, normals, ended), found)


def test_points_that_are_not_finite_are_nobodys_neighbours(cuda_kernels: ModuleType) -> None:
    """And a normal that is not finite breaks nothing but the histograms around it."""
    points, normals = uniform_cloud(100, seed=4), random_normals(100)
    broken = np.arange(3, 100, 7)
    clean, clean_normals = (np.delete(a, broken, axis=0) for a in (points, normals))
    points[broken, 1] = np.nan
    points[broken[:4], 2] = np.inf
    normals[broken] = np.nan
    found = fpfh_features(cuda_kernels, points, normals, find_neighbors(cuda_kernels, points, 100))
    np.testing.assert_array_equal(found[broken], 0)
    clean_neighbors = find_neighbors(cuda_kernels, clean, len(clean))
    expected = fpfh_features(cuda_kernels, clean, clean_normals, clean_neighbors)
    np.testing.assert_array_equal(np.delete(found, broken, axis=0), expected)
    clean_normals[7] = np.nan
    near_nan = fpfh_features(cuda_kernels, clean, clean_normals, clean_neighbors)
    np.testing.assert_allclose(near_nan.reshape(-1, 3, 11).sum(axis=2), 200, atol=1e-3)


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="a device has no schedule to set")
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_order_of_threads_does_not_matter(cuda_kernels: ModuleType, seed: int) -> None:
    points, normals = uniform_cloud(100, seed=6), random_normals(100)
    neighbors = find_neighbors(cuda_kernels, points, 70)
    expected = fpfh_features(cuda_kernels, points, normals, neighbors)
    cuda_kernels.set_schedule(seed, True)
    try:
        found = fpfh_features(cuda_kernels, points, normals, neighbors)
    finally:
        cuda_kernels.set_schedule(0)
    np.testing.assert_array_equal(found, expected)


def test_the_workspace_holds_the_counts(cuda_kernels: ModuleType) -> None:
    for num_points in (1, 50_000):
        assert cuda_kernels.fpfh_workspace(num_points) == num_points * (33 + 1) * 2
