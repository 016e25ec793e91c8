"""The nearest neighbour by definition: all differences, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest_neighbor_scoring(
    queries: NDArray[np.float32], bank: NDArray[np.float32] | NDArray[np.float16]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """distances (Q,) and indices (Q,): for each query the bank row with the smallest Euclidean
    distance, the lowest index where several are equally near."""
    rows = bank.astype(np.float64)
    distances = np.empty(len(queries), np.float32)
    indices = np.empty(len(queries), np.int64)
    for i, query in enumerate(queries.astype(np.float64)):
        squared_distances = ((rows - query) ** 2).sum(axis=1)  # (M,)
        indices[i] = squared_distances.argmin()
        distances[i] = np.sqrt(squared_distances[indices[i]])
    return distances, indices


def nearest_rows(
    query: NDArray[np.float32],
    bank: NDArray[np.float32] | NDArray[np.float16],
    *,
    count: int,
    exclude: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """distances and indices (K,) of the bank rows nearest to query (C,), without row `exclude`,
    ascending by distance, of equals the lowest index first; K is at most `count`."""
    squared_distances = ((bank.astype(np.float64) - query) ** 2).sum(axis=1)  # (M,)
    order = np.argsort(squared_distances, kind="stable")
    indices = order[order != exclude][:count]
    return np.sqrt(squared_distances[indices]).astype(np.float32), indices
