from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from preprocess import plain_background_plane as plain

from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess.background_plane import (
    PIXEL_FOREGROUND,
    PIXEL_MISSING,
    PIXEL_REMOVED,
    PlaneSearch,
    find_background_plane,
    mark_background,
)

RECIPE = get_recipe("cfm")


def test_the_plane_of_a_noisy_tilted_table_is_found(make_table_scan) -> None:
    search = find_background_plane(make_table_scan().xyz, RECIPE)
    assert search.plane is not None
    assert search.reason == ""
    normal = np.array(search.plane[:3])
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-12)
    # z = 0.46 + 0.03 x - 0.02 y, as a plane with a positive offset
    expected = np.array([0.03, -0.02, -1, 0.46]) / np.linalg.norm([0.03, -0.02, -1])
    np.testing.assert_allclose(search.plane, expected, atol=2e-4)
    assert search.num_inliers == search.num_rim_points


def test_the_search_is_deterministic(make_table_scan) -> None:
    xyz = make_table_scan().xyz
    assert find_background_plane(xyz, RECIPE) == find_background_plane(xyz.copy(), RECIPE)


def test_an_object_over_half_of_the_rim_does_not_spoil_the_plane(make_table_scan) -> None:
    xyz = make_table_scan().xyz.copy()
    xyz[:, :40, 2] -= np.linspace(0.01, 0.05, 40, dtype=np.float32)  # a ramp over one side
    search = find_background_plane(xyz, RECIPE)
    assert search.plane is not None
    assert search.plane[3] == pytest.approx(0.46, abs=1e-3)
    assert search.num_inliers < search.num_rim_points


def _only_a_patch_of_rim(xyz: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    cut = xyz.copy()
    rim = np.ones(cut.shape[:2], bool)
    rim[10:-10, 10:-10] = False
    rim[rows, columns] = False
    cut[rim] = 0
    return cut


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("rim not measured", "0 measured rim pixels, 50 are needed"),
        ("few rim points", "49 measured rim pixels, 50 are needed"),
        ("one spot", "on a line or in one spot"),
        ("on a line", "on a line or in one spot"),
        ("object touches the rim of a cut-out scan", "the best plane holds"),
        ("no plane in the rim", "the best plane holds"),
        ("nothing measured", "0 measured rim pixels"),
    ],
)
def test_no_plane_is_a_normal_answer_with_its_reason(make_table_scan, case, words) -> None:
    xyz = make_table_scan().xyz.copy()
    nowhere = slice(0, 0)
    if case == "rim not measured":
        xyz = _only_a_patch_of_rim(xyz, nowhere, nowhere)
    elif case == "few rim points":
        xyz = _only_a_patch_of_rim(xyz, nowhere, nowhere)
        xyz[0, :49] = (0.1, 0.1, 0.5)
    elif case == "one spot":
        xyz[:] = (0.1, 0.1, 0.5)
    elif case == "on a line":
        steps = np.linspace(0.1, 0.2, 96, dtype=np.float32)
        xyz[:] = np.stack([steps, steps, steps], axis=-1)
    elif case == "object touches the rim of a cut-out scan":
        xyz = _only_a_patch_of_rim(xyz, slice(0, 10), slice(40, 55))
    elif case == "no plane in the rim":
        xyz[..., 2] = np.random.default_rng(1).uniform(0.3, 0.6, xyz.shape[:2])
    else:
        xyz[:] = 0
    search = find_background_plane(xyz, RECIPE)
    assert search.plane is None
    assert search.num_inliers == 0
    assert words in search.reason
    states = mark_background(xyz, search, RECIPE)
    assert (states == PIXEL_REMOVED).sum() == 0
    assert ((states == PIXEL_FOREGROUND) == (xyz != 0).all(axis=-1)).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (1, 300), (300, 3), (19, 19), (20, 21)])
def test_every_rim_pixel_counts_once(size: tuple[int, int]) -> None:
    xyz = np.full((*size, 3), 0.5, np.float32)
    search = find_background_plane(xyz, RECIPE)
    height, width = size
    inner = max(0, height - 20) * max(0, width - 20)
    assert search.num_rim_points == height * width - inner


def scan_with_a_cluttered_rim(seed: int, share: float) -> np.ndarray:
    """Two planes with a share of the pixels on neither: few of the search's samples lie on one
    plane, so its random numbers decide what the background is."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 160, 2)
    rows, columns = np.mgrid[:height, :width] * 0.0008
    z = 0.4 + 0.1 * rows - 0.05 * columns + rng.normal(0, 1e-4, (height, width))
    z[:, width // 2 :] += 0.15
    z += (rng.random((height, width)) < share) * rng.uniform(0.01, 0.4, (height, width))
    xyz = np.stack([columns - 0.03, rows - 0.03, z], axis=-1)
    xyz[rng.random((height, width)) < 0.1] = 0
    return xyz.astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1, 4, 2**33 + 7, 2**63 - 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.76])
def test_the_search_is_numpys_with_its_random_numbers(seed: int, share: float) -> None:
    recipe = dataclasses.replace(RECIPE, seed=seed, min_inlier_fraction=0.05, min_rim_coverage=0.05)
    for scan in range(4):
        xyz = scan_with_a_cluttered_rim(scan, share)
        expected = plain.find_background_plane(xyz, recipe)
        search = find_background_plane(xyz, recipe)
        assert expected.plane is not None
        # Eigenvectors come from another algorithm: their last digits differ, no decision does.
        np.testing.assert_allclose(search.plane, expected.plane, rtol=0, atol=1e-12)
        assert dataclasses.replace(search, plane=None) == dataclasses.replace(expected, plane=None)
        states = mark_background(xyz, search, recipe)
        np.testing.assert_array_equal(states, mark_background(xyz, expected, recipe))


def test_the_random_numbers_decide_where_the_rim_is_cluttered() -> None:
    planes = set()
    for seed in (0, 1, 4, 2**33 + 7, 2**63 - 1):
        recipe = dataclasses.replace(
            RECIPE, seed=seed, min_inlier_fraction=0.05, min_rim_coverage=0.05
        )
        plane = find_background_plane(scan_with_a_cluttered_rim(0, 0.76), recipe).plane
        planes.add(tuple(np.round(plane, 3)))
    assert len(planes) > 1


def test_pixels_strictly_nearer_than_the_limit_are_removed() -> None:
    recipe = dataclasses.replace(RECIPE, plane_removal_m=0.25)
    plane = PlaneSearch((0.0, 0.0, -1.0, 1.0), 100, 100)
    depths = [0.75, np.nextafter(np.float32(0.75), np.float32(1)), 1.0, 1.25, 1.5, 0.0]
    xyz = np.ones((1, 6, 3), np.float32)
    xyz[0, :, 2] = depths
    states = mark_background(xyz, plane, recipe)
    assert states.tolist() == [
        [
            PIXEL_FOREGROUND,  # exactly the limit
            PIXEL_REMOVED,
            PIXEL_REMOVED,
            PIXEL_FOREGROUND,
            PIXEL_FOREGROUND,
            PIXEL_MISSING,
        ]
    ]


def test_a_pixel_with_any_zero_coordinate_is_not_measured() -> None:
    xyz = np.array(
        [[[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1], [-1, 1, 1]]], np.float32
    )
    states = mark_background(xyz, PlaneSearch(None, 0, 0, "none"), RECIPE)
    assert states.tolist() == [[PIXEL_MISSING] * 4 + [PIXEL_FOREGROUND] * 2]


def test_marking_agrees_with_numpy_on_a_large_scan() -> None:
    rng = np.random.default_rng(3)
    xyz = rng.uniform(-1, 1, (301, 257, 3)).astype(np.float32)
    xyz[rng.random((301, 257)) < 0.1] = 0
    plane = np.array([0.6, 0.0, 0.8, 0.1])
    recipe = dataclasses.replace(RECIPE, plane_removal_m=0.2)
    states = mark_background(xyz, PlaneSearch(tuple(plane), 9, 9), recipe)
    is_near = np.abs(xyz.astype(np.float64) @ plane[:3] + plane[3]) < 0.2
    is_measured = (xyz != 0).all(axis=-1)
    expected = np.where(is_near, PIXEL_REMOVED, np.where(is_measured, PIXEL_FOREGROUND, 0))
    np.testing.assert_array_equal(states, expected)
