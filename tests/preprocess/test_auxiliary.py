"""The pictures of depth and normals: against TRD's preparation in plain NumPy, that against SciPy
and torch, and where it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.auxiliary.options import AuxiliaryOptions
from mmad_fast.methods.family import get_recipe
from mmad_fast.ops.surface_normals import surface_normals
from mmad_fast.preprocess import prepare, segment_foreground
from mmad_fast.preprocess.auxiliary import MAX_NEIGHBORS, _warn_once
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND
from mmad_fast.preprocess.recipes import NO_CLEAN_UP, Recipe
from mmad_fast.preprocess.reference import (
    closed,
    filled,
    nearest_indices,
    published_depth,
    published_object,
    published_sobel_normals,
    sobel_taps,
)
from mmad_fast.scan import Scan

PLANE_M = 0.005
STRETCHED = replace(NO_CLEAN_UP, squaring="stretching", rgb_filter="bilinear")
DEPTH = replace(STRETCHED, auxiliary=("depth",))
NORMALS = replace(STRETCHED, auxiliary=("normals",))
SIZES = [(96, 96), (80, 123), (150, 64)]
ALL_PICTURES = [
    replace(STRETCHED, auxiliary=("depth", "normals"), normals_from=source, sobel_size=size)
    for source, size in (("points", 5), ("sobel", 3), ("sobel", 7), ("images", 5))
]


def with_holes(xyz: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The scan with blocks of up to 9 x 9 pixels without a measurement, some in its corners, which
    keep two rows."""
    rng = np.random.default_rng(seed)
    holed = xyz.copy()
    height, width = xyz.shape[:2]
    for side in range(1, 10):
        for _ in range(3):
            row, column = rng.integers(0, height - side), rng.integers(0, width - side)
            holed[row : row + side, column : column + side] = 0
    for rows, columns in product((slice(3), slice(-3, None)), repeat=2):
        holed[rows, columns] = xyz[rows, columns]
        holed[rows, columns][0] = 0
        assert holed[rows, columns].any()
    return holed


def scan_of(xyz: np.ndarray, *, normals: np.ndarray | None = None) -> Scan:
    return Scan.from_arrays(np.zeros(xyz.shape, np.uint8), xyz, name="part", normals=normals)


def pictures_of(scan: Scan, recipe: Recipe, *, size: int, grid_size: int = 32) -> np.ndarray:
    """(A, 3, R, R): the pictures in 0-1, before their normalisation."""
    found = prepare(scan, recipe, rgb_size=size, grid_size=grid_size).auxiliary
    assert found is not None
    assert (found.dtype, found.shape) == (np.float32, (len(recipe.auxiliary), 3, size, size))
    assert found.flags.c_contiguous
    mean, std = (np.array(one)[:, None, None] for one in (recipe.mean, recipe.std))
    return found * std + mean


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [64, 100])
def test_depth_is_trds(
    make_table_scan: Callable[..., Scan], size: tuple[int, int], side: int
) -> None:
    xyz = with_holes(make_table_scan(*size).xyz)
    expected = published_depth(xyz, PLANE_M, size=side)
    assert 0.05 < (expected > 0).mean() < 0.6
    (found,) = pictures_of(scan_of(xyz), DEPTH, size=side)
    np.testing.assert_allclose(found, np.stack([expected] * 3), rtol=0, atol=5e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sobel_size", [3, 5, 7])
def test_normals_by_sobels_filter_are_trds(
    make_table_scan: Callable[..., Scan], size: tuple[int, int], sobel_size: int
) -> None:
    xyz = with_holes(make_table_scan(*size).xyz, seed=sobel_size)
    expected = published_sobel_normals(xyz, PLANE_M, sobel_size=sobel_size, size=64)
    recipe = replace(NORMALS, normals_from="sobel", sobel_size=sobel_size)
    (found,) = pictures_of(scan_of(xyz), recipe, size=64)
    # What the depth's rounding to float32 becomes behind the filter, and as much of the sums'.
    gain = np.prod([np.abs(taps).sum() for taps in sobel_taps(sobel_size)])
    np.testing.assert_allclose(
        found, expected.transpose(2, 0, 1), rtol=0, atol=gain * 2.0**-24 + 5e-7
    )


@pytest.mark.parametrize("sobel_size", [3, 5, 7])
def test_trds_normals_are_those_of_scipy_and_torch(
    make_table_scan: Callable[..., Scan], sobel_size: int
) -> None:
    xyz = with_holes(make_table_scan(80, 123).xyz)
    is_object = published_object(xyz, PLANE_M)
    padded = np.pad(off_the_plane(xyz), 6)  # SciPy erodes from the border
    closing = ndimage.binary_closing(padded, np.ones((3, 3)), iterations=3)[6:-6, 6:-6]
    np.testing.assert_array_equal(is_object, closing)
    depth = xyz[..., 2].astype(np.float64) * is_object
    near, far = depth[depth > 0].min(), depth.max()
    depth = np.where(depth > 0, (depth - near) / (far - near), 0)
    for _ in range(2):
        around, count = (
            ndimage.convolve(values, np.ones((3, 3)), mode="constant")
            for values in (depth, (depth > 0).astype(float))
        )
        depth = np.where(depth == 0, around / np.maximum(count, 1), depth)
    derivative, smoothing = sobel_taps(sobel_size)
    right = ndimage.correlate(depth, np.outer(smoothing, derivative), mode="mirror")
    down = ndimage.correlate(depth, np.outer(derivative, smoothing), mode="mirror")
    normals = np.stack([-right, -down, np.ones_like(right)])
    picture = (normals / np.linalg.norm(normals, axis=0) + 1) / 2 * is_object
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(picture)[None], (64, 64), mode="bilinear", align_corners=False
    )[0]
    found = published_sobel_normals(xyz, PLANE_M, sobel_size=sobel_size, size=64)
    np.testing.assert_allclose(found.transpose(2, 0, 1), expected, rtol=0, atol=1e-7)


def off_the_plane(xyz: np.ndarray) -> np.ndarray:
    """(H, W) bool: further than 5 mm from the plane that is solved for through the corners."""
    corners = [
        corner[corner[..., 2] != 0].mean(axis=0, dtype=np.float64)
        for corner in (xyz[:3, :3], xyz[:3, -3:], xyz[-3:, :3])
    ]
    coefficients = np.linalg.solve(np.array(corners), np.ones(3))
    distance = (xyz @ coefficients - 1) / np.linalg.norm(coefficients)
    return (np.abs(distance) > PLANE_M) & (xyz[..., 2] != 0)


def test_sobels_filter_is_the_one_of_its_name() -> None:
    taps = {size: [list(one) for one in sobel_taps(size)] for size in (3, 5)}
    assert taps == {
        3: [[-1, 0, 1], [1, 2, 1]],
        5: [[-1, -2, 0, 2, 1], [1, 4, 6, 4, 1]],
    }
    # The answer to a unit ramp: method facts 8.3.
    gains = [
        (derivative @ np.arange(size)) * smoothing.sum()
        for size in (3, 5, 7)
        for derivative, smoothing in [sobel_taps(size)]
    ]
    assert gains == [8, 128, 2048]


def test_nearest_pixels_begin_where_opencvs_do() -> None:
    # Read off cv2.resize(..., INTER_NEAREST) of OpenCV 4.10 and 5.0.
    assert nearest_indices(4, 10).tolist() == [0, 2, 5, 7]
    assert nearest_indices(7, 5).tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert nearest_indices(392, 32)[49] == 3  # where whole numbers say 49 * 32 / 392 = 4


def test_holes_are_filled_in_two_rounds_and_bleed_two_pixels() -> None:
    values = np.zeros((12, 12))
    values[3:9, 3:9] = 0.5
    values[5:7, 4:8] = 0
    found = filled(values)
    np.testing.assert_allclose(found[1:11, 1:11][found[1:11, 1:11] > 0], 0.5)
    assert not found[0].any()
    assert found[1].any()
    assert (found[3:9, 3:9] > 0).all()


def test_normals_of_points_are_those_of_the_op(make_table_scan: Callable[..., Scan]) -> None:
    xyz = with_holes(make_table_scan().xyz)
    scan = scan_of(xyz)
    (found,) = pictures_of(scan, NORMALS, size=96, grid_size=96)
    is_object = published_object(scan.xyz, PLANE_M)
    is_point = is_object & (scan.xyz[..., 2] != 0)
    normals = surface_normals(scan.xyz[is_point], max_neighbors=MAX_NEIGHBORS, backend="reference")
    assert (normals[:, 2] < 0).all()
    np.testing.assert_allclose(found[:, is_point].T, (1 - normals) / 2, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found[:, ~is_object], 0, atol=1e-6)
    is_hole = is_object & ~is_point
    assert is_hole.sum() > 10
    lengths = np.linalg.norm(found[:, is_hole] * 2 - 1, axis=0)
    is_filled = lengths < 1.5  # of (0, 0, 0), off the object, it is 1.73
    assert is_filled.mean() > 0.8
    np.testing.assert_allclose(lengths[is_filled], 1, rtol=0, atol=1e-5)


def test_both_kinds_of_normals_point_alike() -> None:
    rows, columns = np.mgrid[:96, :96]
    x, y = (columns - 47.7) * 0.0008, (rows - 47.7) * 0.0008
    height = 0.02 - 12 * (x**2 + y**2)  # a dome on a table
    z = 0.5 - np.where(height > 0, height, 0)
    scan = scan_of(np.stack([x, y, z], axis=-1))
    by_points, by_sobel = (
        pictures_of(scan, replace(NORMALS, normals_from=source), size=96, grid_size=96)[0]
        for source in ("points", "sobel")
    )
    inside = ndimage.binary_erosion(published_object(scan.xyz, PLANE_M), iterations=4)
    for channel in (0, 1):
        one, other = by_points[channel][inside], by_sobel[channel][inside]
        assert np.corrcoef(one, other)[0, 1] > 0.8
    # z = 0.48 + 12 (x^2 + y^2): its slopes in metres, which only the points know.
    slope = np.stack([-24 * x, -24 * y, np.ones_like(x)])
    expected = (slope / np.linalg.norm(slope, axis=0) + 1) / 2
    np.testing.assert_allclose(by_points[:, inside], expected[:, inside], rtol=0, atol=0.01)


def test_pictures_of_normals_are_resized_as_rgb(make_table_scan: Callable[..., Scan]) -> None:
    scan = make_table_scan(80, 123)
    scan = scan_of(scan.xyz, normals=scan.rgb)
    for recipe in (STRETCHED, NO_CLEAN_UP):
        reading = replace(recipe, auxiliary=("normals",), normals_from="images")
        prepared = prepare(scan_of(scan.xyz, normals=scan.normals), reading, rgb_size=64)
        as_rgb = prepare(replace(scan, rgb=scan.normals), recipe, rgb_size=64)
        assert prepared.auxiliary is not None
        np.testing.assert_array_equal(prepared.auxiliary[0], as_rgb.rgb)
    pixels = Image.fromarray(scan.normals).resize((64, 64), Image.Resampling.BILINEAR)
    reading = replace(NORMALS, normals_from="images")
    (found,) = pictures_of(scan, reading, size=64)
    np.testing.assert_allclose(found.transpose(1, 2, 0) * 255, pixels, rtol=0, atol=1e-4)


def test_a_scan_without_the_picture_of_its_normals_is_told(
    make_table_scan: Callable[..., Scan],
) -> None:
    words = "scan 'table' has no picture of its surface normals.*normals=.*normals_from='points'"
    with pytest.raises(InvalidInputError, match=words):
        prepare(make_table_scan(), replace(NORMALS, normals_from="images"))


@pytest.mark.parametrize("missing", range(4))
def test_the_plane_goes_through_the_corners_that_there_are(
    make_table_scan: Callable[..., Scan], missing: int
) -> None:
    whole = make_table_scan(seed=missing).xyz
    xyz = whole.copy()
    rows, columns = (
        (slice(12), slice(-12, None))[missing // 2],
        (slice(12), slice(-12, None))[missing % 2],
    )
    xyz[rows, columns] = 0
    for recipe in (DEPTH, NORMALS, replace(NORMALS, normals_from="sobel")):
        expected, found = (
            pictures_of(scan_of(one), recipe, size=96, grid_size=96) for one in (whole, xyz)
        )
        np.testing.assert_array_equal(found > 1e-6, expected > 1e-6)


def test_without_two_corners_every_measured_pixel_is_the_object(
    make_table_scan: Callable[..., Scan],
) -> None:
    xyz = make_table_scan().xyz.copy()
    xyz[:12, :12] = xyz[-12:, -12:] = 0
    is_object = closed(xyz[..., 2] != 0)
    for recipe, is_filled in ((DEPTH, True), (NORMALS, False)):
        (found,) = pictures_of(scan_of(xyz), recipe, size=96, grid_size=96)
        assert (found[:, xyz[..., 2] != 0].max(axis=0) > 0.05).all()
        off = (
            ~is_object
            if not is_filled
            else ~ndimage.binary_dilation(is_object, np.ones((3, 3)), iterations=2)
        )
        np.testing.assert_allclose(found[:, off], 0, atol=1e-6)


@pytest.mark.parametrize("rise_m", [0.0, 0.003])
def test_a_scan_of_the_background_alone_is_an_empty_picture(
    make_table_scan: Callable[..., Scan], rise_m: float
) -> None:
    for recipe in ALL_PICTURES[:3]:
        scan = make_table_scan(rise_m=rise_m)
        np.testing.assert_allclose(pictures_of(scan, recipe, size=64), 0, atol=1e-6)


def test_an_object_of_one_depth_is_as_near_as_can_be() -> None:
    xyz = np.empty((64, 64, 3), np.float32)
    xyz[..., 1], xyz[..., 0] = np.mgrid[:64, :64] * 0.001 + 0.0005
    xyz[..., 2] = 0.5
    xyz[30:40, 20:45, 2] = 0.4375
    (found,) = pictures_of(scan_of(xyz), DEPTH, size=64)
    assert found.max() == pytest.approx(0.1, abs=1e-6)
    np.testing.assert_allclose(found[:, 30:40, 20:45], 0.1, atol=1e-6)
    (found,) = pictures_of(scan_of(xyz), replace(NORMALS, normals_from="sobel"), size=64)
    np.testing.assert_allclose(found[:, 32:38, 22:43].mean(axis=(1, 2)), [0.5, 0.5, 1], atol=1e-6)


def hostile_scans() -> dict[str, np.ndarray]:
    """xyz (H, W, 3) that sensors and attackers give."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    flat = np.stack([columns * 0.001 + 0.0005, rows * 0.001 + 0.0005, np.full_like(rows, 0.5)], -1)
    one_point = np.zeros_like(flat)
    one_point[20, 30] = flat[20, 30]
    holed = flat.copy()
    holed[..., 2] -= 0.02 * (rng.random((64, 64)) < 0.5)
    holed[rng.random((64, 64)) < 0.3] = np.nan
    holed[10, 10] = (np.inf, 0.1, 0.5)
    line = flat.copy()
    line[..., 1] = line[..., 0]
    return {
        "nothing measured": np.zeros_like(flat),
        "one point": one_point,
        "NaN": np.full_like(flat, np.nan),
        "NaN and inf among others": holed,
        "constant depth": flat,
        "one place": np.full_like(flat, 0.5),
        "all on a line": line,
        "noise to 19 m": rng.uniform(-19, 19, flat.shape).astype(np.float32),
        "behind the camera": -flat,
        "32 x 32": rng.uniform(0.4, 0.6, (32, 32, 3)).astype(np.float32),
        "very wide": rng.uniform(0.4, 0.6, (32, 1000, 3)).astype(np.float32),
        "very high": rng.uniform(0.4, 0.6, (1000, 33, 3)).astype(np.float32),
    }


def test_a_picture_of_another_size_is_no_enlarged_one() -> None:
    """Depth is taken at the nearest pixels: no picture has one that was not measured."""
    xyz = np.zeros((32, 32, 3), np.float32)
    xyz[..., 1], xyz[..., 0] = np.mgrid[:32, :32] * 0.001 + 0.0005
    xyz[..., 2] = 0.5
    xyz[8:24, 8:24, 2] = np.random.default_rng(0).choice([0.45, 0.47], (16, 16))
    (found,) = pictures_of(scan_of(xyz), DEPTH, size=392)
    inside = found[0, 110:280, 110:280]
    assert set(np.unique(inside.round(4))) == {0.1, 0.9}


@pytest.mark.parametrize("case", hostile_scans())
@pytest.mark.parametrize("squaring", ["stretching", "padding"])
def test_no_scan_gives_numbers_that_are_none(case: str, squaring: str) -> None:
    xyz = hostile_scans()[case]
    scan = scan_of(xyz, normals=np.full(xyz.shape, 127, np.uint8))
    for recipe in ALL_PICTURES:
        found = pictures_of(scan, replace(recipe, squaring=squaring), size=40)
        assert np.isfinite(found).all()
        assert found.min() > -1e-6
        assert found.max() < 1 + 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e18, 3e38])
def test_numbers_that_no_scan_holds_do_no_harm(
    make_table_scan: Callable[..., Scan], scale: float
) -> None:
    scan = make_table_scan()
    largest = np.abs(scan.xyz).max()
    unchecked = replace(scan, xyz=(scan.xyz / largest * np.float32(scale)).astype(np.float32))
    for recipe in ALL_PICTURES[1:3]:
        assert np.isfinite(pictures_of(unchecked, recipe, size=40)).all()


@pytest.mark.parametrize("name", ["cfm", "m3dm"])
def test_where_the_recipe_finds_the_background_its_foreground_is_the_object(
    make_table_scan: Callable[..., Scan], name: str
) -> None:
    scan = make_table_scan(128, 96)
    recipe = replace(get_recipe(name), auxiliary=("depth", "normals"))
    depth, normals = pictures_of(scan, recipe, size=128, grid_size=128)[:, 2]
    states = segment_foreground(scan.xyz, recipe).states == PIXEL_FOREGROUND
    foreground = np.pad(states, ((0, 0), (16, 16)))
    assert 0.05 < foreground.mean() < 0.3
    assert (depth[foreground] > 0.09).all()
    assert (normals[foreground] > 0.5).all()
    around = ndimage.binary_dilation(closed(foreground), np.ones((3, 3)), iterations=2)
    assert not (depth[~around] > 1e-6).any()
    assert not (normals[~closed(foreground)] > 1e-6).any()


def test_a_padded_scan_has_its_own_corners(make_table_scan: Callable[..., Scan]) -> None:
    scan = make_table_scan(128, 96)
    padded = replace(DEPTH, auxiliary=("depth", "normals"), squaring="padding")
    found = pictures_of(scan, padded, size=128, grid_size=128)
    is_object = np.pad(published_object(scan.xyz, PLANE_M), ((0, 0), (16, 16)))
    np.testing.assert_array_equal(found[1, 2] > 1e-6, is_object)
    sobel = replace(padded, auxiliary=("normals",), normals_from="sobel")
    (found_sobel,) = pictures_of(scan, sobel, size=128, grid_size=128)
    np.testing.assert_array_equal(found_sobel[2] > 1e-6, is_object)
    assert not (found[0][:, :, :13] > 1e-6).any()


@pytest.mark.parametrize("recipe", ALL_PICTURES[:3])
def test_a_camera_that_looks_along_y_sees_the_same(
    make_table_scan: Callable[..., Scan], recipe: Recipe
) -> None:
    seen_along_z = scan_of(with_holes(make_table_scan().xyz))
    x, height, depth = np.moveaxis(seen_along_z.xyz, -1, 0)
    converted = replace(seen_along_z, xyz=np.stack([x, -depth, height], axis=-1))
    found = pictures_of(converted, replace(recipe, depth_axis="y"), size=64)
    np.testing.assert_array_equal(found, pictures_of(seen_along_z, recipe, size=64))


@pytest.mark.parametrize("axis", ["z", "y"])
def test_points_along_another_axis_are_told_once(
    make_table_scan: Callable[..., Scan], caplog: pytest.LogCaptureFixture, axis: str
) -> None:
    _warn_once.cache_clear()
    scan = make_table_scan()
    if axis == "y":
        scan = replace(scan, xyz=np.ascontiguousarray(scan.xyz[..., [0, 2, 1]]))
    other = "yz"["yz".index(axis) - 1]
    for recipe in (*ALL_PICTURES, NORMALS):
        if not recipe.reads_normals:
            prepare(scan, replace(recipe, depth_axis=axis))
    assert not caplog.records
    for _ in range(2):
        prepare(scan, replace(DEPTH, depth_axis=other))
    (record,) = caplog.records
    assert f"points lie along {axis}" in record.getMessage()
    assert f"depth_axis={axis!r}" in record.getMessage()


def test_options_say_how_a_scan_is_prepared() -> None:
    recipe = AuxiliaryOptions().prepared_by(STRETCHED)
    assert recipe == DEPTH
    assert recipe.to_dict()["auxiliary"] == ["depth"]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    both = AuxiliaryOptions(auxiliary="both", normals_from="sobel", sobel_size=7)
    prepared_by: dict[str, Any] = both.prepared_by(STRETCHED).to_dict()
    read = {name: prepared_by[name] for name in ("auxiliary", "normals_from", "sobel_size")}
    assert read == {"auxiliary": ["depth", "normals"], "normals_from": "sobel", "sobel_size": 7}
    # What is not read does not tell two preparations apart.
    assert AuxiliaryOptions(normals_from="sobel", sobel_size=3).prepared_by(STRETCHED) == DEPTH
    of_points = AuxiliaryOptions(auxiliary="normals", sobel_size=3)
    assert of_points.prepared_by(STRETCHED) == NORMALS
    assert set(AuxiliaryOptions().without_effect()) == {"normals_from", "sobel_size"}
    assert set(of_points.without_effect()) == {"sobel_size"}
    assert not both.without_effect()
    of_images = AuxiliaryOptions(auxiliary="normals", normals_from="images", depth_axis="y")
    assert of_images.prepared_by(STRETCHED) == replace(NORMALS, normals_from="images")
    assert set(of_images.without_effect()) == {"sobel_size", "depth_axis"}
    assert AuxiliaryOptions(depth_axis="y").prepared_by(STRETCHED).depth_axis == "y"
