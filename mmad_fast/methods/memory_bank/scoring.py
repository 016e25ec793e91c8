"""From the patches' distances to image score and anomaly map. NumPy and Pillow only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mmad_fast.preprocess.resizing import bilinear_taps

Map = NDArray[np.float32]

NUM_NEIGHBORS = 2
"""Other bank rows near the nearest row that re-weight the image score (n_reweight = 3, the row
itself among them)."""

BLUR_RADIUS = 4
"""Of Pillow's Gaussian blur, and sigma of the float one."""
GAUSSIAN_RADIUS = 16
"""The float Gaussian is cut at 4 sigma: 33 taps, 6e-5 of its mass outside, rescaled to sum to 1."""


def distances_to(query: NDArray, rows: NDArray) -> NDArray[np.float64]:
    """(K,) float64 Euclidean distances of query (C,) to rows (K, C)."""
    differences = rows.astype(np.float64) - query
    distances: NDArray[np.float64] = np.sqrt((differences**2).sum(axis=1))
    return distances


def reweight(
    largest_distance: float,
    neighbor_distances: NDArray[np.float64],
    *,
    num_channels: int,
    reweighting: str,
    weight_epsilon: float = 0.0,
    distance_divisor: float = 1.0,
) -> float:
    """The image score of one bank: w s*, where s* is the largest distance of a patch to the bank.

    With d_k the distances of that patch to the neighbours of its nearest row m*:
    "code": s* and d_k divided by the divisor, w = 1 - exp(s*/sqrt C) / (sum_k exp(d_k/sqrt C) +
    epsilon); "paper": w = 1 - exp(s*) / (exp(s*) + sum_k exp(d_k)), m* being its own first
    neighbour; "none": w = 1. A bank without other rows has no neighbours, and w = 1.

    Args:
        largest_distance: s*.
        neighbor_distances: (K,) float64, d_k >= s*; K may be 0.
        num_channels: C.
        reweighting: "code", "paper" or "none".
        weight_epsilon: Of "code".
        distance_divisor: Of "code".

    Source: M3DM equation 6 and PatchCore (Roth et al., 2022) equation 7 for "paper"; the public
    code of M3DM, method facts 5.4, for "code".
    """
    if reweighting == "code":
        largest_distance /= distance_divisor
    if reweighting == "none" or not len(neighbor_distances):
        return largest_distance
    # exp(s* - x) instead of exp(s*) / exp(x): neither overflows.
    if reweighting == "paper":
        ratio = 1.0 / (1.0 + _sum_of_exponentials(neighbor_distances - largest_distance))
        return (1.0 - ratio) * largest_distance
    root = np.sqrt(num_channels)
    exponents = (neighbor_distances / distance_divisor - largest_distance) / root
    denominator = _sum_of_exponentials(exponents) + weight_epsilon * float(
        np.exp(-largest_distance / root)
    )
    return (1.0 - 1.0 / denominator) * largest_distance


def _sum_of_exponentials(exponents: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):  # infinity: a weight of 1
        return float(np.exp(exponents).sum())


def upsample(distances: Map, size: int) -> Map:
    """(size, size) float32: bilinear, as torch's `interpolate` with align_corners=False.

    Args:
        distances: (H, W) float32.
        size: Side of the result in pixels.
    """
    (rows0, rows1, weights), (columns0, columns1, column_weights) = (
        bilinear_taps(size, length) for length in distances.shape
    )
    wide = distances[:, columns0] * (1 - column_weights)
    wide += distances[:, columns1] * column_weights  # (H, size)
    result: Map = wide[rows0] * (1 - weights)[:, None]
    result += wide[rows1] * weights[:, None]
    return result


def blur(distance_map: Map, *, blur: str) -> Map:
    """The blurred map (S, S) float32: "pil8bit" as published, or "float"."""
    return blur_8bit(distance_map) if blur == "pil8bit" else blur_float(distance_map)


def blur_8bit(distance_map: Map) -> Map:
    """The map (S, S) after Pillow's Gaussian blur of radius 4 in 8 bits.

    The map is divided by its maximum, and rounded down to 255 steps before the blur and to the
    nearest after it: the result has at most 256 different values. A map of zeros stays zero.

    Args:
        distance_map: (S, S) float32, >= 0.

    Source: KNNGaussianBlur of the public code; method facts 0.7 and 5.4.
    """
    largest = distance_map.max()
    if largest <= 0:
        return np.zeros_like(distance_map)
    levels = (distance_map / largest * np.float32(255)).astype(np.uint8)
    blurred = Image.fromarray(levels).filter(ImageFilter.GaussianBlur(radius=BLUR_RADIUS))
    return np.asarray(blurred, np.float32) / np.float32(255) * largest


def blur_float(distance_map: Map) -> Map:
    """The map (S, S) after one Gaussian of sigma 4, cut at 16 pixels, edges replicated."""
    offsets = np.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1)
    exponentials = np.exp(-0.5 * (offsets / BLUR_RADIUS) ** 2)
    weights = (exponentials / exponentials.sum()).astype(np.float32)
    return _blur_rows(_blur_rows(distance_map, weights).T, weights).T.copy()


def _blur_rows(image: Map, weights: NDArray[np.float32]) -> Map:
    """The image with its columns (axis 0) convolved with symmetric weights, edges replicated."""
    radius, height = len(weights) // 2, len(image)
    padded = np.pad(image, ((radius, radius), (0, 0)), mode="edge")
    blurred = padded[radius : radius + height] * weights[radius]
    for k in range(radius):
        blurred += weights[k] * (
            padded[k : k + height] + padded[2 * radius - k : 2 * radius - k + height]
        )
    return blurred
