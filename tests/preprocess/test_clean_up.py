from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND, PIXEL_MISSING, PIXEL_REMOVED
from mmad_fast.preprocess.clean_up import density_clusters, keep_largest_cluster

cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn (extra 'fit') is the oracle")


def sklearn_labels(points: np.ndarray, radius: float, min_points: int) -> np.ndarray:
    return cluster.DBSCAN(eps=radius, min_samples=min_points).fit_predict(points.astype(np.float64))


def point_sets() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    blobs = np.concatenate([rng.normal(rng.uniform(-5, 5, 3), 0.4, (200, 3)) for _ in range(8)])
    sheet = np.stack([*np.mgrid[:60, :60].reshape(2, -1) * 0.31, rng.normal(0, 0.05, 3600)], axis=1)
    bridge = np.stack([np.linspace(-9, 9, 60), np.zeros(60), np.zeros(60)], axis=1)
    return {
        "one point": np.zeros((1, 3)),
        "no point": np.zeros((0, 3)),
        "uniform noise": rng.uniform(-6, 6, (3000, 3)),
        "blobs and noise": np.concatenate([blobs, rng.uniform(-9, 9, (400, 3))]),
        "blobs in random order": rng.permutation(blobs),
        "curved sheet": sheet,
        "thin bridge": np.concatenate([bridge, blobs]),
        "all the same": np.full((50, 3), 1.25),
        "negative far corner": blobs - 3000,
    }


@pytest.mark.parametrize("min_points", [1, 2, 5, 30])
@pytest.mark.parametrize("name", sorted(point_sets()))
def test_labels_are_those_of_scikit_learn(name: str, min_points: int) -> None:
    points = point_sets()[name].astype(np.float32)
    labels = density_clusters(points, radius=1.0, min_points=min_points)
    if len(points) == 0:
        assert labels.shape == (0,)
        return
    np.testing.assert_array_equal(labels, sklearn_labels(points, 1.0, min_points))


@pytest.mark.parametrize("min_points", [3, 7, 8, 19, 27])
def test_points_exactly_on_the_radius_are_neighbours(min_points: int) -> None:
    # Integer coordinates and radius 2: distances of exactly 2 occur everywhere.
    rng = np.random.default_rng(11)
    points = rng.integers(-12, 12, (1500, 3)).astype(np.float32)
    labels = density_clusters(points, radius=2.0, min_points=min_points)
    np.testing.assert_array_equal(labels, sklearn_labels(points, 2.0, min_points))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_points=st.integers(1, 300),
    spread=st.floats(0.3, 6),
    min_points=st.integers(1, 12),
)
def test_labels_are_those_of_scikit_learn_on_random_clouds(
    seed: int, num_points: int, spread: float, min_points: int
) -> None:
    points = np.random.default_rng(seed).normal(0, spread, (num_points, 3)).astype(np.float32)
    labels = density_clusters(points, radius=1.0, min_points=min_points)
    np.testing.assert_array_equal(labels, sklearn_labels(points, 1.0, min_points))


RADIUS = 0.006
CELL = RADIUS * (1 - 1e-6) / np.sqrt(3)
OFFSETS = [o for o in itertools.product(range(-2, 3), repeat=3) if o > (0, 0, 0)]


def facing_sheets(offset: tuple[int, ...], num_points: int, relative_gap: float) -> np.ndarray:
    """At most num_points / 4 points of two parallel planes, one in each of two cells, across the
    line of their centres; relative_gap: what their distance is above the radius, in radii."""
    rng, across = np.random.default_rng(0), np.array(offset) / np.linalg.norm(offset)
    base = np.full(3, 40)
    middle = (base + 0.5 + np.array(offset) / 2) * CELL
    sheets = []
    for cell, side in ((base, -0.5), (base + offset, 0.5)):
        points = (rng.uniform(0, 1, (num_points, 3)) + cell) * CELL
        height = side * RADIUS * (1 + relative_gap) - (points - middle) @ across
        points += height[:, None] * across
        is_inside = ((points > cell * CELL) & (points < (cell + 1) * CELL)).all(axis=1)
        sheets.append(points[is_inside][: num_points // 8])
    return np.concatenate(sheets).astype(np.float32)


@pytest.mark.parametrize("relative_gap", [1e-4, 1e-6, -1e-4])
def test_sheets_that_face_each_other_at_the_radius(relative_gap: float) -> None:
    """In all pairs of neighbouring cells; of cells so full that they are divided."""
    num_dense = 0
    for offset in OFFSETS:
        points = facing_sheets(offset, 1400, relative_gap)
        if len(points) < 300:  # the planes cut the cells' corners only
            continue
        labels = density_clusters(points, radius=RADIUS, min_points=5)
        np.testing.assert_array_equal(labels, sklearn_labels(points, RADIUS, 5), str(offset))
        num_dense += 1
    assert num_dense > 40


@pytest.mark.parametrize("kind", ["shells", "needle and shell", "lattices", "coincident", "noise"])
@pytest.mark.parametrize("gap", [0.0, 2.0**-20, -(2.0**-20), 0.01])
def test_dense_clumps_that_are_about_the_radius_apart(kind: str, gap: float) -> None:
    """Radius 2. On the lattices, and the coincident points, the distance is exactly 2 + gap."""
    rng = np.random.default_rng(3)
    directions = rng.normal([1, 0, 0], 0.2, (2, 400, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    if kind == "shells":
        points = np.concatenate([directions[0], directions[1] * (3 + gap)])
    elif kind == "needle and shell":
        points = np.concatenate([directions[0] * 1e-5, directions[1] * (2 + 1e-5 + gap)])
    elif kind == "lattices":
        plane = np.stack([*np.mgrid[0:1:1, :20, :20].reshape(3, -1)], axis=1) / 32
        points = np.concatenate([plane, plane + np.array([2 + gap, 0, 0])])
    elif kind == "coincident":
        points = np.repeat([[0.0, 0, 0], [2 + gap, 0, 0], [2 + gap, 2**-10, 0]], 400, axis=0)
    else:  # a cell so full that single points look it up in its tree, and some about it
        points = np.concatenate([rng.normal(0, 0.02, (1500, 3)), rng.normal(0, 1.3, (60, 3))])
        points[:1200] = points[:40].repeat(30, axis=0)
    points = (points + 0.25).astype(np.float32)
    for min_points in (3, 30):
        labels = density_clusters(points, radius=2.0, min_points=min_points)
        np.testing.assert_array_equal(labels, sklearn_labels(points, 2.0, min_points))


@pytest.mark.parametrize("offset", [(0, 1, 1), (1, 1, 1), (2, 1, 1)])
def test_dense_clumps_take_no_time_of_all_pairs(offset: tuple[int, ...]) -> None:
    """80,000 pixels in each of two cells took 5 s and more."""
    points = facing_sheets(offset, 640_000, 1e-5)
    assert len(points) > 100_000
    start = time.process_time()
    labels = density_clusters(points, radius=RADIUS, min_points=30)
    assert time.process_time() - start < 2
    assert set(labels) == {0, 1}


def test_strided_and_read_only_points_are_read_rightly() -> None:
    points = point_sets()["blobs and noise"].astype(np.float32)
    wide = np.zeros((len(points) * 2, 5), np.float32)
    wide[::2, 1:4] = points
    wide.flags.writeable = False
    expected = density_clusters(points, radius=1.0, min_points=5)
    np.testing.assert_array_equal(
        density_clusters(wide[::2, 1:4], radius=1.0, min_points=5), expected
    )


@pytest.mark.parametrize(
    ("points", "radius", "min_points", "words"),
    [
        (np.zeros((4, 2), np.float32), 1.0, 5, r"shape \(4, 2\); it must be \(rows, 3\)"),
        (np.zeros((4, 3), np.int32), 1.0, 5, "dtype int32"),
        (np.zeros((4, 3), np.float32), np.inf, 5, "radius is inf"),
        (np.zeros((4, 3), np.float32), "1", 5, "radius is '1'; it must be a number"),
        (np.zeros((4, 3), np.float32), 1.0, 2.5, "min_points is 2.5; it must be an integer"),
        (np.zeros((4, 3), np.float32), 0.0, 5, "the radius must be > 0"),
        (np.zeros((4, 3), np.float32), 1.0, 0, r"min_points is 0; it must be in 1\.\."),
        (np.full((4, 3), np.nan, np.float32), 1.0, 5, "must be finite"),
        (np.full((4, 3), 1e9, np.float32), 1.0, 5, "same unit"),
    ],
)
def test_bad_points_are_refused(points, radius, min_points, words) -> None:
    with pytest.raises(InvalidInputError, match=words):
        density_clusters(points, radius=radius, min_points=min_points)


def _largest_label_states(
    points_by_pixel: np.ndarray, radius: float, min_points: int
) -> np.ndarray:
    labels = sklearn_labels(points_by_pixel, radius, min_points)
    values, counts = np.unique(labels, return_counts=True)
    return np.where(labels == values[counts.argmax()], PIXEL_FOREGROUND, PIXEL_REMOVED)


@pytest.mark.parametrize("name", ["blobs and noise", "uniform noise", "curved sheet"])
def test_the_pixels_with_the_most_frequent_label_stay(name: str) -> None:
    points = point_sets()[name].astype(np.float32)
    xyz = np.ascontiguousarray(points.reshape(1, -1, 3))
    states = np.full(xyz.shape[:2], PIXEL_FOREGROUND, np.uint8)
    recipe = dataclasses.replace(get_recipe("cfm"), cluster_radius_m=1.0, cluster_min_points=12)
    kept = keep_largest_cluster(xyz, states, recipe)
    np.testing.assert_array_equal(kept[0], _largest_label_states(points, 1.0, 12))
    assert (states == PIXEL_FOREGROUND).all(), "the argument must be left as it is"


def test_noise_that_is_the_most_frequent_label_stays() -> None:
    # 5 isolated points and a cluster of 4: the published script keeps the noise.
    line = np.arange(5, dtype=np.float32) * 10 + 1
    noise = np.stack([line, line, line], axis=1)
    group = np.full((4, 3), -5, np.float32)
    xyz = np.concatenate([group, noise])[None]
    recipe = dataclasses.replace(get_recipe("cfm"), cluster_radius_m=1.0, cluster_min_points=4)
    kept = keep_largest_cluster(xyz, np.full((1, 9), PIXEL_FOREGROUND, np.uint8), recipe)
    assert kept[0].tolist() == [PIXEL_REMOVED] * 4 + [PIXEL_FOREGROUND] * 5


def test_a_tie_goes_to_the_lowest_label() -> None:
    first, second = np.full((5, 3), 3, np.float32), np.full((5, 3), -3, np.float32)
    xyz = np.concatenate([first, second])[None]
    recipe = dataclasses.replace(get_recipe("cfm"), cluster_radius_m=1.0, cluster_min_points=4)
    kept = keep_largest_cluster(xyz, np.full((1, 10), PIXEL_FOREGROUND, np.uint8), recipe)
    assert kept[0].tolist() == [PIXEL_FOREGROUND] * 5 + [PIXEL_REMOVED] * 5


def test_missing_and_removed_pixels_take_no_part() -> None:
    xyz = np.full((3, 20, 3), 0.5, np.float32)
    states = np.full((3, 20), PIXEL_MISSING, np.uint8)
    states[1] = PIXEL_REMOVED
    kept = keep_largest_cluster(xyz, states, get_recipe("cfm"))
    np.testing.assert_array_equal(kept, states)
