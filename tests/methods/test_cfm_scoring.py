"""The steps after the discrepancy: aggregation, smoothing, normalisation, evaluation maps."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from mmad_fast.methods.cfm import scoring


def random_map(seed: int = 0, side: int = 61) -> NDArray[np.float32]:
    """A map with a patch of positive values and zeros elsewhere."""
    values = np.zeros((side, side), np.float32)
    values[20:40, 15:50] = np.random.default_rng(seed).uniform(0.1, 2, (20, 35))
    return values


def test_boxes_equal_zero_padded_convolutions():
    psi = random_map()
    psi[0, 0] = psi[-1, 5] = 3.0  # the padding must be zero at every pass, not only at the first
    expected = psi.astype(np.float64)
    for side in (5, 5, 5, 5, 5, 7, 7, 7):
        expected = ndimage.convolve(expected, np.ones((side, side)) / side**2, mode="constant")
    smoothed = scoring.smooth(psi, smoothing="boxes53")
    assert smoothed.dtype == np.float32
    np.testing.assert_allclose(smoothed, expected, rtol=2e-6, atol=1e-9)


def test_boxes_have_the_published_variance():
    impulse = np.zeros((101, 101), np.float32)
    impulse[50, 50] = 1
    smoothed = scoring.smooth(impulse, smoothing="boxes53").astype(np.float64)
    offsets = np.arange(101) - 50
    assert smoothed.sum() == pytest.approx(1, abs=1e-5)
    assert (smoothed.sum(axis=0) * offsets**2).sum() == pytest.approx(22, abs=1e-3)


def test_gaussian_equals_scipy():
    psi = random_map(1)
    psi[0, 0] = 3.0
    expected = ndimage.gaussian_filter(psi.astype(np.float64), 4.0, mode="constant", truncate=4.0)
    smoothed = scoring.smooth(psi, smoothing="sigma4")
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("smoothing", "reach"), [("boxes53", 19), ("sigma4", 16)])
def test_zeros_out_of_reach_stay_exactly_zero(smoothing: str, reach: int):
    psi = np.zeros((101, 101), np.float32)
    psi[50, 50] = 1e-3
    smoothed = scoring.smooth(psi, smoothing=smoothing)
    within = np.zeros_like(psi, dtype=bool)
    within[50 - reach : 51 + reach, 50 - reach : 51 + reach] = True
    assert (smoothed[~within] == 0).all()
    assert (smoothed[within] > 0).all()


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("product", [2, 0]), ("sum", [3, 4]), ("max", [2, 4]), ("psi_2d", [1, 4]), ("psi_3d", [2, 0])],
)
def test_aggregations(aggregation: str, expected: list[float]):
    psi = {"psi_2d": np.array([1, 4], np.float32), "psi_3d": np.array([2, 0], np.float32)}
    combined = scoring.aggregate(psi, aggregation=aggregation)
    np.testing.assert_array_equal(combined, np.array(expected, np.float32))


def test_scatter_leaves_other_pixels_zero():
    psi_map = scoring.scatter_to_map(np.array([5, 7], np.float32), np.array([1, 6]), grid_size=3)
    np.testing.assert_array_equal(psi_map, [[0, 5, 0], [0, 0, 0], [7, 0, 0]])


def test_normalisation_divides_by_the_root_of_the_nonzero_mean():
    psi = np.array([[0, 0], [1, 7]], np.float32)
    np.testing.assert_allclose(scoring.normalize(psi, score_norm="cfm"), psi / 2)
    np.testing.assert_array_equal(scoring.normalize(psi, score_norm="raw"), psi)


def test_a_map_of_zeros_stays_zero():
    zeros = np.zeros((8, 8), np.float32)
    for score_norm in ("cfm", "raw"):
        np.testing.assert_array_equal(scoring.normalize(zeros, score_norm=score_norm), zeros)
    for evaluation_map in scoring.published_evaluation_maps(zeros):
        np.testing.assert_array_equal(evaluation_map, zeros)


def test_evaluation_maps_are_the_published_ones():
    psi = scoring.smooth(random_map(2), smoothing="boxes53").astype(np.float64)
    anomaly_map = scoring.normalize(psi.astype(np.float32), score_norm="cfm")
    aupro_map, pixel_auroc_map = scoring.published_evaluation_maps(anomaly_map)
    nonzero_mean = psi[psi != 0].mean()
    np.testing.assert_allclose(aupro_map, psi / nonzero_mean, rtol=1e-5)
    np.testing.assert_allclose(pixel_auroc_map, psi / np.sqrt(psi.mean()), rtol=1e-5)
    assert anomaly_map.max() == pytest.approx((psi / np.sqrt(nonzero_mean)).max(), rel=1e-5)


def test_maps_that_are_views_are_rated_like_their_copies():
    wide = random_map(3, side=80)
    for view in (wide[::2, ::2], wide.T, wide[5:45, 10:50].astype(np.float64)):
        expected = scoring.published_evaluation_maps(np.ascontiguousarray(view, np.float32))
        for found, wanted in zip(scoring.published_evaluation_maps(view), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_block_is_represented_by_its_most_central_pixel(stride: int) -> None:
    side = 23  # the last blocks overhang
    pixels = np.flatnonzero(np.random.default_rng(stride).random(side * side) < 0.3)
    chosen, number = scoring.representative_pixels(pixels, grid_size=side, stride=stride)
    blocks = {}
    for position, pixel in enumerate(pixels):
        row, column = divmod(int(pixel), side)
        center = np.array([row // stride, column // stride]) * stride + (stride - 1) / 2
        distance = float(((np.array([row, column]) - center) ** 2).sum())
        blocks.setdefault((row // stride, column // stride), []).append((distance, position))
    expected = [min(blocks[block])[1] for block in sorted(blocks)]
    assert chosen.tolist() == expected
    numbers = {block: index for index, block in enumerate(sorted(blocks))}
    of_pixel = [numbers[divmod(int(p), side)[0] // stride, p % side // stride] for p in pixels]
    assert number.tolist() == of_pixel
    if stride == 1:
        assert chosen.tolist() == number.tolist() == list(range(len(pixels)))


def test_no_pixel_is_represented_by_none() -> None:
    chosen, number = scoring.representative_pixels(np.empty(0, np.int64), grid_size=8, stride=2)
    assert len(chosen) == len(number) == 0
