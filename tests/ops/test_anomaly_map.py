"""csrc/run/anomaly_map beside the same additions in NumPy: no bit differs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mmad_fast import _kernels

BOXES53 = [np.full(side, np.float32(1 / side)) for side in (5, 5, 5, 5, 5, 7, 7, 7)]


def gaussian() -> NDArray[np.float32]:
    weights = np.exp(-0.5 * (np.arange(-16, 17) / 4.0) ** 2)
    return (weights / weights.sum()).astype(np.float32)


FILTERS = {"boxes53": BOXES53, "sigma4": [gaussian()]}


def plain_convolution(image: NDArray, weights: NDArray) -> NDArray:
    """Zero-padded, down the columns; equal weights are multiplied once, others in pairs."""
    radius = len(weights) // 2
    padded = np.pad(image, ((radius, radius), (0, 0)))
    shifted = [padded[k : k + len(image)] for k in range(len(weights))]
    if weights[0] == weights[radius]:
        total = shifted[0] + shifted[1]
        for part in shifted[2:]:
            total = total + part
        return total * weights[0]
    total = shifted[radius] * weights[radius]
    for k in range(radius):
        total = total + weights[k] * (shifted[k] + shifted[-1 - k])
    return total


def plain_smooth(image: NDArray, smoothing: str) -> NDArray:
    for weights in FILTERS[smoothing]:
        image = plain_convolution(plain_convolution(image, weights).T, weights).T
    return image


def patches(side: int, seed: int) -> NDArray[np.float32]:
    """A map with a patch of values at a random place, zeros elsewhere."""
    rng = np.random.default_rng(seed)
    psi = np.zeros((side, side), np.float32)
    (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for _ in range(2))
    psi[top:bottom, left:right] = rng.uniform(0, 2, (bottom - top, right - left))
    return psi


@pytest.mark.parametrize("smoothing", list(FILTERS))
@pytest.mark.parametrize("side", [1, 7, 63, 112])
def test_smoothing_is_numpys_to_the_bit(side: int, smoothing: str) -> None:
    for seed in range(8):
        psi = patches(side, seed)
        smoothed = psi.copy()
        _kernels.smooth_map(smoothing, smoothed)
        np.testing.assert_array_equal(smoothed, plain_smooth(psi, smoothing))


def test_what_surrounds_a_map_is_left_alone() -> None:
    guarded = np.full((3, 20, 20), np.nan, np.float32)
    guarded[1] = patches(20, 1)
    _kernels.smooth_map("boxes53", guarded[1])
    assert np.isfinite(guarded[1]).all()
    assert np.isnan(guarded[[0, 2]]).all()


@pytest.mark.parametrize("count", [0, 1, 7, 129, 8192, 8193, 50176])
def test_the_mean_is_numpys(count: int) -> None:
    values = np.random.default_rng(count).uniform(0, 1, count).astype(np.float32)
    values[::3] = 0
    nonzero = values[values != 0].astype(np.float64)
    expected = nonzero.mean() if len(nonzero) else 0.0
    assert _kernels.mean_of_nonzero(values) == pytest.approx(expected, rel=1e-14)


def test_unknown_names_are_refused() -> None:
    psi = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="no aggregation 'mean'"):
        _kernels.aggregate("mean", psi, psi, psi.copy())
    with pytest.raises(ValueError, match="no smoothing 'boxes'"):
        _kernels.smooth_map("boxes", psi.reshape(2, 2))
