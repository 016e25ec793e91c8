"""The backends of grouping."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.knn_grouping import reference
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal


def _cpu(
    index: PointIndex, center_indices: NDArray[np.int64], num_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from mmad_fast import _kernels

    indices = np.empty((len(center_indices), num_neighbors), np.int64)
    groups = np.empty((len(center_indices), num_neighbors, 3), np.float32)
    _kernels.knn_grouping(index.kernel_index, center_indices, num_neighbors, indices, groups)
    return indices, groups


def _reference(
    index: PointIndex, center_indices: NDArray[np.int64], num_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return reference.knn_grouping(index.points, center_indices, num_neighbors)


OP = Op(
    "knn_grouping",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("reference", _reference, always),
    ),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
