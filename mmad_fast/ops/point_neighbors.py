"""The nearest neighbours of each point of a cloud: one search for surface normals and FPFH."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.validation import MAX_MAGNITUDE, check_integer

__all__ = ["PointNeighbors", "find_neighbors"]

MAX_NEIGHBORS = 1024
"""Of a point; a neighbourhood that describes a surface has some tens."""


@dataclass(frozen=True, eq=False)
class PointNeighbors:
    """The nearest points of each point of a cloud, the nearest first.

    Attributes:
        indices: (N, K) int32 into the points, ascending by distance, of equals the lowest first; -1
            where there is no further neighbour. The first is the point itself, or the lowest of its
            duplicates. K is max_neighbors, or N where that is less.
        squared_distances: (N, K) float32 in the points' unit squared; infinite where there is no
            further neighbour.
        counts: (N,) int32, the neighbours of each point, itself among them: in 1..K.
        max_neighbors: How many were asked for.
        radius: The distance below which neighbours lie, or None for any.
    """

    indices: NDArray[np.int32]
    squared_distances: NDArray[np.float32]
    counts: NDArray[np.int32]
    max_neighbors: int
    radius: float | None

    def check(self, num_points: int) -> None:
        """Nothing, where they may be those of so many points.

        Raises:
            InvalidInputError: the arrays have other types or shapes, or a neighbour or a count is
                out of range.
        """
        make = "make them with find_neighbors(points, max_neighbors)"
        wanted = ("int32", "float32", "int32")
        arrays = (self.indices, self.squared_distances, self.counts)
        if not all(
            isinstance(array, np.ndarray) and array.dtype == dtype and array.flags.c_contiguous
            for array, dtype in zip(arrays, wanted, strict=True)
        ):
            raise InvalidInputError(
                f"neighbors must be C-contiguous NumPy arrays of {', '.join(wanted)}: {make}"
            )
        shapes = tuple(array.shape for array in arrays)
        length = shapes[0][-1] if shapes[0] else 0
        if shapes != ((num_points, length), (num_points, length), (num_points,)):
            raise InvalidInputError(
                f"neighbors have the shapes {', '.join(map(str, shapes))} and there are "
                f"{num_points} points: {make}"
            )
        is_read = np.arange(length) < self.counts[:, None]
        in_range = (self.indices >= 0) & (self.indices < num_points)
        if ((self.counts < min(1, length)) | (self.counts > length)).any() or (
            is_read & ~in_range
        ).any():
            raise InvalidInputError(f"neighbors hold an index or a count out of range: {make}")
        check_neighborhood(self.max_neighbors, self.radius)

    def require(self, max_neighbors: int, radius: float | None) -> None:
        """Nothing, where those of such a search are among them.

        Raises:
            InvalidInputError: it finds others.
        """
        if max_neighbors > self.max_neighbors:
            raise InvalidInputError(
                f"neighbors are the {self.max_neighbors} nearest, and {max_neighbors} are needed: "
                f"find them with max_neighbors={max_neighbors}"
            )
        if self.radius is not None and (radius is None or radius > self.radius):
            wanted = "at any distance" if radius is None else f"up to {radius:g}"
            raise InvalidInputError(
                f"neighbors are those up to {self.radius:g}, and those {wanted} are needed: "
                f"find them with radius={radius}"
            )

    def within(self, max_neighbors: int, radius: float | None) -> PointNeighbors:
        """Those of them that a smaller search finds.

        Raises:
            InvalidInputError: that search is not smaller.
        """
        self.require(max_neighbors, radius)
        indices = self.indices[:, :max_neighbors]
        squared = self.squared_distances[:, :max_neighbors]
        is_there = np.arange(indices.shape[1]) < self.counts[:, None]
        is_within = is_there & (squared < squared_radius(radius))
        return PointNeighbors(
            np.where(is_within, indices, np.int32(-1)),
            np.where(is_within, squared, np.float32(np.inf)),
            is_within.sum(axis=1, dtype=np.int32),
            max_neighbors,
            radius,
        )


def find_neighbors(
    points: NDArray[np.float32],
    max_neighbors: int,
    *,
    radius: float | None = None,
    index: PointIndex | None = None,
) -> PointNeighbors:
    """The nearest points of each point, the point itself among them.

    Args:
        points: (N, 3) float32, any unit, finite; N may be 0.
        max_neighbors: In 1..1024. Of a cloud of fewer points all are neighbours.
        radius: Only points that are nearer than this, in the points' unit: distances are float32,
            squared_distance < radius * radius.
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.

    Raises:
        InvalidInputError: points are no finite (N, 3) float array; max_neighbors or radius out of
            range; index is of other points.
    """
    cloud = PointIndex.of(points, index)
    max_neighbors, radius = check_neighborhood(max_neighbors, radius)
    return search(cloud, max_neighbors, radius)


def check_neighborhood(
    max_neighbors: Any,
    radius: Any,
    *,
    names: tuple[str, str] = ("max_neighbors", "radius"),
) -> tuple[int, float | None]:
    """The arguments of a search.

    Raises:
        InvalidInputError: they are not an integer in 1..1024 and a positive number or None.
    """
    count = check_integer(max_neighbors, names[0], minimum=1, maximum=MAX_NEIGHBORS)
    if radius is None:
        return count, None
    is_number = isinstance(radius, (int, float, np.integer, np.floating))
    if not is_number or isinstance(radius, bool) or not 0 < float(radius) <= 2 * MAX_MAGNITUDE:
        raise InvalidInputError(
            f"{names[1]} is {radius!r}; it must be a positive number of at most "
            f"{2 * MAX_MAGNITUDE:g} in the points' unit, or None for any distance"
        )
    if not squared_radius(float(radius)) > 0:
        raise InvalidInputError(
            f"{names[1]} is {radius!r}; its square is 0 in float32: scale the points up"
        )
    return count, float(radius)


def squared_radius(radius: float | None) -> np.float32:
    """What squared distances must be below, as it is compared with them."""
    return np.float32(np.inf if radius is None else radius * radius)


def search(cloud: PointIndex, max_neighbors: int, radius: float | None) -> PointNeighbors:
    """As find_neighbors, of checked arguments."""
    shape = (len(cloud), min(max_neighbors, len(cloud)))
    indices = np.empty(shape, np.int32)
    squared_distances = np.empty(shape, np.float32)
    counts = np.empty(len(cloud), np.int32)
    found = (indices, squared_distances, counts)
    if kernels_refusal() is None:
        from mmad_fast import _kernels

        _kernels.point_neighbors(cloud.kernel_index, squared_radius(radius), *found)
    else:
        _search_in_numpy(cloud.points, radius, *found)
    return PointNeighbors(*found, max_neighbors, radius)


def _search_in_numpy(
    points: NDArray[np.float32],
    radius: float | None,
    indices: NDArray[np.int32],
    squared_distances: NDArray[np.float32],
    counts: NDArray[np.int32],
) -> None:
    for i, point in enumerate(points):
        dx, dy, dz = (points - point).T
        squared = (dx * dx + dy * dy) + dz * dz
        nearest = np.argsort(squared, kind="stable")[: indices.shape[1]]
        is_within = squared[nearest] < squared_radius(radius)
        indices[i] = np.where(is_within, nearest, -1)
        squared_distances[i] = np.where(is_within, squared[nearest], np.inf)
        counts[i] = np.count_nonzero(is_within)
