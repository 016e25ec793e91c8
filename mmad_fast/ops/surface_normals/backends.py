"""The backends of surface normals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.device_neighbors import search_on_device
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import PointNeighbors, search, squared_radius
from mmad_fast.ops.registry import Backend, Op, always
from mmad_fast.ops.surface_normals import reference


def exact_normals(
    points: NDArray[np.float32],
    neighbors: PointNeighbors,
    max_neighbors: int,
    radius: float | None,
    orientation: str,
) -> NDArray[np.float64]:
    """(N, 3) float64, by the compiled kernel, from neighbours of a search that is no smaller."""
    from mmad_fast import _kernels

    normals = np.empty((len(points), 3))
    _kernels.surface_normals(
        points,
        neighbors.indices,
        neighbors.squared_distances,
        neighbors.counts,
        max_neighbors,
        squared_radius(radius),
        orientation == "camera",
        normals,
    )
    return normals


def _cpu(
    index: PointIndex,
    max_neighbors: int,
    radius: float | None,
    orientation: str,
    neighbors: PointNeighbors | None,
) -> NDArray[np.float32]:
    found = neighbors or search(index, max_neighbors, radius)
    normals = exact_normals(index.points, found, max_neighbors, radius, orientation)
    return normals.astype(np.float32)


def _reference(
    index: PointIndex,
    max_neighbors: int,
    radius: float | None,
    orientation: str,
    neighbors: PointNeighbors | None,
) -> NDArray[np.float32]:
    found = (neighbors or search(index, max_neighbors, radius)).within(max_neighbors, radius)
    normals = reference.surface_normals(index.points, found.indices, found.counts, orientation)
    return normals.astype(np.float32)


def _cuda(
    points: DeviceArray, max_neighbors: int, radius: float | None, orientation: str, neighbors: None
) -> Any:
    normals = points.empty((len(points), 3), "float32")
    if len(points):
        found = search_on_device(points, max_neighbors, radius)
        normals_on_device(points, found.rows(max_neighbors, radius), orientation, normals)
    return points.give(normals)


def normals_on_device(
    points: DeviceArray, rows: Any, orientation: str, normals: DeviceArray
) -> None:
    """Writes normals (N, 3), float32 or float64, of the neighbours in the rows."""
    cuda_kernels.kernels().surface_normals(
        points.device,
        points.pointer,
        len(points),
        rows,
        orientation == "camera",
        normals.dtype == "float64",
        normals.pointer,
        points.stream,
    )


OP = Op(
    "surface_normals",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("cuda", _cuda, cuda_kernels.cuda_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "triton": "no kernel: the neighbours come from the search that only the backend 'cuda' has",
    },
)
