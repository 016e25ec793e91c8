"""The backends of farthest point sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.farthest_point_sampling import reference
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.registry import Backend, Op, always


def _cpu(
    index: PointIndex, num_samples: int, start_index: int, skip_near_origin: bool
) -> NDArray[np.int64]:
    from mmad_fast import _kernels

    indices = np.empty(num_samples, np.int64)
    _kernels.farthest_point_sampling(index.kernel_index, start_index, skip_near_origin, indices)
    return indices


def _cuda(points: DeviceArray, num_samples: int, start_index: int, skip_near_origin: bool) -> Any:
    kernels = cuda_kernels.kernels()
    indices = points.empty((num_samples,), "int64")
    size = kernels.farthest_point_sampling_workspace(len(points))
    workspace = points.empty((size,), "uint8")
    kernels.farthest_point_sampling(
        points.device,
        points.pointer,
        len(points),
        num_samples,
        start_index,
        skip_near_origin,
        indices.pointer,
        workspace.pointer,
        points.stream,
    )
    return points.give(indices)


def _reference(
    index: PointIndex, num_samples: int, start_index: int, skip_near_origin: bool
) -> NDArray[np.int64]:
    return reference.farthest_point_sampling(
        index.points, num_samples, start_index, skip_near_origin
    )


OP = Op(
    "farthest_point_sampling",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("cuda", _cuda, cuda_kernels.cuda_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "triton": "no kernel: every sample waits for the argmax over all points, a chain that does "
        "not suit Triton's independent programs; the backend 'cuda' has it",
    },
)
