from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import ADVERSARIAL_CLOUDS, Cloud, by_name, depth_frame, integer_cloud, uniform_cloud
from ops.surface_cases import (
    SURFACES,
    SYNTHETIC,
    has_a_plane,
    has_tied_neighbors,
    open3d_normals,
    size_of,
    surface,
)

from mmad_fast import _kernels
from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import find_neighbors
from mmad_fast.ops.surface_normals import OP, ORIENTATIONS, surface_normals
from mmad_fast.ops.surface_normals.backends import exact_normals
from mmad_fast.ops.surface_normals.reference import covariances

ALL_BACKENDS = [backend.name for backend in OP.backends_of("cpu")]
FAST_BACKENDS = [name for name in ALL_BACKENDS if name != "reference"]
UNDEFINED = np.float32([0, 0, 1])


def tilted_plane(num_points: int = 900) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Points in front of the camera, and their normal."""
    rng = np.random.default_rng(0)
    normal = np.array([0.3, -0.2, -0.9])
    normal /= np.linalg.norm(normal)
    u = np.cross(normal, [1.0, 0, 0])
    u /= np.linalg.norm(u)
    steps = rng.uniform(-0.05, 0.05, (num_points, 2))
    points = [0, 0, 0.5] + steps[:, :1] * u + steps[:, 1:] * np.cross(normal, u)
    return points.astype(np.float32), normal


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("radius", [None, 0.01])
def test_a_plane_has_its_normal_towards_the_camera(backend: str, radius: float | None) -> None:
    points, normal = tilted_plane()
    got = surface_normals(points, radius=radius, backend=backend)
    assert (got.shape, got.dtype) == (points.shape, np.float32)
    np.testing.assert_allclose(got, np.tile(normal, (len(points), 1)), atol=1e-4)
    behind = surface_normals(-points, radius=radius, backend=backend)
    np.testing.assert_allclose(behind, -got, atol=1e-6)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_normals_are_of_unit_length_and_across_the_neighbours(
    cloud: Cloud, orientation: str, backend: str
) -> None:
    points = cloud.points[:3000]
    normals = surface_normals(points, orientation=orientation, backend=backend).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-6)
    exact = points.astype(np.float64)
    if orientation == "camera":
        assert ((normals * exact).sum(axis=1) <= 1e-6 * np.linalg.norm(exact, axis=1)).all()
    exact /= np.abs(exact).max() or 1
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    found = find_neighbors(points, 30)
    matrices = covariances(exact, found.indices, found.counts)
    along = np.einsum("ni,nij,nj->n", normals, matrices, normals)
    values = np.linalg.eigvalsh(matrices)
    is_defined = (found.counts >= 3) & (found.squared_distances > 0).any(axis=1)
    # The rounding of the coordinates' squares, and of a float32 normal. On a line, as far as the
    # root of float64's rounding tells, any direction across it will do.
    slack = (
        1e-14 + 1e-12 * values[:, 2] + np.where(values[:, 1] < 1e-7 * values[:, 2], values[:, 1], 0)
    )
    assert (along - values[:, 0] <= slack)[is_defined].all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("max_neighbors", [3, 4, 30, 77])
def test_normals_equal_the_reference(max_neighbors: int, backend: str, orientation: str) -> None:
    for points in (depth_frame(60).points, uniform_cloud(1025), depth_frame(48).points * 1000):
        for radius in (None, size_of(points) / 12):
            options: dict[str, Any] = {
                "max_neighbors": max_neighbors,
                "radius": radius,
                "orientation": orientation,
            }
            got = surface_normals(points, backend=backend, **options)
            expected = surface_normals(points, backend="reference", **options)
            assert np.isfinite(got).all()
            is_fixed = has_a_plane(points, find_neighbors(points, max_neighbors, radius=radius))
            if orientation == "camera":  # which is in no such plane
                is_fixed &= np.abs((expected * points).sum(axis=1)) > 1e-6 * np.abs(points).max()
            assert is_fixed.mean() > 0.7
            np.testing.assert_allclose(got[is_fixed], expected[is_fixed], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("share", [1e3, 1 / 40], ids=["nearest", "radius"])
def test_normals_equal_open3d_with_its_sign(name: str, share: float) -> None:
    points = surface(name)
    radius = share * size_of(points)
    expected = open3d_normals(points, 30, radius)
    found = find_neighbors(points, 30)
    got = exact_normals(points, found, 30, radius, "open3d")
    differs = np.abs(got - expected).max(axis=1) > 1e-6
    ties = has_tied_neighbors(points, 30, radius)
    is_fixed = has_a_plane(points, found.within(30, radius))
    assert not (differs & ~ties & is_fixed).any()
    if name in SYNTHETIC:
        assert not ties.any()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_normals_that_are_not_defined_are_along_z(backend: str) -> None:
    in_one_place = np.tile(np.float32([0.1, -0.3, 0.7]), (50, 1))
    for points in (integer_cloud(1), integer_cloud(2), in_one_place):
        got = surface_normals(points, orientation="open3d", backend=backend)
        np.testing.assert_array_equal(got, np.tile(UNDEFINED, (len(points), 1)))
        # In front of the camera it is turned like the others.
        turned = surface_normals(points, backend=backend)
        np.testing.assert_array_equal(turned, np.where(points[:, 2:] > 0, -UNDEFINED, UNDEFINED))
    far_apart = uniform_cloud(100) * np.float32(100)
    alone = surface_normals(far_apart, radius=1e-3, orientation="open3d", backend=backend)
    np.testing.assert_array_equal(alone, np.tile(UNDEFINED, (100, 1)))
    assert surface_normals(integer_cloud(1)[:0], backend=backend).shape == (0, 3)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (1, 1, 1), (0.3, -2, 0.7), (1, 1, 0)])
def test_normals_of_a_line_are_across_it(backend: str, direction: tuple[float, ...]) -> None:
    axis = np.array(direction) / np.linalg.norm(direction)
    points = np.float32(np.arange(80)[:, None] * np.array(direction))
    for orientation in ORIENTATIONS:
        got = surface_normals(points, orientation=orientation, backend=backend)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(got @ axis, 0, atol=1e-5)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_points_on_all_sides_have_a_normal(backend: str) -> None:
    cube = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3).astype(np.float32)
    got = surface_normals(cube, backend=backend)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_given_neighbours_and_index_change_nothing(backend: str) -> None:
    points = depth_frame(48).points
    index = PointIndex(points)
    for radius in (None, 0.004):
        expected = surface_normals(points, radius=radius, backend=backend)
        for options in (
            {"index": index},
            {"neighbors": find_neighbors(points, 100, index=index)},
            {"neighbors": find_neighbors(points, 30, radius=radius)},
        ):
            got = surface_normals(points, radius=radius, backend=backend, **options)
            np.testing.assert_array_equal(got, expected)


def test_the_order_of_the_points_does_not_matter() -> None:
    points = uniform_cloud(3000)
    order = np.random.default_rng(1).permutation(len(points))
    np.testing.assert_array_equal(surface_normals(points[order]), surface_normals(points)[order])


def test_the_kernel_writes_only_its_outputs() -> None:
    points = depth_frame(40).points
    n = len(points)
    indices, counts = np.full((n + 6, 30), -77, np.int32), np.full(n + 6, -77, np.int32)
    squared, normals = np.full((n + 6, 30), np.nan, np.float32), np.full((n + 6, 3), np.nan)
    inside = slice(3, n + 3)
    rows = (indices[inside], squared[inside], counts[inside])
    _kernels.point_neighbors(_kernels.PointIndex(points), np.inf, *rows)
    _kernels.surface_normals(points, *rows, 30, np.inf, True, normals[inside])
    np.testing.assert_array_equal(normals[inside].astype(np.float32), surface_normals(points))
    for guard in (slice(0, 3), slice(n + 3, n + 6)):
        assert (indices[guard] == -77).all()
        assert (counts[guard] == -77).all()
        assert np.isnan(squared[guard]).all()
        assert np.isnan(normals[guard]).all()


CLOUD = uniform_cloud(10)
WITH_NAN = CLOUD.copy()
WITH_NAN[4, 1] = np.nan
NEIGHBORS = find_neighbors(CLOUD, 5)


@pytest.mark.parametrize(
    ("points", "options", "words"),
    [
        (WITH_NAN, {}, "a NaN in 1 of 10 rows"),
        (CLOUD.T, {}, r"points has shape \(3, 10\)"),
        (CLOUD, {"max_neighbors": 0}, r"max_neighbors is 0; it must be in 1\.\.1024"),
        (CLOUD, {"max_neighbors": 2000}, "max_neighbors is 2000"),
        (CLOUD, {"radius": 0}, "radius is 0; it must be a positive number"),
        (CLOUD, {"radius": np.nan}, "radius is nan; it must be a positive number"),
        (CLOUD, {"radius": 1e-30}, "its square is 0 in float32: scale the points up"),
        (CLOUD, {"radius": "wide"}, "radius is 'wide'"),
        (CLOUD, {"orientation": "up"}, "orientation is 'up'; it must be one of camera, open3d"),
        (CLOUD, {"index": PointIndex(CLOUD[:9])}, "index is of 9 other points"),
        (CLOUD, {"neighbors": NEIGHBORS}, "neighbors are the 5 nearest, and 30 are needed"),
        (CLOUD[:9], {"neighbors": NEIGHBORS, "max_neighbors": 5}, "there are 9 points"),
        (CLOUD, {"neighbors": NEIGHBORS.indices}, "neighbors is a ndarray; it must be PointNeig"),
        (
            CLOUD,
            {"neighbors": find_neighbors(CLOUD, 30, radius=0.1)},
            "neighbors are those up to 0.1, and those at any distance are needed",
        ),
        (
            CLOUD,
            {"neighbors": replace(NEIGHBORS, indices=NEIGHBORS.indices + 1), "max_neighbors": 5},
            "neighbors hold an index or a count out of range",
        ),
        (
            CLOUD,
            {"neighbors": replace(NEIGHBORS, counts=NEIGHBORS.counts * 2), "max_neighbors": 5},
            "neighbors hold an index or a count out of range",
        ),
        (
            CLOUD,
            {"neighbors": replace(NEIGHBORS, indices=NEIGHBORS.indices.astype(int))},
            "neighbors must be C-contiguous NumPy arrays of int32, float32, int32",
        ),
    ],
)
def test_bad_input_is_refused(points: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        surface_normals(points, **options)
