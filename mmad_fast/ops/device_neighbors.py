"""The neighbours of every point on a CUDA device, as `point_neighbors` has them on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.point_neighbors import squared_radius

__all__ = ["DeviceNeighbors", "search_on_device"]


@dataclass(frozen=True, eq=False)
class DeviceNeighbors:
    """As `PointNeighbors`; K is the number that was asked for, or N where that is less.

    Attributes:
        indices: (N, K) int32.
        squared_distances: (N, K) float32.
        counts: (N,) int32; 0 for a point that is not finite.
    """

    indices: DeviceArray
    squared_distances: DeviceArray
    counts: DeviceArray

    def rows(self, max_neighbors: int, radius: float | None) -> Any:
        """What a kernel reads: those of them that a smaller search finds."""
        return cuda_kernels.kernels().NeighborRows(
            indices=self.indices.pointer,
            squared_distances=self.squared_distances.pointer,
            counts=self.counts.pointer,
            row_length=self.indices.shape[1],
            max_neighbors=max_neighbors,
            squared_radius=squared_radius(radius),
        )


def search_on_device(
    points: DeviceArray, max_neighbors: int, radius: float | None
) -> DeviceNeighbors:
    """The neighbours of points (N, 3), N >= 1, of checked arguments."""
    kernels = cuda_kernels.kernels()
    num_points = len(points)
    num_neighbors = min(max_neighbors, num_points)
    found = DeviceNeighbors(
        points.empty((num_points, num_neighbors), "int32"),
        points.empty((num_points, num_neighbors), "float32"),
        points.empty((num_points,), "int32"),
    )
    size = kernels.knn_grouping_workspace(num_points, num_points, num_neighbors)
    workspace = points.empty((size,), "uint8")
    kernels.point_neighbors(
        points.device,
        points.pointer,
        num_points,
        num_neighbors,
        squared_radius(radius),
        found.indices.pointer,
        found.squared_distances.pointer,
        found.counts.pointer,
        workspace.pointer,
        points.stream,
    )
    return found
