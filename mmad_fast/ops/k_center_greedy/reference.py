"""Greedy k-centre selection by definition, in NumPy float64: the truth for every backend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def k_center_greedy(
    rows: NDArray[np.float32], num_samples: int, start: int = 0
) -> NDArray[np.int64]:
    """(n,) int64 rows in the order of their selection; arguments as the public function's,
    validated."""
    exact = rows.astype(np.float64)
    nearest = np.full(len(rows), np.inf, np.float32)  # distance to the nearest selected row
    selected = [start]
    while len(selected) < num_samples:
        squared_distances = ((exact - exact[selected[-1]]) ** 2).sum(axis=1)  # (N,)
        nearest = np.minimum(nearest, np.sqrt(squared_distances).astype(np.float32))
        farthest = int(nearest.argmax())  # of equals the first
        if nearest[farthest] == 0:
            break
        selected.append(farthest)
    return np.array(selected, np.int64)
