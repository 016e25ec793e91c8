"""The backends of grouping."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.knn_grouping import reference
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal


def _cpu(
    points: NDArray[np.float32], center_indices: NDArray[np.int64], num_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from mmad_fast import _kernels

    indices = np.empty((len(center_indices), num_neighbors), np.int64)
    groups = np.empty((len(center_indices), num_neighbors, 3), np.float32)
    _kernels.knn_grouping(points, center_indices, num_neighbors, indices, groups)
    return indices, groups


OP = Op(
    "knn_grouping",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("reference", reference.knn_grouping, always),
    ),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
