"""The backends of FPFH."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.device_neighbors import search_on_device
from mmad_fast.ops.fpfh import reference
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import PointNeighbors, search, squared_radius
from mmad_fast.ops.registry import Backend, Op, always
from mmad_fast.ops.surface_normals.backends import exact_normals, normals_on_device
from mmad_fast.ops.surface_normals.reference import surface_normals


@dataclass(frozen=True)
class FpfhSettings:
    """The checked numbers of a call, as `fpfh` describes them.

    Attributes:
        computes_normals: None are given.
    """

    max_neighbors: int
    radius: float | None
    normal_neighbors: int
    normal_radius: float | None
    orientation: str
    computes_normals: bool

    @property
    def search(self) -> tuple[int, float | None]:
        """The number of neighbours and the radius of the one search that serves all."""
        if not self.computes_normals:
            return self.max_neighbors, self.radius
        radii = (self.radius, self.normal_radius)
        largest = None if None in radii else max(radius for radius in radii if radius is not None)
        return max(self.max_neighbors, self.normal_neighbors), largest


def _cpu(
    index: PointIndex,
    settings: FpfhSettings,
    normals: NDArray[np.float64] | None,
    neighbors: PointNeighbors | None,
) -> NDArray[np.float32]:
    from mmad_fast import _kernels

    found = neighbors or search(index, *settings.search)
    if normals is None:
        normals = exact_normals(
            index.points,
            found,
            settings.normal_neighbors,
            settings.normal_radius,
            settings.orientation,
        )
    features = np.empty((len(index), reference.NUM_CHANNELS), np.float32)
    _kernels.fpfh(
        index.points,
        normals,
        found.indices,
        found.squared_distances,
        found.counts,
        settings.max_neighbors,
        squared_radius(settings.radius),
        features,
    )
    return features


def _reference(
    index: PointIndex,
    settings: FpfhSettings,
    normals: NDArray[np.float64] | None,
    neighbors: PointNeighbors | None,
) -> NDArray[np.float32]:
    found = neighbors or search(index, *settings.search)
    if normals is None:
        nearest = found.within(settings.normal_neighbors, settings.normal_radius)
        normals = surface_normals(
            index.points, nearest.indices, nearest.counts, settings.orientation
        )
    around = found.within(settings.max_neighbors, settings.radius)
    features = reference.fpfh(index.points, normals, around.indices, around.counts)
    return features.astype(np.float32)


def _cuda(
    points: DeviceArray, settings: FpfhSettings, normals: DeviceArray | None, neighbors: None
) -> Any:
    features = points.empty((len(points), reference.NUM_CHANNELS), "float32")
    if len(points) == 0:
        return points.give(features)
    kernels = cuda_kernels.kernels()
    found = search_on_device(points, *settings.search)
    if normals is None:
        normals = points.empty((len(points), 3), "float64")
        nearest = found.rows(settings.normal_neighbors, settings.normal_radius)
        normals_on_device(points, nearest, settings.orientation, normals)
    workspace = points.empty((kernels.fpfh_workspace(len(points)),), "uint8")
    kernels.fpfh(
        points.device,
        points.pointer,
        normals.pointer,
        normals.dtype == "float64",
        len(points),
        found.rows(settings.max_neighbors, settings.radius),
        features.pointer,
        workspace.pointer,
        points.stream,
    )
    return points.give(features)


OP = Op(
    "fpfh",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("cuda", _cuda, cuda_kernels.cuda_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "triton": "no kernel: the neighbours come from the search that only the backend 'cuda' has",
    },
)
