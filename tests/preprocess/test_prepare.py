from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import families, get_recipe
from mmad_fast.preprocess import prepare, segment_foreground
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND, PIXEL_REMOVED
from mmad_fast.scan import Scan


def measured(scan: Scan) -> np.ndarray:
    return (scan.xyz != 0).all(axis=-1)


def test_the_block_on_the_table_is_the_foreground(make_table_scan, make_block_mask) -> None:
    scan = make_table_scan()
    foreground = segment_foreground(scan.xyz, get_recipe("cfm"))
    expected = make_block_mask(96, 96, 24) & measured(scan)
    np.testing.assert_array_equal(foreground.states == PIXEL_FOREGROUND, expected)


def test_a_smaller_second_object_is_cleaned_up(make_table_scan, make_block_mask) -> None:
    scan = make_table_scan()
    xyz = scan.xyz.copy()
    xyz[14:22, 14:22, 2] = 0.44
    states = segment_foreground(xyz, get_recipe("cfm")).states
    assert (states[14:22, 14:22] != PIXEL_FOREGROUND).all()
    expected = make_block_mask(96, 96, 24) & measured(scan)
    np.testing.assert_array_equal(states == PIXEL_FOREGROUND, expected)


@pytest.mark.parametrize("name", ["cfm", "m3dm", "none"])
def test_a_prepared_scan_keeps_its_promises(make_table_scan, name: str) -> None:
    scan = make_table_scan(90, 60)
    prepared = prepare(scan, get_recipe(name), rgb_size=112, grid_size=56)
    assert prepared.rgb.shape == (3, 112, 112)
    assert prepared.rgb.dtype == np.float32
    assert prepared.rgb.flags.c_contiguous
    assert prepared.xyz.shape == (56, 56, 3)
    assert prepared.xyz.dtype == np.float32
    assert prepared.points.dtype == np.float32
    assert prepared.pixel_indices.dtype == np.int64
    assert prepared.grid_size == 56
    assert prepared.native_size == (90, 60)
    assert prepared.padding == (0, 0, 15, 15)
    assert prepared.name == "table"
    is_point = (prepared.xyz != 0).all(axis=-1)
    np.testing.assert_array_equal(prepared.pixel_indices, np.flatnonzero(is_point))
    np.testing.assert_array_equal(prepared.points, prepared.xyz[is_point])
    assert (prepared.xyz[~is_point] == 0).all()
    assert 0 < len(prepared.points) < 56 * 56
    assert not is_point[:, :9].any(), "the border holds no points"


def test_only_m3dm_blacks_out_the_rgb_background(make_table_scan, make_block_mask) -> None:
    scan = make_table_scan(64, 64, radius_px=16)
    black, keep = (
        prepare(scan, get_recipe(name), rgb_size=64, grid_size=64).rgb for name in ("m3dm", "cfm")
    )
    mean, std = np.array(get_recipe("m3dm").mean), np.array(get_recipe("m3dm").std)
    levels = np.rint((black.transpose(1, 2, 0) * std + mean) * 255).astype(np.uint8)
    is_block = make_block_mask(64, 64, 16)
    expected = scan.rgb.copy()
    # Pixels that were not measured keep their colour: the published script blacks out by 3D.
    expected[~is_block & measured(scan)] = 0
    np.testing.assert_array_equal(levels, expected)
    levels = np.rint((keep.transpose(1, 2, 0) * std + mean) * 255).astype(np.uint8)
    np.testing.assert_array_equal(levels, scan.rgb)


def test_without_background_removal_every_measured_pixel_stays(make_table_scan) -> None:
    scan = make_table_scan()
    prepared = prepare(scan, get_recipe("none"), grid_size=96)
    np.testing.assert_array_equal(prepared.pixel_indices, np.flatnonzero(measured(scan)))


def cut_out(scan: Scan) -> Scan:
    """The scan after a first removal of its background."""
    states = segment_foreground(scan.xyz, get_recipe("cfm")).states
    xyz = np.where((states == PIXEL_FOREGROUND)[..., None], scan.xyz, np.float32(0))
    return Scan.from_arrays(scan.rgb, xyz)


def test_a_scan_that_was_cut_out_before_is_left_as_it_is(make_table_scan) -> None:
    scan = cut_out(make_table_scan())
    foreground = segment_foreground(scan.xyz, get_recipe("cfm"))
    assert "0 measured rim pixels" in foreground.search.reason
    np.testing.assert_array_equal(foreground.states == PIXEL_FOREGROUND, measured(scan))
    prepared = prepare(scan, get_recipe("m3dm"), grid_size=96)
    assert len(prepared.points) == measured(scan).sum()


def test_a_cut_out_object_that_touches_the_rim_is_left_as_it_is(make_table_scan) -> None:
    scan = make_table_scan()
    xyz = scan.xyz.copy()
    is_object = np.zeros((96, 96), bool)
    is_object[:60, 40:56] = True  # 16 of its columns lie on the upper rim
    xyz[is_object & measured(scan), 2] = 0.44
    xyz[~is_object] = 0
    foreground = segment_foreground(xyz, get_recipe("cfm"))
    assert "the best plane holds" in foreground.search.reason
    np.testing.assert_array_equal(foreground.states == PIXEL_FOREGROUND, is_object & measured(scan))


def test_an_object_that_touches_the_rim_on_a_table_is_cut_out(make_table_scan) -> None:
    scan = make_table_scan()
    xyz = scan.xyz.copy()
    is_arm = np.zeros((96, 96), bool)
    is_arm[:48, 40:56] = True  # from the rim to the block's middle
    xyz[is_arm & measured(scan), 2] = 0.44
    foreground = segment_foreground(xyz, get_recipe("cfm"))
    assert foreground.search.plane is not None
    assert (foreground.states[is_arm & measured(scan)] == PIXEL_FOREGROUND).all()
    assert (foreground.states[:, :15][measured(scan)[:, :15]] == PIXEL_REMOVED).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (7, 5), (1, 40), (9, 9), (20, 20)])
@pytest.mark.parametrize("content", ["nothing", "one plane", "one value", "noise"])
@pytest.mark.parametrize("name", ["cfm", "m3dm", "none"])
def test_tiny_and_degenerate_scans_are_prepared(size, content: str, name: str) -> None:
    rng = np.random.default_rng(0)
    xyz = np.zeros((*size, 3), np.float32)
    if content == "one plane":
        xyz[..., :2] = rng.uniform(0.1, 1, (*size, 2))
        xyz[..., 2] = 0.5
    elif content == "one value":
        xyz[:] = 0.5
    elif content == "noise":
        xyz[:] = rng.uniform(-1, 1, (*size, 3))
    scan = Scan.from_arrays(rng.integers(0, 256, (*size, 3), dtype=np.uint8), xyz)
    prepared = prepare(scan, get_recipe(name))
    assert np.isfinite(prepared.rgb).all()
    assert np.isfinite(prepared.points).all()
    assert prepared.native_size == size
    if content == "nothing":
        assert prepared.points.shape == (0, 3)
        assert prepared.pixel_indices.shape == (0,)


def test_a_scan_of_nothing_but_table_has_no_points(make_table_scan) -> None:
    prepared = prepare(make_table_scan(rise_m=0.0), get_recipe("cfm"))
    assert prepared.points.shape == (0, 3)
    assert (prepared.xyz == 0).all()


def test_read_only_arrays_are_prepared_and_left_as_they_are(make_table_scan) -> None:
    scan = make_table_scan()
    scan.rgb.flags.writeable = False
    scan.xyz.flags.writeable = False
    for recipe in (get_recipe("none"), *(family.recipe for family in families())):
        prepared = prepare(scan, recipe, rgb_size=96, grid_size=96)
        assert not np.shares_memory(prepared.xyz, scan.xyz)
        assert prepared.xyz.flags.writeable


def test_preparing_is_deterministic_and_thread_safe(make_table_scan) -> None:
    scans = [make_table_scan(seed=seed) for seed in range(4)]
    expected = [prepare(scan, get_recipe("m3dm")) for scan in scans]
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(lambda scan: prepare(scan, get_recipe("m3dm")), scans * 4))
    for index, result in enumerate(prepared):
        np.testing.assert_array_equal(result.xyz, expected[index % 4].xyz)
        np.testing.assert_array_equal(result.rgb, expected[index % 4].rgb)


def test_the_recipes_constants_are_used(make_table_scan) -> None:
    scan = make_table_scan()
    recipe = dataclasses.replace(get_recipe("cfm"), plane_removal_m=0.03)
    assert len(prepare(scan, recipe).points) == 0
    recipe = dataclasses.replace(get_recipe("cfm"), min_rim_points=10**6)
    assert segment_foreground(scan.xyz, recipe).search.plane is None


@pytest.mark.parametrize("option", ["rgb_size", "grid_size"])
def test_a_size_below_one_is_refused(make_table_scan, option: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{option} is 0"):
        prepare(make_table_scan(), get_recipe("cfm"), **{option: 0})
