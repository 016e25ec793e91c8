"""FPFH in NumPy float64: the truth that every backend is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

BINS = 11
NUM_CHANNELS = 3 * BINS
POINTS_PER_PART = 512


def fpfh(
    points: NDArray[np.float32],
    normals: Doubles,
    indices: NDArray[np.int32],
    counts: NDArray[np.int32],
) -> Doubles:
    """(N, 33) float64.

    Args:
        points: (N, 3).
        normals: (N, 3) of unit length.
        indices: (N, K) the neighbours of each point, the first of which is left out; what is behind
            the count is not read.
        counts: (N,).
    """
    exact = points.astype(np.float64)
    parts = [
        slice(first, first + POINTS_PER_PART) for first in range(0, len(exact), POINTS_PER_PART)
    ]
    simple = np.zeros((len(exact), NUM_CHANNELS))
    for part in parts:
        simple[part] = simple_histograms(exact, normals, indices[part], counts[part], part)
    weighted = np.zeros_like(simple)
    for part in parts:
        neighbors = np.maximum(indices[part, 1:], 0)
        squared = ((exact[neighbors] - exact[part, None]) ** 2).sum(axis=2)  # (n, K - 1)
        is_used = (np.arange(1, indices.shape[1]) < counts[part, None]) & (squared > 0)
        weights = np.where(is_used, 1 / np.where(is_used, squared, 1), 0)
        weighted[part] = (weights[:, None, :] @ simple[neighbors])[:, 0]
    blocks = weighted.reshape(-1, 3, BINS)
    sums = blocks.sum(axis=2, keepdims=True)
    blocks *= np.where(sums > 0, 100 / np.where(sums > 0, sums, 1), 0)
    return simple + weighted


def simple_histograms(
    points: Doubles,
    normals: Doubles,
    indices: NDArray[np.int32],
    counts: NDArray[np.int32],
    part: slice,
) -> Doubles:
    """(n, 33): the SPFH of a part of the points, in percent."""
    neighbors = np.maximum(indices[:, 1:], 0)  # (n, K - 1)
    features = pair_features(
        points[part, None], normals[part, None], points[neighbors], normals[neighbors]
    )  # (n, K - 1, 3)
    positions = np.floor(BINS * bin_positions(features))
    bins = np.clip(positions, 0, BINS - 1).astype(np.int64) + BINS * np.arange(3)
    is_there = np.arange(1, indices.shape[1]) < counts[:, None]
    histograms = np.zeros((len(indices), NUM_CHANNELS))
    percent = 100 / np.maximum(counts - 1, 1)
    rows = np.broadcast_to(np.arange(len(indices))[:, None, None], bins.shape)
    values = np.broadcast_to(np.where(is_there, percent[:, None], 0)[:, :, None], bins.shape)
    np.add.at(histograms, (rows, bins), values)
    return histograms


def bin_positions(features: Doubles) -> Doubles:
    """The features (theta, alpha, phi) as shares of their ranges."""
    theta, alpha, phi = np.moveaxis(features, -1, 0)
    return np.stack([(theta + np.pi) / (2 * np.pi), (alpha + 1) * 0.5, (phi + 1) * 0.5], axis=-1)


def pair_features(p: Doubles, n: Doubles, q: Doubles, m: Doubles) -> Doubles:
    """(..., 3): theta, alpha, phi of points p with normals n and their neighbours q with normals m.

    The source of a pair is the point whose normal is nearer to the line between them.
    """
    line = q - p
    n, m = np.broadcast_arrays(n, m)
    is_swapped = (np.abs(dot(n, line)) < np.abs(dot(m, line)))[..., None]
    return features_of(
        np.where(is_swapped, -line, line), np.where(is_swapped, m, n), np.where(is_swapped, n, m)
    )


def features_of(line: Doubles, source: Doubles, target: Doubles) -> Doubles:
    """(..., 3): theta, alpha, phi, by the line from source to target and the normals there. All are
    0 where the line has no length, or the source's normal is on it."""
    length = np.sqrt(dot(line, line))
    v = np.cross(line, source)
    v_length = np.sqrt(dot(v, v))
    is_defined = (length > 0) & (v_length > 0)
    v = v / np.where(is_defined, v_length, 1)[..., None]
    w = np.cross(source, v)
    phi = dot(source, line) / np.where(is_defined, length, 1)
    theta = np.arctan2(dot(w, target), dot(source, target))
    return np.where(is_defined[..., None], np.stack([theta, dot(v, target), phi], axis=-1), 0)


def dot(a: Doubles, b: Doubles) -> Doubles:
    """(...): the sums of products, in this order. One of -0 stays so: theta has its sign."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]
