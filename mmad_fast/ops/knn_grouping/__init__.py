"""Grouping: the K nearest points of each centre, relative to the centre."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.knn_grouping.backends import OP
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.validation import check_indices, check_integer

__all__ = ["OP", "KnnGroups", "knn_grouping"]


class KnnGroups(NamedTuple):
    """The neighbours of each centre.

    Attributes:
        indices: (G, K) int64 into the points, ascending by distance, of equals the lowest first.
        groups: (G, K, 3) float32, neighbour minus centre, in the points' unit.
    """

    indices: NDArray[np.int64]
    groups: NDArray[np.float32]


def knn_grouping(
    points: NDArray[np.float32],
    center_indices: NDArray[np.int64],
    num_neighbors: int,
    *,
    index: PointIndex | None = None,
    backend: str = "auto",
) -> KnnGroups:
    """The K nearest points of each centre, the centre itself among them.

    Args:
        points: (N, 3) float32, any unit, finite.
        center_indices: (G,) int64 into points, G >= 1; repeats are allowed.
        num_neighbors: K, in 1..N.
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.
        backend: "auto", or one of the names that `OP` knows.

    Returns:
        indices (G, K) and centred groups (G, K, 3).

    Raises:
        InvalidInputError: points are no finite (N, 3) float array; center_indices are no integers,
            none, or out of range; num_neighbors < 1 or more than there are points; index is of
            other points.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: the grouping of Point-MAE (Pang et al., 2022), section 3.1, as M3DM and CFM use it.
    """
    index = PointIndex.of(points, index)
    num_points = len(index.points)
    num_neighbors = check_integer(num_neighbors, "num_neighbors", minimum=1)
    if num_neighbors > num_points:
        raise InvalidInputError(
            f"there are {num_points} points for groups of {num_neighbors} neighbours; at least "
            f"{num_neighbors} are needed: give a larger cloud or a smaller num_neighbors"
        )
    center_indices = check_indices(
        center_indices, "center_indices", limit=num_points, of="the points"
    )
    if len(center_indices) == 0:
        raise InvalidInputError("center_indices is empty; at least 1 centre is needed")
    return KnnGroups(*OP.resolve(backend).function(index, center_indices, num_neighbors))
