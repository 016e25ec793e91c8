"""The geometric ops by brute force in float32: what every fast backend must return, bit by bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ops.cases import float32_squared_distances

NEAR_ORIGIN_SQUARED = 1e-3


def sample_in_float32(
    points: NDArray[np.float32],
    num_samples: int,
    start_index: int = 0,
    *,
    skip_near_origin: bool = False,
) -> NDArray[np.int64]:
    """(G,) the farthest points, of equals the lowest index."""
    nearest = np.full(len(points), np.inf, np.float32)
    if skip_near_origin:
        squared_norms = float32_squared_distances(points, np.zeros(3, np.float32))
        nearest[squared_norms.astype(np.float64) <= NEAR_ORIGIN_SQUARED] = -1
    indices = [start_index]
    while len(indices) < num_samples:
        nearest = np.minimum(nearest, float32_squared_distances(points, points[indices[-1]]))
        indices.append(int(nearest.argmax()))
    return np.array(indices)


def nearest_in_float32(
    points: NDArray[np.float32], centers: NDArray[np.int64], num_neighbors: int
) -> NDArray[np.int64]:
    """(G, K) the nearest points of the given ones, of equals the lowest index first."""
    rows = [
        np.argsort(float32_squared_distances(points, points[center]), kind="stable")
        for center in centers
    ]
    return np.stack(rows)[:, :num_neighbors]


def weights_in_float32(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """indices (N, 3) and weights (N, 3) of the three nearest centres."""
    indices, weights = [], []
    for point in points:
        squared = float32_squared_distances(centers, point)
        nearest = np.argsort(squared, kind="stable")[:3]
        weight = 1 / (squared[nearest] + np.float32(1e-8))
        indices.append(nearest)
        weights.append(weight / weight.sum())
    return np.stack(indices), np.stack(weights)
