"""From the discrepancy maps to anomaly map and image score. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

BOXES53: tuple[int, ...] = (5, 5, 5, 5, 5, 7, 7, 7)
"""Box sides of the published smoothing: variance 22, that is sigma 4.69, not the paper's 4."""

GAUSSIAN_SIGMA = 4.0
GAUSSIAN_RADIUS = 16
"""The Gaussian is cut at 4 sigma: 33 taps, 6e-5 of its mass outside, rescaled to sum to 1."""

_AGGREGATIONS: dict[str, Callable[[Mapping[str, Map]], Map]] = {
    "product": lambda psi: psi["psi_2d"] * psi["psi_3d"],
    "sum": lambda psi: psi["psi_2d"] + psi["psi_3d"],
    "max": lambda psi: np.maximum(psi["psi_2d"], psi["psi_3d"]),
    "psi_2d": lambda psi: psi["psi_2d"],
    "psi_3d": lambda psi: psi["psi_3d"],
}


def aggregate(psi: Mapping[str, Map], *, aggregation: str) -> Map:
    """(P,) float32 combined discrepancy per pixel.

    Args:
        psi: (P,) float32 by name, "psi_2d" and "psi_3d" as far as the aggregation reads them.
        aggregation: A key of options.PSI_MAPS.

    Source: CFM section 3.3 and Table 6.
    """
    return _AGGREGATIONS[aggregation](psi)


def scatter_to_map(psi: Map, pixel_indices: NDArray[np.int64], *, grid_size: int) -> Map:
    """(S, S) float32 map with psi (P,) at the row-major pixel_indices (P,) and 0 elsewhere."""
    dense = np.zeros(grid_size * grid_size, np.float32)
    dense[pixel_indices] = psi
    return dense.reshape(grid_size, grid_size)


def representative_pixels(
    pixel_indices: NDArray[np.int64], *, grid_size: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(positions (R,) of one pixel per block of stride x stride, its number (P,) for each pixel).

    A block is represented by that of its given pixels which is nearest to the block's centre, of
    equals by the first.

    Args:
        pixel_indices: (P,) int64 row-major index on the S x S grid, ascending.
        grid_size: S.
        stride: Side of the blocks in pixels.
    """
    rows, columns = np.divmod(pixel_indices, grid_size)
    blocks_per_row = -(-grid_size // stride)
    block = rows // stride * blocks_per_row + columns // stride
    # Twice the offset from the centre, squared: integers, so that ties are exact.
    offset = (2 * (rows % stride) - stride + 1) ** 2 + (2 * (columns % stride) - stride + 1) ** 2
    order = np.lexsort((offset, block))  # stable: of equals the first pixel
    is_first = np.diff(block[order], prepend=-1) > 0
    number = np.empty_like(block)
    number[order] = np.cumsum(is_first) - 1
    return order[is_first], number


def smooth(psi_map: Map, *, smoothing: str) -> Map:
    """The smoothed map (S, S) float32: "boxes53" as published, "sigma4" as in the paper.

    Pixels out of the filters' reach of any non-zero pixel are exactly 0: sums are made of direct
    additions, since the score's normaliser averages the non-zero pixels.
    """
    filter_map, reach = _SMOOTHINGS[smoothing]
    smoothed = np.zeros_like(psi_map)
    rows, columns = (_reached(np.flatnonzero(psi_map.any(axis=axis)), reach) for axis in (1, 0))
    smoothed[rows, columns] = filter_map(psi_map[rows, columns])
    return smoothed


def _reached(positions: NDArray[np.int64], reach: int) -> slice:
    """The range of the ascending positions and all within reach of them; empty if none is."""
    if not len(positions):
        return slice(0, 0)
    return slice(max(0, int(positions[0]) - reach), int(positions[-1]) + reach + 1)


def smooth_boxes(psi_map: Map, *, sides: tuple[int, ...] = BOXES53) -> Map:
    """The map (S, S) after one zero-padded box mean per odd side, one after the other.

    Source: the public CFM code; method facts 6.3.5.
    """
    for side in sides:
        weights = np.full(side, np.float32(1.0 / side))
        psi_map = _separable(psi_map, weights)
    return psi_map


def smooth_gaussian(psi_map: Map) -> Map:
    """The map (S, S) after one zero-padded Gaussian of sigma 4, cut at 16 pixels.

    Source: CFM section 3.3.
    """
    offsets = np.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / GAUSSIAN_SIGMA) ** 2)
    return _separable(psi_map, (weights / weights.sum()).astype(np.float32))


_SMOOTHINGS: dict[str, tuple[Callable[[Map], Map], int]] = {
    "boxes53": (smooth_boxes, sum(side // 2 for side in BOXES53)),
    "sigma4": (smooth_gaussian, GAUSSIAN_RADIUS),
}
"""Filter by name, and how many pixels away from a non-zero pixel its result can be non-zero."""


def _separable(image: Map, weights: NDArray[np.float32]) -> Map:
    """The zero-padded convolution with weights along both axes; weights (K,) symmetric, K odd."""
    radius = len(weights) // 2
    height, width = image.shape
    padded = np.zeros((height + 2 * radius, width), np.float32)
    padded[radius : radius + height] = image
    wide = np.zeros((height, width + 2 * radius), np.float32)
    columns = wide[:, radius : radius + width]
    _correlate(lambda k: padded[k : k + height], weights, columns)
    smoothed = np.empty_like(image)
    _correlate(lambda k: wide[:, k : k + width], weights, smoothed)
    return smoothed


def _correlate(shifted: Callable[[int], Map], weights: NDArray[np.float32], out: Map) -> None:
    """Writes sum_k weights[k] * shifted(k) to out; equal weights are multiplied once."""
    last = len(weights) - 1
    if weights.min() == weights.max():
        np.add(shifted(0), shifted(1), out=out)
        for k in range(2, last + 1):
            np.add(out, shifted(k), out=out)
        np.multiply(out, weights[0], out=out)
        return
    radius = last // 2
    np.multiply(shifted(radius), weights[radius], out=out)
    for k in range(radius):
        out += weights[k] * (shifted(k) + shifted(last - k))


def normalize(psi_map: Map, *, score_norm: str) -> Map:
    """The anomaly map (S, S) float32, whose maximum is the image score.

    "cfm" divides by sqrt(mean of the non-zero pixels), "raw" leaves the map as it is. A map that is
    zero everywhere stays zero.

    Source: the public CFM code (not in the paper); method facts 6.3.6.
    """
    if score_norm == "raw":
        return psi_map
    mean = mean_of_nonzero(psi_map)
    return psi_map if mean == 0 else psi_map / np.float32(np.sqrt(mean))


def mean_of_nonzero(psi_map: NDArray) -> float:
    """The float64 mean over the non-zero pixels, 0 if there is none."""
    count = int(np.count_nonzero(psi_map))
    return float(psi_map.sum(dtype=np.float64)) / count if count else 0.0


def published_evaluation_maps(anomaly_map: Map) -> tuple[Map, Map]:
    """The maps (aupro_map, pixel_auroc_map), each (S, S) float32, that the published code rates.

    With psi the smoothed discrepancy, a its mean over non-zero pixels and b over all pixels, the
    detector's map is m = psi / sqrt(a), so mean_nz(m) = sqrt(a) and mean_all(m) = b / sqrt(a).
    The code rates AUPRO on psi / a = m / mean_nz(m), and P-AUROC on
    psi / sqrt(b) = m * sqrt(mean_nz(m) / mean_all(m)). A map of zeros gives zeros.

    Args:
        anomaly_map: (S, S) float32, of a detector with score_norm "cfm".

    Source: the public CFM code; method facts 6.3.6.
    """
    mean_nonzero = mean_of_nonzero(anomaly_map)
    mean_all = float(anomaly_map.mean(dtype=np.float64))
    if mean_nonzero == 0 or mean_all == 0:
        return anomaly_map, anomaly_map
    aupro_map = anomaly_map / np.float32(mean_nonzero)
    pixel_auroc_map = anomaly_map * np.float32(np.sqrt(mean_nonzero / mean_all))
    return aupro_map, pixel_auroc_map
