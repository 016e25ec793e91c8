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
