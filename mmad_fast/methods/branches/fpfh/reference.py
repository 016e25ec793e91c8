"""The published descriptors of a scan's points: Open3D's, or the same by the ops' NumPy references.
What the references of all methods begin with. Imports nothing from the fast code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmad_fast.errors import MissingDependencyError
from mmad_fast.methods.branches.fpfh.options import FpfhOptions
from mmad_fast.ops.fpfh.reference import fpfh
from mmad_fast.ops.surface_normals.reference import surface_normals
from mmad_fast.preprocess.reference import import_open3d

SPARE_NEIGHBORS = 32
"""Beyond those that are needed: as many may be as far as the last of them."""


def reference_descriptors(
    points: NDArray[np.float32], options: FpfhOptions, *, ties: str = "lowest"
) -> NDArray[np.float64]:
    """(N, 33) float64 FPFH of points (N, 3).

    Args:
        points: Metres.
        options: Of the branch.
        ties: Of equally near points, "lowest": the lowest index, as the op takes; "any": Open3D
            itself, as published, where it can be imported.

    Source: the public code of BTF, method facts 9.1.
    """
    if ties == "any" and (found := _by_open3d(points, options)) is not None:
        return found
    most = max(options.fpfh_normal_neighbors, options.fpfh_neighbors)
    indices, squared = nearest_points(points, most)

    def within(number: int, radius: float | None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        limit = np.float32(np.inf if radius is None else radius * radius)
        return indices[:, :number], (squared[:, :number] < limit).sum(axis=1, dtype=np.int32)

    around = within(options.fpfh_normal_neighbors, options.fpfh_normal_radius)
    normals = surface_normals(points, *around, options.fpfh_orientation)
    return fpfh(points, normals, *within(options.fpfh_neighbors, options.fpfh_radius))


def nearest_points(
    points: NDArray[np.float32], number: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(N, K) indices and squared distances of the nearest points of each, itself among them; K is
    `number`, or N where that is less. Distances are float32, of equal ones the lowest index is
    first."""
    number = min(number, len(points))
    candidates = cKDTree(points).query(points, min(number + SPARE_NEIGHBORS, len(points)))[1]
    candidates = candidates.reshape(len(points), -1)
    x, y, z = np.moveaxis(points[candidates] - points[:, None], -1, 0)
    squared = (x * x + y * y) + z * z
    order = np.lexsort((candidates, squared), axis=1)[:, :number]
    indices = np.take_along_axis(candidates, order, axis=1).astype(np.int32)
    return indices, np.take_along_axis(squared, order, axis=1)


def _by_open3d(points: NDArray[np.float32], options: FpfhOptions) -> NDArray[np.float64] | None:
    """As the public code calls it; None where Open3D cannot be imported."""
    try:
        open3d = import_open3d()
    except MissingDependencyError:
        return None

    def search(number: int, radius: float | None) -> Any:
        if radius is None:
            return open3d.geometry.KDTreeSearchParamKNN(number)
        return open3d.geometry.KDTreeSearchParamHybrid(radius, number)

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.estimate_normals(search(options.fpfh_normal_neighbors, options.fpfh_normal_radius))
    if options.fpfh_orientation == "camera":
        cloud.orient_normals_towards_camera_location()
    around = search(options.fpfh_neighbors, options.fpfh_radius)
    histograms = open3d.pipelines.registration.compute_fpfh_feature(cloud, around).data
    return np.ascontiguousarray(histograms.T)
