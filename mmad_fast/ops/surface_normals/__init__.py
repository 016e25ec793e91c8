"""Surface normals: across the plane that fits a point's nearest neighbours best."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.point_index import PointIndex, read_cloud
from mmad_fast.ops.point_neighbors import PointNeighbors, check_neighborhood
from mmad_fast.ops.registry import device_of
from mmad_fast.ops.surface_normals.backends import OP

__all__ = ["OP", "ORIENTATIONS", "surface_normals"]

ORIENTATIONS = ("camera", "open3d")


def surface_normals(
    points: NDArray[np.float32],
    *,
    max_neighbors: int = 30,
    radius: float | None = None,
    orientation: str = "camera",
    neighbors: PointNeighbors | None = None,
    index: PointIndex | None = None,
    backend: str = "auto",
) -> NDArray[np.float32]:
    """(N, 3) float32 of unit length: the normal of the surface at each point.

    It is the eigenvector of the smallest eigenvalue of the covariance of a point's nearest
    neighbours, the point itself among them. It is (0, 0, 1) where there is none: fewer than 3
    neighbours, or all in one place; with "camera" turned to the camera like the others. Neighbours
    on a line, or around the point on all sides, have no single such direction: it is one of those
    across the line, or any.

    Args:
        points: (N, 3) float32, any unit, finite; N may be 0. On a CUDA device the result is there,
            too, and contents are not checked: points that are not finite are nobody's neighbours,
            and their own normal is (0, 0, 1).
        max_neighbors: In 1..1024. Of a cloud of fewer points all are neighbours.
        radius: Only neighbours that are nearer than this, in the points' unit.
        orientation: "camera": towards a camera in the origin, normal . point <= 0. "open3d": the
            sign that Open3D gives, which follows from its formula and not from the scan.
        neighbors: Those of the points, found with at least these max_neighbors and radius; without
            them they are searched for here. For NumPy arrays only.
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.
            For NumPy arrays only.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: points are no finite (N, 3) float array; max_neighbors or radius out of
            range; an unknown orientation; index or neighbors are of other points, or neighbors are
            of a smaller search. On a device: points of another type, not C-contiguous, or index or
            neighbors are given.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: Hoppe et al. (1992), section 3.1; as Open3D's estimate_normals with its hybrid search.
    """
    implementation = OP.resolve(backend, device=device_of(points))
    cloud = read_cloud(points, index)
    max_neighbors, radius = check_neighborhood(max_neighbors, radius)
    check_orientation(orientation)
    found = check_neighbors(neighbors, cloud, max_neighbors, radius)
    normals: NDArray[np.float32] = implementation.function(
        cloud, max_neighbors, radius, orientation, found
    )
    return normals


def check_orientation(orientation: Any) -> None:
    """Nothing, where there is such an orientation.

    Raises:
        InvalidInputError: there is none.
    """
    if not isinstance(orientation, str) or orientation not in ORIENTATIONS:
        raise InvalidInputError(
            f"orientation is {orientation!r}; it must be one of {', '.join(ORIENTATIONS)}"
        )


def check_neighbors(
    neighbors: Any, cloud: PointIndex | DeviceArray, max_neighbors: int, radius: float | None
) -> PointNeighbors | None:
    """The given neighbours, among which those of the search are; None where none are given.

    Raises:
        InvalidInputError: they are of other points, or of a smaller search, or the points are on a
            CUDA device.
    """
    if neighbors is None:
        return None
    if isinstance(cloud, DeviceArray):
        raise InvalidInputError(
            "neighbors= serves NumPy arrays only and points are on a CUDA device: leave it away"
        )
    if not isinstance(neighbors, PointNeighbors):
        raise InvalidInputError(
            f"neighbors is a {type(neighbors).__qualname__}; it must be PointNeighbors: make them "
            "with find_neighbors(points, max_neighbors)"
        )
    neighbors.check(len(cloud))
    neighbors.require(max_neighbors, radius)
    return neighbors
