"""The depth picture: against the published preprocessing in loops, and where that has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import families
from mmad_fast.preprocess import prepare, prepare_ground_truth
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND, PIXEL_MISSING
from mmad_fast.preprocess.depth_picture import draw_depth
from mmad_fast.preprocess.recipes import NO_CLEAN_UP, Recipe
from mmad_fast.preprocess.reference import filled_once, published_depth_picture
from mmad_fast.scan import Scan

PLANE_M = 0.007
STRETCHED = replace(
    NO_CLEAN_UP, squaring="stretching", rgb_filter="bilinear", depth_plane_m=PLANE_M
)


def with_holes(xyz: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The scan with blocks of up to 9 x 9 pixels without a measurement, some at the rim, but for
    its corners."""
    rng = np.random.default_rng(seed)
    holed = xyz.copy()
    height, width = xyz.shape[:2]
    for side in range(1, 10):
        for _ in range(3):
            row, column = rng.integers(0, height - side), rng.integers(0, width - side)
            holed[row : row + side, column : column + side] = 0
    holed[0, 5:9] = holed[5:9, 0] = holed[-1, 5:9] = holed[5:9, -1] = 0
    for rows in (slice(2), slice(-2, None)):
        for columns in (slice(2), slice(-2, None)):
            holed[rows, columns] = xyz[rows, columns]
            holed[rows, columns][0, 0] = 0
    return holed


@pytest.mark.parametrize("size", [(96, 96), (80, 123), (150, 64)])
@pytest.mark.parametrize("side", [64, 192])
def test_it_is_the_published_one(
    make_table_scan: Callable[..., Scan], size: tuple[int, int], side: int
) -> None:
    xyz = with_holes(make_table_scan(*size).xyz)
    picture, states = draw_depth(xyz, PLANE_M, size=side)
    values, foreground, is_object = published_depth_picture(xyz, PLANE_M, size=side)
    assert picture.has_plane
    assert 0.05 < is_object.mean() < 0.5
    np.testing.assert_array_equal(picture.foreground, foreground)
    # Positions are float32, as torch's: an edge of 2 cm moves by 1e-5 of a pixel.
    np.testing.assert_allclose(picture.values, values, rtol=0, atol=1e-4)
    measured = xyz[..., 2] != 0
    np.testing.assert_array_equal(states == PIXEL_FOREGROUND, is_object & measured)
    np.testing.assert_array_equal(states == PIXEL_MISSING, ~measured)


def test_holes_are_filled_in_three_rounds_but_not_in_the_first_row_and_column() -> None:
    xyz = np.full((12, 12, 3), 0.5, np.float32)
    xyz[3:10, 3:10] = 0  # three rounds reach its centre only from three pixels away
    xyz[6, 6] = 0
    xyz[0, 5] = xyz[5, 0] = xyz[-1, 5] = xyz[5, -1] = 0
    picture, _ = draw_depth(xyz, 1e-6, size=12)
    depth = xyz[..., 2].astype(np.float64)
    for _ in range(3):
        depth = filled_once(depth)
    assert sorted(map(tuple, np.argwhere(depth == 0))) == [(0, 5), (5, 0), (6, 6)]
    assert not picture.foreground.any()  # what was filled is as far as the background


def test_a_corner_without_a_measurement_continues_the_plane_of_the_others(
    make_table_scan: Callable[..., Scan],
) -> None:
    whole = make_table_scan().xyz
    expected, _ = draw_depth(whole, PLANE_M, size=96)
    xyz = whole.copy()
    xyz[-12:, :12] = 0
    picture, _ = draw_depth(xyz, PLANE_M, size=96)
    assert picture.has_plane
    np.testing.assert_array_equal(picture.foreground, expected.foreground)
    np.testing.assert_allclose(picture.values, expected.values, rtol=0, atol=1e-5)


def test_without_a_plane_every_measured_pixel_is_the_object(
    make_table_scan: Callable[..., Scan],
) -> None:
    xyz = make_table_scan().xyz.copy()
    xyz[:12, :12] = xyz[-12:, -12:] = 0
    picture, states = draw_depth(xyz, PLANE_M, size=96)
    assert not picture.has_plane
    measured = xyz[..., 2] != 0
    np.testing.assert_array_equal(states == PIXEL_FOREGROUND, measured)
    assert picture.foreground.sum() > measured.sum()  # holes that were filled, too
    assert picture.values[picture.foreground].mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("rise_m", [0.0, 0.006])
def test_a_flat_object_is_none(make_table_scan: Callable[..., Scan], rise_m: float) -> None:
    picture, states = draw_depth(make_table_scan(rise_m=rise_m).xyz, PLANE_M, size=64)
    assert picture.has_plane
    assert not picture.foreground.any()
    assert not picture.values.any()
    assert not (states == PIXEL_FOREGROUND).any()


def test_no_measurement_at_all_is_no_object() -> None:
    picture, states = draw_depth(np.zeros((32, 40, 3), np.float32), PLANE_M, size=64)
    assert not picture.has_plane
    assert not picture.foreground.any()
    assert not picture.values.any()
    assert (states == PIXEL_MISSING).all()


@pytest.mark.parametrize("size", [(96, 96), (80, 123)])
def test_a_scan_is_stretched(make_table_scan: Callable[..., Scan], size: tuple[int, int]) -> None:
    scan = make_table_scan(*size)
    prepared = prepare(scan, STRETCHED, rgb_size=64, grid_size=48)
    assert prepared.padding == (0, 0, 0, 0)
    pixels = Image.fromarray(scan.rgb).resize((64, 64), Image.Resampling.BILINEAR)
    expected = (np.asarray(pixels) / 255 - STRETCHED.mean) / STRETCHED.std
    np.testing.assert_allclose(prepared.rgb, expected.transpose(2, 0, 1), rtol=0, atol=1e-5)
    assert prepared.depth is not None
    on_object = prepared.depth.foreground.ravel()[prepared.pixel_indices]
    assert len(on_object) > 50
    assert on_object.mean() > 0.95  # nearest pixels, and shares of them


@pytest.mark.parametrize("size", [(96, 96), (80, 123), (20, 30)])
def test_a_share_of_an_anomalous_pixel_makes_ground_truth_anomalous(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) < 0.02
    image = torch.from_numpy(mask.astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(
        image, size=(48, 48), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    found = prepare_ground_truth(mask, STRETCHED, grid_size=48)
    assert 0.01 < found.mean() < 0.5
    np.testing.assert_array_equal(found, expected > 0)


def test_a_recipe_that_uses_none_of_it_is_written_as_before() -> None:
    later = {"squaring", "rgb_filter", "depth_plane_m"}
    assert not later & set(NO_CLEAN_UP.to_dict())
    assert later <= set(STRETCHED.to_dict())
    assert not {"auxiliary", "normals_from", "sobel_size", "depth_axis"} & set(STRETCHED.to_dict())
    for recipe in (*(family.recipe for family in families()), STRETCHED):
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"squaring": "cropping"}, "squaring is 'cropping'; it must be one of padding, stretching"),
        ({"rgb_filter": "nearest"}, "rgb_filter is 'nearest'; it must be one of bicubic, bilinear"),
        ({"depth_plane_m": 0.0}, "depth_plane_m is 0.0; it must be None or, without remove_backgr"),
        ({"remove_background": True}, "depth_plane_m is 0.007; it must be None or, without remove"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(STRETCHED, **change)  # type: ignore[arg-type]
