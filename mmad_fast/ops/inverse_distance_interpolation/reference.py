"""Inverse distance interpolation in NumPy float64: the truth for every backend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-8


def inverse_distance_weights(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """indices (N, 3) and weights (N, 3); arguments as the public function's, validated."""
    indices, weights = exact_weights(points, centers)
    return indices, weights.astype(np.float32)


def exact_weights(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As `inverse_distance_weights`, with weights in float64."""
    exact_points, exact_centers = points.astype(np.float64), centers.astype(np.float64)
    indices = np.empty((len(points), 3), np.int64)
    weights = np.empty((len(points), 3), np.float64)
    for n, point in enumerate(exact_points):
        squared_distance = ((exact_centers - point) ** 2).sum(axis=1)
        indices[n] = np.argsort(squared_distance, kind="stable")[:3]
        weights[n] = 1.0 / (squared_distance[indices[n]] + EPSILON)
    return indices, weights / weights.sum(axis=1, keepdims=True)


def inverse_distance_interpolation(
    features: NDArray[np.float32], centers: NDArray[np.float32], points: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(N, C) float64; arguments as the public function's, validated."""
    indices, weights = exact_weights(points, centers)
    return (weights[:, :, None] * features.astype(np.float64)[indices]).sum(axis=1)


def pooled_interpolation_rows(
    indices: NDArray[np.int64],
    weights: NDArray[np.float32],
    pixel_indices: NDArray[np.int64],
    num_centers: int,
    grid_size: int,
    output_size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """(pixel_indices, offsets, columns, values); arguments as the public function's, validated.

    The published steps on a dense map, one centre at a time: its weight at every pixel is
    scattered, smoothed and pooled as if it were a feature channel.
    """
    pooling = _axis_weights(grid_size, output_size)
    row_parts, column_parts, value_parts = [], [], []
    for center in range(num_centers):
        at, slot = np.nonzero(indices == center)
        if len(at) == 0:
            continue
        grid, is_used = np.zeros((2, grid_size * grid_size))
        np.add.at(grid, pixel_indices[at], weights[at, slot].astype(np.float64))
        is_used[pixel_indices[at]] = 1.0
        pooled = (pooling @ grid.reshape(grid_size, grid_size) @ pooling.T).ravel()
        touched = np.flatnonzero(pooling @ is_used.reshape(grid_size, grid_size) @ pooling.T)
        row_parts.append(touched)
        column_parts.append(np.full(len(touched), center))
        value_parts.append(pooled[touched])
    if not row_parts:
        return (
            np.empty(0, np.int64),
            np.zeros(1, np.int64),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
        )
    pixels, columns = np.concatenate(row_parts), np.concatenate(column_parts)
    values = np.concatenate(value_parts)
    order = np.lexsort((columns, pixels))
    kept, lengths = np.unique(pixels, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return (
        kept.astype(np.int64),
        offsets.astype(np.int64),
        columns[order].astype(np.int32),
        values[order].astype(np.float32),
    )


def _axis_weights(grid_size: int, output_size: int) -> NDArray[np.float64]:
    """(output_size, grid_size): 3-mean without padding, then adaptive mean, along one axis."""
    smoothed_size = grid_size - 2
    smoothing = np.zeros((smoothed_size, grid_size))
    for t in range(smoothed_size):
        smoothing[t, t : t + 3] = 1 / 3
    pooling = np.zeros((output_size, smoothed_size))
    for k in range(output_size):
        begin = (k * smoothed_size) // output_size
        end = -(-(k + 1) * smoothed_size // output_size)  # rounded up
        pooling[k, begin:end] = 1 / (end - begin)
    return pooling @ smoothing
