"""Fast point feature histograms: how the normals around a point turn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import DeviceArray, read_device_array
from mmad_fast.ops.fpfh.backends import OP, FpfhSettings
from mmad_fast.ops.fpfh.reference import NUM_CHANNELS
from mmad_fast.ops.point_index import PointIndex, read_cloud
from mmad_fast.ops.point_neighbors import PointNeighbors, check_neighborhood
from mmad_fast.ops.registry import device_of
from mmad_fast.ops.surface_normals import check_neighbors, check_orientation
from mmad_fast.validation import check_float_matrix

__all__ = ["NUM_CHANNELS", "OP", "fpfh"]

MAX_LENGTH_ERROR = 1e-3


def fpfh(
    points: NDArray[np.float32],
    *,
    normals: NDArray[Any] | None = None,
    normal_neighbors: int = 30,
    normal_radius: float | None = None,
    max_neighbors: int = 100,
    radius: float | None = None,
    orientation: str = "camera",
    neighbors: PointNeighbors | None = None,
    index: PointIndex | None = None,
    backend: str = "auto",
) -> NDArray[np.float32]:
    """(N, 33) float32: three histograms of 11 bins for each point, each of a sum of 200 percent.

    The bins are those of theta, alpha and phi. A histogram is that of the pairs of the point and
    its neighbours, plus the mean of the neighbours' histograms weighted by 1 / squared distance.
    They are 0 for a point without neighbours, and each has the sum of 100 where all neighbours are
    in the point's own place. One search serves normals, histograms and weights.

    Args:
        points: (N, 3) float32, any unit, finite; N may be 0. On a CUDA device the result is there,
            too, and contents are not checked: points that are not finite are nobody's neighbours,
            and their own histograms are 0.
        normals: (N, 3) float32 or float64 of unit length; without them they are computed as
            `surface_normals` does, in float64. On the points' device.
        normal_neighbors: For normals that are computed here: max_neighbors of `surface_normals`.
        normal_radius: Likewise its radius.
        max_neighbors: In 1..1024, the point itself among them. Of a cloud of fewer points all are
            neighbours.
        radius: Only neighbours that are nearer than this, in the points' unit.
        orientation: For normals that are computed here, as in `surface_normals`; the histograms
            depend on it.
        neighbors: Those of the points, found with the larger of the max_neighbors and of the radii;
            without them they are searched for here. For NumPy arrays only.
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.
            For NumPy arrays only.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: points or normals are no finite (N, 3) float arrays; normals are not of
            unit length; a number of neighbours or a radius out of range; an unknown orientation;
            index or neighbors are of other points, or neighbors are of a smaller search. On a
            device: other types, not C-contiguous, another device, index or neighbors are given.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: Rusu et al. (2009), as Open3D's compute_fpfh_feature with its hybrid search, which BTF
    (Horwitz and Hoshen, 2023) calls.
    """
    implementation = OP.resolve(backend, device=device_of(points))
    cloud = read_cloud(points, index)
    max_neighbors, radius = check_neighborhood(max_neighbors, radius)
    normal_neighbors, normal_radius = check_neighborhood(
        normal_neighbors, normal_radius, names=("normal_neighbors", "normal_radius")
    )
    check_orientation(orientation)
    settings = FpfhSettings(
        max_neighbors, radius, normal_neighbors, normal_radius, orientation, normals is None
    )
    exact_normals: NDArray[np.float64] | DeviceArray | None = None
    if isinstance(cloud, DeviceArray) and normals is not None:
        exact_normals = read_device_array(
            normals, "normals", shape=cloud.shape, dtypes=("float32", "float64"), like=cloud
        )
    elif normals is not None:
        exact_normals = _check_normals(normals, len(cloud))
    found = check_neighbors(neighbors, cloud, *settings.search)
    features: NDArray[np.float32] = implementation.function(cloud, settings, exact_normals, found)
    return features


def _check_normals(normals: Any, num_points: int) -> NDArray[np.float64]:
    rounded = check_float_matrix(normals, "normals", num_columns=3)
    if len(rounded) != num_points:
        raise InvalidInputError(
            f"normals has {len(rounded)} rows for {num_points} points; give one for each"
        )
    exact = np.ascontiguousarray(normals, np.float64)
    is_off = np.abs((exact * exact).sum(axis=1) - 1) > 2 * MAX_LENGTH_ERROR
    if is_off.any():
        raise InvalidInputError(
            f"normals is not of unit length in {np.count_nonzero(is_off)} of {num_points} rows "
            f"(the first is row {np.flatnonzero(is_off)[0]}): divide each by its length"
        )
    return exact
