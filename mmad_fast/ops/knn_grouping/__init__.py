"""Grouping: the K nearest points of each centre, relative to the centre."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import read_device_array
from mmad_fast.ops.knn_grouping.backends import OP
from mmad_fast.ops.point_index import PointIndex, read_cloud
from mmad_fast.ops.registry import device_of
from mmad_fast.validation import check_indices, check_integer

__all__ = ["OP", "KnnGroups", "knn_grouping"]

MAX_NEIGHBORS_ON_DEVICE = 1024
"""Of the backend "cuda": more do not fit a block's shared memory."""


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
        points: (N, 3) float32, any unit, finite. On a CUDA device the results are there, too, and
            contents are not checked: points that are not finite are never nearest where a finite
            one is left, indices out of range are moved to the nearest in range.
        center_indices: (G,) int64 into points, G >= 1; repeats are allowed. On the points' device.
        num_neighbors: K, in 1..N; on a device in 1..min(N, 1024).
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.
            For NumPy arrays only.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: points are no finite (N, 3) float array; center_indices are no integers,
            none, or out of range; num_neighbors < 1 or more than there are points; index is of
            other points. On a device: other types, not C-contiguous, another device, more than
            1024 neighbours, or index is given.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: the grouping of Point-MAE (Pang et al., 2022), section 3.1, as M3DM and CFM use it.
    """
    implementation = OP.resolve(backend, device=device_of(points))
    cloud = read_cloud(points, index)
    num_points = len(cloud)
    num_neighbors = _check_neighbors(num_neighbors, num_points)
    if isinstance(cloud, PointIndex):
        centers: Any = check_indices(
            center_indices, "center_indices", limit=num_points, of="the points"
        )
    elif num_neighbors > MAX_NEIGHBORS_ON_DEVICE:
        raise InvalidInputError(
            f"num_neighbors is {num_neighbors}; on a CUDA device it must be at most "
            f"{MAX_NEIGHBORS_ON_DEVICE}: take fewer, or bring the points to the host"
        )
    else:
        centers = read_device_array(
            center_indices, "center_indices", shape=(None,), dtypes=("int64", "int32"), like=cloud
        ).as_int64()
    if len(centers) == 0:
        raise InvalidInputError("center_indices is empty; at least 1 centre is needed")
    return KnnGroups(*implementation.function(cloud, centers, num_neighbors))


def _check_neighbors(num_neighbors: int, num_points: int) -> int:
    num_neighbors = check_integer(num_neighbors, "num_neighbors", minimum=1)
    if num_neighbors > num_points:
        raise InvalidInputError(
            f"there are {num_points} points for groups of {num_neighbors} neighbours; at least "
            f"{num_neighbors} are needed: give a larger cloud or a smaller num_neighbors"
        )
    return num_neighbors
