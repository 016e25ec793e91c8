"""The backends of grouping."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.knn_grouping import reference
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.registry import Backend, Op, always


def _cpu(
    index: PointIndex, center_indices: NDArray[np.int64], num_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from mmad_fast import _kernels

    indices = np.empty((len(center_indices), num_neighbors), np.int64)
    groups = np.empty((len(center_indices), num_neighbors, 3), np.float32)
    _kernels.knn_grouping(index.kernel_index, center_indices, num_neighbors, indices, groups)
    return indices, groups


def _cuda(points: DeviceArray, center_indices: DeviceArray, num_neighbors: int) -> tuple[Any, Any]:
    kernels = cuda_kernels.kernels()
    sizes = (len(points), len(center_indices), num_neighbors)
    indices = points.empty((len(center_indices), num_neighbors), "int64")
    groups = points.empty((len(center_indices), num_neighbors, 3), "float32")
    workspace = points.empty((kernels.knn_grouping_workspace(*sizes),), "uint8")
    kernels.knn_grouping(
        points.device,
        points.pointer,
        len(points),
        center_indices.pointer,
        len(center_indices),
        num_neighbors,
        indices.pointer,
        groups.pointer,
        workspace.pointer,
        points.stream,
    )
    return points.give(indices), points.give(groups)


def _reference(
    index: PointIndex, center_indices: NDArray[np.int64], num_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return reference.knn_grouping(index.points, center_indices, num_neighbors)


OP = Op(
    "knn_grouping",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("cuda", _cuda, cuda_kernels.cuda_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "triton": "no kernel: a selection of the K nearest of all points needs the shuffles and "
        "shared queues of a warp, which Triton hides; the backend 'cuda' has it",
    },
)
