"""The backends of inverse distance interpolation and of its pooled rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.inverse_distance_interpolation import reference
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal


def _cpu_weights(
    index: PointIndex, centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from mmad_fast import _kernels

    indices = np.empty((len(index.points), 3), np.int64)
    weights = np.empty((len(index.points), 3), np.float32)
    _kernels.inverse_distance_weights(index.kernel_index, centers, indices, weights)
    return indices, weights


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

    rows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]] = (
        _kernels.pooled_interpolation_rows(
            indices, weights, pixel_indices, num_centers, grid_size, output_size
        )
    )
    return rows


OP = Op(
    "inverse_distance_interpolation",
    (
        Backend("cpu", _cpu_weights, kernels_refusal),
        Backend("reference", _reference_weights, always),
    ),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
DENSE_OP = Op(
    "inverse_distance_interpolation",
    (
        Backend("cpu", _cpu_dense, kernels_refusal),
        Backend("reference", _reference_dense, always),
    ),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
POOLED_ROWS_OP = Op(
    "pooled_interpolation_rows",
    (
        Backend("cpu", _cpu_pooled_rows, kernels_refusal),
        Backend("reference", reference.pooled_interpolation_rows, always),
    ),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
