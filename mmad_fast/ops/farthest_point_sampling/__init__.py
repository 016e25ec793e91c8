"""Farthest point sampling: a small set of points that covers a cloud evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.farthest_point_sampling.backends import OP
from mmad_fast.ops.point_index import PointIndex, read_cloud
from mmad_fast.ops.registry import device_of
from mmad_fast.validation import MAX_CENTERS, check_integer, check_rows

__all__ = ["OP", "farthest_point_sampling"]


def farthest_point_sampling(
    points: NDArray[np.float32],
    num_samples: int,
    *,
    start_index: int = 0,
    skip_near_origin: bool = False,
    index: PointIndex | None = None,
    backend: str = "auto",
) -> NDArray[np.int64]:
    """(G,) int64: indices of the sampled points, in the order in which they were chosen.

    The first is start_index; each further one is the point whose distance to the nearest chosen
    point is largest, of equals the one with the lowest index. Once every point is chosen all
    distances are 0 and the lowest index repeats, so num_samples may exceed N.

    Args:
        points: (N, 3) float32, any unit, finite, N >= 1. On a CUDA device the result is there,
            too, and the content is not checked: points that are not finite are never chosen.
        num_samples: G, in 1..2^24.
        start_index: The first sample, in 0..N-1.
        skip_near_origin: As pointnet2_ops: points with x^2 + y^2 + z^2 <= 1e-3 are never chosen,
            except as the start. If no other point is left, index 0 repeats.
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.
            For NumPy arrays only.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: points are no finite (N, 3) float array or empty; num_samples or
            start_index out of range; index is of other points. On a device: other than float32,
            not C-contiguous, or index is given.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: PointNet++ (Qi et al., 2017), section 3.2; start, precision and the rule near the origin
    as in pointnet2_ops, which M3DM and CFM use. That library breaks ties by thread number; we take
    the lowest index.
    """
    implementation = OP.resolve(backend, device=device_of(points))
    cloud = read_cloud(points, index)
    check_rows(cloud, "points", minimum=1)
    num_samples = check_integer(num_samples, "num_samples", minimum=1, maximum=MAX_CENTERS)
    start_index = check_integer(start_index, "start_index", minimum=0, maximum=len(cloud) - 1)
    indices: NDArray[np.int64] = implementation.function(
        cloud, num_samples, start_index, bool(skip_near_origin)
    )
    return indices
