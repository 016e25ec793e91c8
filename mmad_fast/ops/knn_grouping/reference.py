"""Grouping in NumPy float64: the truth that every backend is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def knn_grouping(
    points: NDArray[np.float32], center_indices: NDArray[np.int64], num_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """indices (G, K) and groups (G, K, 3); arguments as the public function's, validated."""
    exact = points.astype(np.float64)
    indices = np.empty((len(center_indices), num_neighbors), np.int64)
    for g, center in enumerate(exact[center_indices]):
        squared_distance = ((exact - center) ** 2).sum(axis=1)
        indices[g] = np.argsort(squared_distance, kind="stable")[:num_neighbors]
    groups = exact[indices] - exact[center_indices][:, None]  # (G, K, 3)
    return indices, groups.astype(np.float32)
