"""The CUDA kernel of surface normals, emulated on the host or on a device."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.cases import Cloud, by_name, depth_frame, integer_cloud, uniform_cloud
from ops.neighbor_kernels import Neighbors, find_neighbors, fit_normals

from mmad_fast.ops.surface_normals import ORIENTATIONS, reference

WELL_DEFINED = 1e-5
"""The two smallest eigenvalues differ by more than this part of the largest: then a direction is
found to 1e-9, for all that float64 rounds."""

SURFACES = (
    Cloud("sixty-three-uniform", uniform_cloud(63, seed=1), False),
    Cloud("uniform-300", uniform_cloud(300), False),
    Cloud("depth-frame", depth_frame(28, seed=1).points, False),
    Cloud("millimetres", depth_frame(24, seed=2).points * np.float32(1000), False),
)


def reference_normals(
    points: NDArray[np.float32], neighbors: Neighbors, k: int, radius: float, orientation: str
) -> NDArray[np.float64]:
    return reference.surface_normals(points, *neighbors.within(k, radius), orientation)


def covariances(
    points: NDArray[np.float32], indices: NDArray[np.int32], counts: NDArray[np.int32]
) -> NDArray[np.float64]:
    """(N, 3, 3), by NumPy."""
    exact = points.astype(np.float64)
    return np.stack(
        [
            np.cov(exact[row[:count]], rowvar=False, bias=True) if count > 1 else np.zeros((3, 3))
            for row, count in zip(indices, counts, strict=True)
        ]
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("k", "radius"), [(30, np.inf), (7, np.inf), (50, 0.35)])
@pytest.mark.parametrize("cloud", SURFACES, ids=by_name)
def test_normals_equal_the_reference(
    cuda_kernels: ModuleType, cloud: Cloud, k: int, radius: float, orientation: str
) -> None:
    """Signs included; and where the plane is hardly defined, no direction has less variance."""
    scale = float(np.ptp(cloud.points, axis=0).max())
    radius = radius * scale
    neighbors = find_neighbors(cuda_kernels, cloud.points, k + 5)
    found = fit_normals(cuda_kernels, cloud.points, neighbors, orientation, k=k, radius=radius)
    expected = reference_normals(cloud.points, neighbors, k, radius, orientation)
    indices, counts = neighbors.within(k, radius)
    matrices = covariances(cloud.points, indices, counts)
    values = np.linalg.eigvalsh(matrices)
    is_well_defined = values[:, 1] - values[:, 0] > WELL_DEFINED * values[:, 2]
    assert is_well_defined.mean() > 0.8
    np.testing.assert_allclose(found[is_well_defined], expected[is_well_defined], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    variances = np.einsum("ni,nij,nj->n", found, matrices, found)
    has_plane = counts >= 3
    assert (variances - values[:, 0] <= 1e-12 * values[:, 2])[has_plane].all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_directions_equal_the_reference_on_integers(
    cuda_kernels: ModuleType, orientation: str
) -> None:
    """A sign is a tie where the camera is in the plane, or where the middle one of the three
    eigenvalues is halfway between the others."""
    points = integer_cloud(500, high=6, seed=3)
    neighbors = find_neighbors(cuda_kernels, points, 9)
    found = fit_normals(cuda_kernels, points, neighbors, orientation)
    expected = reference_normals(points, neighbors, 9, np.inf, orientation)
    values = np.linalg.eigvalsh(covariances(points, *neighbors.within()))
    is_well_defined = values[:, 1] - values[:, 0] > WELL_DEFINED * values[:, 2]
    if orientation == "camera":
        is_tie = np.abs((found * points).sum(axis=1)) < 1e-9
    else:
        is_tie = np.abs(values[:, 0] + values[:, 2] - 2 * values[:, 1]) < 1e-9 * values[:, 2]
    assert 0 < is_tie.mean() < 0.2
    sign = np.where(is_tie, np.sign((found * expected).sum(axis=1)), 1)[:, None]
    np.testing.assert_allclose(
        (sign * found)[is_well_defined], expected[is_well_defined], atol=1e-9
    )


def test_float32_normals_are_the_rounded_ones(cuda_kernels: ModuleType) -> None:
    points = uniform_cloud(130)
    neighbors = find_neighbors(cuda_kernels, points, 20)
    exact = fit_normals(cuda_kernels, points, neighbors, "open3d")
    rounded = fit_normals(cuda_kernels, points, neighbors, "open3d", dtype=torch.float32)
    np.testing.assert_array_equal(rounded, exact.astype(np.float32))


@pytest.mark.parametrize("num_points", [1, 2, 3, 127, 128, 129])
def test_sizes_around_blocks_and_tiles(cuda_kernels: ModuleType, num_points: int) -> None:
    """A block has 128 points; fewer than 3 have no plane."""
    points = uniform_cloud(num_points, seed=5)
    k = min(num_points, 10)
    neighbors = find_neighbors(cuda_kernels, points, k)
    found = fit_normals(cuda_kernels, points, neighbors, "open3d")
    expected = reference_normals(points, neighbors, k, np.inf, "open3d")
    np.testing.assert_allclose(found, expected, atol=1e-9)
    if num_points < 3:
        np.testing.assert_array_equal(found, np.tile([0, 0, 1], (num_points, 1)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("k", [30, 300])
def test_points_in_one_place_have_the_undefined_normal(
    cuda_kernels: ModuleType, k: int, orientation: str
) -> None:
    points = np.tile(np.float32([[0.123, -0.456, 0.789]]), (k, 1))
    neighbors = find_neighbors(cuda_kernels, points, k)
    found = fit_normals(cuda_kernels, points, neighbors, orientation)
    normal = [0, 0, -1 if orientation == "camera" else 1]
    np.testing.assert_array_equal(found, np.tile(normal, (k, 1)))


def test_points_on_a_line_have_a_normal_across_it(cuda_kernels: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        along = np.linspace(-1, 1, 60)[:, None]
        points = (rng.uniform(-1, 1, 3) + along * direction).astype(np.float32)
        neighbors = find_neighbors(cuda_kernels, points, 20)
        for orientation in ORIENTATIONS:
            found = fit_normals(cuda_kernels, points, neighbors, orientation)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
            # The points are rounded to float32: as far beside the line.
            assert np.abs(found @ direction).max() < 1e-5


@pytest.mark.parametrize("depth", [0.1234567, -3.0])
def test_a_plane_before_the_camera_faces_it(cuda_kernels: ModuleType, depth: float) -> None:
    points = uniform_cloud(200, seed=3)
    points[:, 2] = depth
    neighbors = find_neighbors(cuda_kernels, points, 30)
    found = fit_normals(cuda_kernels, points, neighbors, "camera")
    # float64 rounds depth^2 to 1e-15, and the points are 1e-2 and more apart.
    np.testing.assert_allclose(found, np.tile([0, 0, -np.sign(depth)], (200, 1)), atol=1e-11)


def test_a_radius_that_leaves_fewer_than_three(cuda_kernels: ModuleType) -> None:
    """Of lists made without it, and of lists that end there."""
    points = integer_cloud(300, high=12, seed=2)
    for radius in (0.5, 1.0, 1.5):
        listed = find_neighbors(cuda_kernels, points, 12)
        ended = find_neighbors(cuda_kernels, points, 12, radius)
        expected = reference_normals(points, listed, 12, radius, "camera")
        counts = ended.counts.read()
        np.testing.assert_array_equal(counts, listed.within(12, radius)[1])
        assert (counts < 3).any()
        for neighbors, limit in ((listed, radius), (ended, np.inf), (ended, radius)):
            found = fit_normals(cuda_kernels, points, neighbors, "camera", radius=limit)
            is_few = counts < 3
            np.testing.assert_array_equal(found[is_few], expected[is_few])
            assert (np.abs(found[is_few]) == [0, 0, 1]).all()


def test_points_that_are_not_finite_are_nobodys_neighbours(cuda_kernels: ModuleType) -> None:
    points = uniform_cloud(100, seed=4)
    broken = np.arange(3, 100, 7)
    clean = np.delete(points, broken, axis=0)
    points[broken, 1] = np.nan
    points[broken[:4], 2] = np.inf
    neighbors = find_neighbors(cuda_kernels, points, 90)
    clean_neighbors = find_neighbors(cuda_kernels, clean, len(clean))
    found = fit_normals(cuda_kernels, points, neighbors, "camera")
    np.testing.assert_array_equal(found[broken], np.tile([0, 0, 1], (len(broken), 1)))
    expected = fit_normals(cuda_kernels, clean, clean_neighbors, "camera")
    np.testing.assert_array_equal(np.delete(found, broken, axis=0), expected)


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="a device has no schedule to set")
def test_the_order_of_threads_does_not_matter(cuda_kernels: ModuleType) -> None:
    points = uniform_cloud(200, seed=6)
    neighbors = find_neighbors(cuda_kernels, points, 30)
    expected = fit_normals(cuda_kernels, points, neighbors, "camera")
    for seed in (1, 2, 3):
        cuda_kernels.set_schedule(seed)
        try:
            found = fit_normals(cuda_kernels, points, neighbors, "camera")
        finally:
            cuda_kernels.set_schedule(0)
        np.testing.assert_array_equal(found, expected)
