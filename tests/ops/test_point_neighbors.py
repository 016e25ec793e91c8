"""The nearest neighbours of every point, on clouds made to break the search."""

from __future__ import annotations

import numpy as np
import pytest
from ops.cases import (
    ADVERSARIAL_CLOUDS,
    Cloud,
    by_name,
    float32_squared_distances,
    integer_cloud,
)

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops import point_neighbors
from mmad_fast.ops.point_neighbors import PointNeighbors, find_neighbors

MAX_POINTS = 5000  # of a cloud in full; a sample of the queries is checked


def radii_of(cloud: Cloud) -> list[float | None]:
    squares = float32_squared_distances(cloud.points, cloud.points[0])
    middle = float(np.median(squares))
    # On integers many distances are the radius itself, and it is not below.
    return [None, *(np.sqrt(s) for s in (middle, middle / 64) if 1e-30 < s < 1e30)]


@pytest.mark.parametrize("cloud", ADVERSARIAL_CLOUDS, ids=by_name)
def test_neighbours_equal_plain_float32(cloud: Cloud) -> None:
    points = cloud.points[:MAX_POINTS]
    some = np.random.default_rng(0).permutation(len(points))[:50]
    for max_neighbors in (1, 2, 30, 100, 700):
        for radius in radii_of(cloud):
            got = find_neighbors(points, max_neighbors, radius=radius)
            length = min(max_neighbors, len(points))
            assert got.indices.shape == got.squared_distances.shape == (len(points), length)
            limit = np.float32(np.inf if radius is None else radius * radius)
            for i in some:
                squared = float32_squared_distances(points, points[i])
                nearest = np.argsort(squared, kind="stable")[:length]
                nearest = nearest[squared[nearest] < limit]
                count = len(nearest)
                assert got.counts[i] == count
                np.testing.assert_array_equal(got.indices[i, :count], nearest)
                np.testing.assert_array_equal(got.squared_distances[i, :count], squared[nearest])
                assert (got.indices[i, count:] == -1).all()
                assert np.isinf(got.squared_distances[i, count:]).all()


def test_a_smaller_search_finds_a_part_of_a_larger_one() -> None:
    points = integer_cloud(800, high=12)
    whole = find_neighbors(points, 90)
    for max_neighbors, radius in ((1, None), (30, None), (90, 3.0), (20, 2.5)):
        part = whole.within(max_neighbors, radius)
        alone = find_neighbors(points, max_neighbors, radius=radius)
        np.testing.assert_array_equal(part.indices, alone.indices)
        np.testing.assert_array_equal(part.squared_distances, alone.squared_distances)
        np.testing.assert_array_equal(part.counts, alone.counts)
    with pytest.raises(InvalidInputError, match="neighbors are the 90 nearest, and 91 are needed"):
        whole.within(91, None)


def test_without_compiled_kernels_the_neighbours_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = integer_cloud(300, high=12)
    expected = find_neighbors(points, 40, radius=5)
    monkeypatch.setattr(point_neighbors, "kernels_refusal", lambda: "they are not there")
    got = find_neighbors(points, 40, radius=5)
    np.testing.assert_array_equal(got.indices, expected.indices)
    np.testing.assert_array_equal(got.squared_distances, expected.squared_distances)
    np.testing.assert_array_equal(got.counts, expected.counts)


def test_equal_points_are_not_slow() -> None:
    """All boxes overlap and nothing can be pruned: a scan per point, and no worse."""
    got = find_neighbors(np.full((2000, 3), 0.5, np.float32), 100)
    np.testing.assert_array_equal(got.indices, np.tile(np.arange(100), (2000, 1)))
    assert not got.squared_distances.any()


def test_what_is_behind_the_count_is_no_neighbour_of_a_smaller_search():
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    found = find_neighbors(points, 20)
    indices = found.indices.copy()
    indices[:, 5:] = 2**30
    few = PointNeighbors(indices, found.squared_distances, np.full(50, 5, np.int32), 20, None)
    fewer = few.within(10, 100.0)
    assert (fewer.counts == 5).all()
    assert (fewer.indices[:, 5:] == -1).all()
