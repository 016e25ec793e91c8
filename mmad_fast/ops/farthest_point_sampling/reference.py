"""Farthest point sampling in NumPy float64: the truth that every backend is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR_ORIGIN_SQUARED = 1e-3


def farthest_point_sampling(
    points: NDArray[np.float32], num_samples: int, start_index: int, skip_near_origin: bool
) -> NDArray[np.int64]:
    """(G,) int64 indices; arguments as the public function's, validated."""
    exact = points.astype(np.float64)
    squared_distance = np.full(len(exact), np.inf)  # to the nearest chosen point
    if skip_near_origin:
        squared_distance[(exact**2).sum(axis=1) <= NEAR_ORIGIN_SQUARED] = -1.0  # no candidate
    indices = np.empty(num_samples, np.int64)
    indices[0] = start_index
    for s in range(1, num_samples):
        to_chosen = ((exact - exact[indices[s - 1]]) ** 2).sum(axis=1)
        squared_distance = np.minimum(squared_distance, to_chosen)
        indices[s] = np.argmax(squared_distance)  # of equals the first
    return indices
