"""The backends of inverse distance interpolation and of its pooled rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.inverse_distance_interpolation import reference
from mmad_fast.ops.inverse_distance_interpolation.pixel_windows import KERNEL_WINDOW, pixel_windows
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.registry import Backend, Op, always


def _cpu_weights(
    index: PointIndex, centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from mmad_fast import _kernels

    indices = np.empty((len(index.points), 3), np.int64)
    weights = np.empty((len(index.points), 3), np.float32)
    _kernels.inverse_distance_weights(index.kernel_index, centers, indices, weights)
    return indices, weights


def _cuda_weights(points: DeviceArray, centers: DeviceArray) -> tuple[Any, Any]:
    indices = points.empty((len(points), 3), "int64")
    weights = points.empty((len(points), 3), "float32")
    cuda_kernels.kernels().inverse_distance_weights(
        points.device,
        points.pointer,
        len(points),
        centers.pointer,
        len(centers),
        indices.pointer,
        weights.pointer,
        points.stream,
    )
    return points.give(indices), points.give(weights)


def _triton_weights(points: DeviceArray, centers: DeviceArray) -> tuple[Any, Any]:
    from mmad_fast.ops.inverse_distance_interpolation import triton_kernel

    with points.torch_stream():
        indices, weights = triton_kernel.inverse_distance_weights(points.tensor(), centers.tensor())
        return points.give(indices), points.give(weights)


def _reference_weights(
    index: PointIndex, centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return reference.inverse_distance_weights(index.points, centers)


def _cpu_dense(
    features: NDArray[np.float32], centers: NDArray[np.float32], index: PointIndex
) -> NDArray[np.float32]:
    from mmad_fast import _kernels

    dense = np.empty((len(index.points), features.shape[1]), np.float32)
    _kernels.inverse_distance_interpolation(index.kernel_index, centers, features, dense)
    return dense


def _triton_dense(features: DeviceArray, centers: DeviceArray, points: DeviceArray) -> Any:
    from mmad_fast.ops.inverse_distance_interpolation import triton_kernel

    with features.torch_stream():
        dense = triton_kernel.inverse_distance_interpolation(
            features.tensor(), centers.tensor(), points.tensor()
        )
        return features.give(dense)


def _reference_dense(
    features: NDArray[np.float32], centers: NDArray[np.float32], index: PointIndex
) -> NDArray[np.float32]:
    dense = reference.inverse_distance_interpolation(features, centers, index.points)
    return dense.astype(np.float32)


def _cpu_pooled_rows(
    indices: NDArray[np.int64],
    weights: NDArray[np.float32],
    pixel_indices: NDArray[np.int64],
    num_centers: int,
    grid_size: int,
    output_size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    from mmad_fast import _kernels

    pooled, (offsets, columns, values) = _kernels.pooled_interpolation_rows(
        indices, weights, pixel_indices, num_centers, grid_size, output_size
    )
    return pooled, offsets, columns, values


def _triton_pooled_rows(
    indices: DeviceArray,
    weights: DeviceArray,
    pixel_indices: NDArray[np.int64],
    num_centers: int,
    grid_size: int,
    output_size: int,
) -> tuple[NDArray[np.int64], Any, Any, Any]:
    from mmad_fast.ops.inverse_distance_interpolation import triton_kernel

    with indices.torch_stream():
        windows = pixel_windows(pixel_indices, grid_size, output_size, upload=indices.upload)
        num_rows, width = windows.points.shape
        # A window wider than a kernel's is several of the kernel's: their entries are adjacent.
        columns, values = triton_kernel.pooled_interpolation_rows(
            indices.tensor(),
            weights.tensor(),
            windows.points.view(-1, KERNEL_WINDOW),
            windows.shares.view(-1, KERNEL_WINDOW),
        )
        offsets = indices.upload(np.arange(num_rows + 1) * (3 * width))
        given = (indices.give(tensor) for tensor in (offsets, columns, values))
        return (windows.pixel_indices, *given)


OP = Op(
    "inverse_distance_interpolation",
    (
        Backend("cpu", _cpu_weights, kernels_refusal),
        Backend("cuda", _cuda_weights, cuda_kernels.cuda_refusal, device="cuda"),
        Backend("triton", _triton_weights, cuda_kernels.triton_refusal, device="cuda"),
        Backend("reference", _reference_weights, always),
    ),
)
DENSE_OP = Op(
    "inverse_distance_interpolation, dense",
    (
        Backend("cpu", _cpu_dense, kernels_refusal),
        Backend("triton", _triton_dense, cuda_kernels.triton_refusal, device="cuda"),
        Backend("reference", _reference_dense, always),
    ),
    absent={
        "cuda": "no kernel for dense features, of which the sparse form has no need; the backend "
        "'triton' has it"
    },
)
POOLED_ROWS_OP = Op(
    "pooled_interpolation_rows",
    (
        Backend("cpu", _cpu_pooled_rows, kernels_refusal),
        Backend("triton", _triton_pooled_rows, cuda_kernels.triton_refusal, device="cuda"),
        Backend("reference", reference.pooled_interpolation_rows, always),
    ),
    absent={
        "cuda": "no kernel: one product per entry, which CUDA would compute no faster; the backend "
        "'triton' has it"
    },
)
