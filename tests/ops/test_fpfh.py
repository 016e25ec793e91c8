from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops.cases import ADVERSARIAL_CLOUDS, Cloud, by_name, depth_frame, integer_cloud, uniform_cloud
from ops.surface_cases import (
    SURFACES,
    SYNTHETIC,
    and_around,
    has_tied_bins,
    has_tied_neighbors,
    open3d_fpfh,
    open3d_normals,
    size_of,
    surface,
)

from mmad_fast import _kernels
from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.fpfh import NUM_CHANNELS, OP, fpfh
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import find_neighbors
from mmad_fast.ops.surface_normals import surface_normals
from mmad_fast.ops.surface_normals.backends import exact_normals

ALL_BACKENDS = [backend.name for backend in OP.backends_of("cpu")]
FAST_BACKENDS = [name for name in ALL_BACKENDS if name != "reference"]
SUM = 200.0
"""Of a histogram of 11 bins, in percent: of the point's own, and of its neighbours'."""
SHARE_OF_THE_SUM = 1e-4
MIDDLE_BINS = np.arange(5, NUM_CHANNELS, 11)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("max_neighbors", [2, 3, 40, 100, 101])
def test_features_equal_the_reference(max_neighbors: int, backend: str) -> None:
    for points in (depth_frame(40).points, uniform_cloud(700), depth_frame(30).points * 1000):
        for radius in (None, size_of(points) / 9):
            options: dict[str, Any] = {"max_neighbors": max_neighbors, "radius": radius}
            got = fpfh(points, backend=backend, **options)
            expected = fpfh(points, backend="reference", **options)
            assert (got.shape, got.dtype) == ((len(points), NUM_CHANNELS), np.float32)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * SUM)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_each_histogram_has_its_sum(cloud: Cloud, backend: str) -> None:
    points = cloud.points[:1500]
    got = fpfh(points, backend=backend).reshape(len(points), 3, -1)
    assert (got >= 0).all()
    squared = find_neighbors(points, 100).squared_distances
    own = 100 * (squared.shape[1] > 1)
    around = np.where((squared > 0).any(axis=1), own, 0)
    expected = np.repeat((own + around)[:, None], 3, axis=1)
    if cloud.name not in ("denormal", "tiny-squares"):  # squared distances of less than float32 has
        np.testing.assert_allclose(got.sum(axis=2), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("share", [1e3, 1 / 25], ids=["nearest", "radius"])
def test_features_equal_open3d_given_its_normals(name: str, share: float) -> None:
    points = surface(name)
    radius = share * size_of(points)
    normals = open3d_normals(points, 30, radius)
    expected = open3d_fpfh(points, normals, 100, radius)
    got = fpfh(points, normals=normals, radius=radius)
    differs = np.abs(got - expected).max(axis=1) > SHARE_OF_THE_SUM * SUM
    ties = has_tied_neighbors(points, 100, radius) | has_tied_bins(points, normals, 100, radius)
    assert not (differs & ~and_around(ties, points, 100)).any()
    if name in SYNTHETIC:
        assert not differs.any()


@pytest.mark.parametrize("name", SURFACES)
def test_features_equal_open3d_with_normals_of_its_sign(name: str) -> None:
    """As the published code has them: nothing is given."""
    points = surface(name)
    radius = 1e3 * size_of(points)
    normals = open3d_normals(points, 30, radius)
    expected = open3d_fpfh(points, normals, 100, radius)
    got = fpfh(points, orientation="open3d")
    differs = np.abs(got - expected).max(axis=1) > SHARE_OF_THE_SUM * SUM
    # A normal of other equally near neighbours is seen from its neighbours' neighbours.
    of_normals = and_around(has_tied_neighbors(points, 30, radius), points, 100)
    of_pairs = has_tied_neighbors(points, 100, radius) | has_tied_bins(points, normals, 100, radius)
    assert not (differs & ~and_around(of_normals | of_pairs, points, 100)).any()
    if name in SYNTHETIC:  # of noise, points with the same neighbours have the same normal: a tie
        assert differs.mean() < 0.01


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_flat_object_is_in_the_middle_bins(backend: str) -> None:
    rng = np.random.default_rng(0)
    flat = np.column_stack([rng.uniform(-1, 1, (400, 2)), np.full(400, 0.5)]).astype(np.float32)
    got = fpfh(flat, backend=backend)
    expected = np.zeros((400, NUM_CHANNELS), np.float32)
    expected[:, MIDDLE_BINS] = SUM
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_opposite_normals_of_a_plane_equal_the_reference(backend: str) -> None:
    """theta is pi or -pi: the sign of a zero decides."""
    rng = np.random.default_rng(1)
    flat = np.column_stack([rng.uniform(-1, 1, (400, 2)), np.full(400, 0.5)]).astype(np.float32)
    normals = np.zeros((400, 3))
    normals[:, 2] = rng.choice([-1, 1], 400)
    got = fpfh(flat, normals=normals, backend=backend)
    assert (got[:, [0, 10]] > 1).all()
    expected = fpfh(flat, normals=normals, backend="reference")
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * SUM)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_points_without_neighbours_have_empty_histograms(backend: str) -> None:
    assert not fpfh(integer_cloud(1), backend=backend).any()
    assert not fpfh(uniform_cloud(50), radius=1e-6, backend=backend).any()
    assert fpfh(integer_cloud(1)[:0], backend=backend).shape == (0, NUM_CHANNELS)
    assert not fpfh(uniform_cloud(50), max_neighbors=1, backend=backend).any()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_points_in_one_place_are_in_the_middle_bins(backend: str) -> None:
    got = fpfh(np.full((30, 3), 0.5, np.float32), backend=backend)
    expected = np.zeros((30, NUM_CHANNELS), np.float32)
    expected[:, MIDDLE_BINS] = 100
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_opposite_normals_are_in_the_outer_bins(backend: str) -> None:
    """A pair of parallel sheets' points: theta is pi or -pi, on whichever side of the cut."""
    points = np.float32([[0, 0, 0], [1, 0, 0]])
    normals = np.float64([[0, 0, 1], [0, 0, -1]])
    got = fpfh(points, normals=normals, backend=backend)
    assert (got[:, 0] + got[:, 10] == SUM).all()
    assert (got[:, [16, 27]] == SUM).all()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_normal_on_the_line_is_in_the_middle_bins(backend: str) -> None:
    points = np.float32([[0, 0, 0], [0, 0, 2]])
    normals = np.float64([[0, 0, 1], [1, 0, 0]])
    got = fpfh(points, normals=normals, backend=backend)
    assert (got[:, MIDDLE_BINS] == SUM).all()


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_one_search_serves_all(backend: str) -> None:
    points = depth_frame(48).points
    index = PointIndex(points)
    for options in ({}, {"normal_radius": 0.003, "radius": 0.005}, {"normal_neighbors": 120}):
        expected = fpfh(points, backend=backend, **options)
        found = find_neighbors(points, 120, radius=options.get("radius"), index=index)
        for given in ({"index": index}, {"neighbors": found}):
            got = fpfh(points, backend=backend, **options, **given)
            np.testing.assert_array_equal(got, expected)


def test_normals_that_are_given_are_those_that_are_used() -> None:
    points = depth_frame(48).points
    normals = exact_normals(points, find_neighbors(points, 30), 30, None, "camera")
    np.testing.assert_array_equal(fpfh(points, normals=normals), fpfh(points))
    assert np.abs(fpfh(points, orientation="open3d") - fpfh(points)).max() > 10
    # Rounded to float32 a few pairs go to the bin beside.
    rounded = fpfh(points, normals=surface_normals(points))
    assert np.mean(np.abs(rounded - fpfh(points)).max(axis=1) < SHARE_OF_THE_SUM * SUM) > 0.95


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_the_unit_of_the_points_does_not_matter(backend: str) -> None:
    points = uniform_cloud(900)
    for unit in (2.0**-30, 2.0**20):
        got = fpfh(points * np.float32(unit), orientation="open3d", backend=backend)
        expected = fpfh(points, orientation="open3d", backend=backend)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * SUM)


def test_the_order_of_the_points_does_not_matter() -> None:
    points = uniform_cloud(2000)
    order = np.random.default_rng(1).permutation(len(points))
    np.testing.assert_array_equal(fpfh(points[order]), fpfh(points)[order])


def test_the_kernel_writes_only_its_output() -> None:
    points = depth_frame(40).points
    found = find_neighbors(points, 50)
    normals = exact_normals(points, found, 30, None, "camera")
    features = np.full((len(points) + 6, NUM_CHANNELS), np.nan, np.float32)
    rows = (found.indices, found.squared_distances, found.counts)
    _kernels.fpfh(points, normals, *rows, 50, np.inf, features[3:-3])
    np.testing.assert_array_equal(features[3:-3], fpfh(points, max_neighbors=50))
    assert np.isnan(features[:3]).all()
    assert np.isnan(features[-3:]).all()


CLOUD = uniform_cloud(10)
NORMALS = surface_normals(CLOUD)
WITH_NAN = NORMALS.copy()
WITH_NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normals": WITH_NAN}, "normals has a NaN in 1 of 10 rows"),
        ({"normals": NORMALS[:9]}, "normals has 9 rows for 10 points"),
        ({"normals": 2 * NORMALS}, "normals is not of unit length in 10 of 10 rows"),
        ({"normals": 0 * NORMALS}, r"the first is row 0\): divide each by its length"),
        ({"normals": NORMALS.astype(int)}, "normals has dtype int64"),
        ({"normals": NORMALS[:, :2]}, r"normals has shape \(10, 2\)"),
        ({"normal_neighbors": 0}, r"normal_neighbors is 0; it must be in 1\.\.1024"),
        ({"normal_radius": -1.0}, "normal_radius is -1.0; it must be a positive number"),
        ({"max_neighbors": 1025}, "max_neighbors is 1025"),
        ({"radius": np.inf}, "radius is inf"),
        ({"orientation": None}, "orientation is None; it must be one of camera, open3d"),
        ({"neighbors": find_neighbors(CLOUD, 30)}, "neighbors are the 30 nearest, and 100 are"),
        ({"index": 3}, "index is a int; it must be a PointIndex"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        fpfh(CLOUD, **options)
