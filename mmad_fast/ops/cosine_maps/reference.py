"""Cosine maps in NumPy float64, step by step as published: the truth.

The Gaussian is written out, since a base installation has no SciPy; tests hold it against SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TRUNCATION = 4.0
"""Standard deviations up to which the Gaussian reaches."""

MIN_NORM = 1e-8
"""Of a pixel's features, as torch's cosine_similarity has it: a vector of zeros has cosine 0."""

Map = NDArray[np.float64]


def cosine_maps(
    targets: Sequence[NDArray[np.float32]],
    restored: Sequence[NDArray[np.float32]],
    size: int,
    sigma: float,
    align_corners: bool,
) -> Map:
    """(S, S) float64: the sum of the upsampled distances of all levels, smoothed.

    Args:
        targets, restored: Of each level (C, H, W).
        size: S.
        sigma: Of the Gaussian in pixels; 0 for none.
        align_corners: Whether the outer pixels of both grids have the same centres.
    """
    total = np.zeros((size, size))
    for target, other in zip(targets, restored, strict=True):
        total += upsample(cosine_distances(target, other), size, align_corners)
    if not sigma:
        return total
    blur = gaussian(size, sigma)
    return blur @ total @ blur.T


def cosine_distances(target: NDArray[np.float32], restored: NDArray[np.float32]) -> Map:
    """(H, W) one minus the cosine between the features (C, H, W) of each pixel."""
    a, b = target.astype(np.float64), restored.astype(np.float64)
    norms = [np.maximum(np.sqrt((features**2).sum(axis=0)), MIN_NORM) for features in (a, b)]
    return 1 - (a * b).sum(axis=0) / (norms[0] * norms[1])


def upsample(values: Map, size: int, align_corners: bool) -> Map:
    """(S, S): bilinear interpolation of (H, W)."""
    rows, columns = (interpolation(length, size, align_corners) for length in values.shape)
    return rows @ values @ columns.T


def interpolation(length: int, size: int, align_corners: bool) -> Map:
    """(S, length): how much of each value is in each place."""
    places = np.arange(size)
    if align_corners:
        positions = places * (length - 1) / max(size - 1, 1)
    else:
        positions = np.clip((places + 0.5) * length / size - 0.5, 0, length - 1)
    lower = np.minimum(positions.astype(int), length - 1)
    upper = np.minimum(lower + 1, length - 1)
    matrix = np.zeros((size, length))
    np.add.at(matrix, (places, lower), 1 - (positions - lower))
    np.add.at(matrix, (places, upper), positions - lower)
    return matrix


def gaussian(size: int, sigma: float) -> Map:
    """(S, S): how much of each value of a row is in each smoothed one; the row goes on mirrored at
    its ends, as scipy.ndimage.gaussian_filter has it."""
    reach = int(TRUNCATION * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = np.arange(size)[:, None]
    mirrored = (places + offsets) % (2 * size)
    mirrored = np.minimum(mirrored, 2 * size - 1 - mirrored)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (places, mirrored), weights / weights.sum())
    return matrix
