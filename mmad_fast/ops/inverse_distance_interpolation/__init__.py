"""Inverse distance interpolation: point features from the three nearest centres."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import DeviceArray, is_device_array, read_device_array
from mmad_fast.ops.inverse_distance_interpolation.backends import DENSE_OP, OP, POOLED_ROWS_OP
from mmad_fast.ops.point_index import PointIndex, read_cloud, refuse_index
from mmad_fast.ops.registry import device_of
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.validation import (
    MAX_CENTERS,
    MAX_SIDE,
    check_float_matrix,
    check_indices,
    check_integer,
    check_rows,
)

__all__ = [
    "DENSE_OP",
    "OP",
    "POOLED_ROWS_OP",
    "InterpolationWeights",
    "PooledRows",
    "inverse_distance_interpolation",
    "inverse_distance_weights",
    "pooled_interpolation_rows",
]


class InterpolationWeights(NamedTuple):
    """How a point's feature is combined from three centres.

    Attributes:
        indices: (N, 3) int64 into the centres, ascending by distance, of equals the lowest first.
        weights: (N, 3) float32, positive, summing to 1.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]


class PooledRows(NamedTuple):
    """How the pixels of a pooled feature map are combined from the centres.

    Attributes:
        rows: P rows over the centres, where the weights are. On a CUDA device each row has as many
            entries, some of them 0, and a column may occur several times in a row.
        pixel_indices: (P,) int64, row-major on the output grid, ascending. The pixels that have no
            row have a feature of 0 in every channel. Always a NumPy array.
    """

    rows: SparseRows
    pixel_indices: NDArray[np.int64]


def inverse_distance_weights(
    points: NDArray[np.float32],
    centers: NDArray[np.float32],
    *,
    index: PointIndex | None = None,
    backend: str = "auto",
) -> InterpolationWeights:
    """The three nearest centres of each point and their weights 1 / (d^2 + 1e-8), normalised.

    Args:
        points: (N, 3) float32 metres, finite; N may be 0. On a CUDA device the results are there,
            too, and contents are not checked: centres that are not finite are never taken where
            three others are left.
        centers: (G, 3) float32 metres, finite, G >= 3. On the points' device.
        index: A `PointIndex` of the points, to share with other ops; without it one is made here.
            For NumPy arrays only.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: an array is no finite (rows, 3) float array, or there are fewer than
            three centres, or index is of other points. On a device: other types, not C-contiguous,
            another device, or index is given.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: PointNet++ (Qi et al., 2017), equation 2, with the constants of the code of M3DM and
    CFM. Their squared distances come from the expanded form in float32, which is noise at points
    that are centres; ours are direct differences.
    """
    implementation = OP.resolve(backend, device=device_of(points))
    cloud = read_cloud(points, index)
    if isinstance(cloud, PointIndex):
        center_rows: Any = check_float_matrix(centers, "centers", num_columns=3, min_rows=3)
    else:
        center_rows = _read_centers(centers, cloud)
    return InterpolationWeights(*implementation.function(cloud, center_rows))


def inverse_distance_interpolation(
    features: NDArray[np.float32],
    centers: NDArray[np.float32],
    points: NDArray[np.float32],
    *,
    index: PointIndex | None = None,
    backend: str = "auto",
) -> NDArray[np.float32]:
    """(N, C) float32: the feature of each point, from its three nearest centres.

    Args:
        features: (G, C) float32, of the centres. Where they are on a CUDA device the other arrays
            must be, and the result is.
        centers: (G, 3) float32 metres, finite, G >= 3.
        points: (N, 3) float32 metres, finite; N may be 0.
        index, backend: As in `inverse_distance_weights`.

    Raises:
        InvalidInputError: as in `inverse_distance_weights`, or features are no finite float array
            with one row per centre.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: as `inverse_distance_weights`.
    """
    implementation = DENSE_OP.resolve(backend, device=device_of(features))
    rows: Any
    center_rows: Any
    cloud: Any
    if is_device_array(features):
        refuse_index(index)
        rows = read_device_array(features, "features", shape=(None, None))
        center_rows = _read_centers(centers, rows)
        cloud = read_device_array(points, "points", shape=(None, 3), like=rows)
    else:
        rows = check_float_matrix(features, "features")
        cloud = PointIndex.of(points, index)
        center_rows = check_float_matrix(centers, "centers", num_columns=3, min_rows=3)
    if len(rows) != len(center_rows):
        raise InvalidInputError(
            f"features has {len(rows)} rows and there are {len(center_rows)} centers; each centre "
            "needs one row of features"
        )
    dense: NDArray[np.float32] = implementation.function(rows, center_rows, cloud)
    return dense


def pooled_interpolation_rows(
    weights: InterpolationWeights,
    pixel_indices: NDArray[np.int64],
    *,
    num_centers: int,
    grid_size: int = 224,
    output_size: int = 224,
    backend: str = "auto",
) -> PooledRows:
    """The rows of interpolation, smoothing and pooling in one: output pixels from centres.

    What the published pipelines do in three dense steps: the points' features are written into a
    grid of zeros, averaged 3 x 3 without padding, and averaged adaptively to the output size.
    Zeros off the object count in the averages.

    Args:
        weights: Of the N points, from `inverse_distance_weights`; N may be 0. On a CUDA device
            their contents are not checked.
        pixel_indices: (N,) int64, row-major pixel of each point on the grid, no duplicates. A NumPy
            array in any case: which pixels have rows is then known without waiting for a device.
        num_centers: G, in 1..2^24.
        grid_size: S, side of the grid, in 3..4096.
        output_size: Side of the output grid, in 1..4096; 224 for CFM, 56 or 28 for M3DM.
        backend: "auto", or one of the names that `POOLED_ROWS_OP` knows.

    Returns:
        The rows of the output pixels whose window holds at least one point, which is the mask of
        the published code, and which pixels they are.

    Raises:
        InvalidInputError: arrays of another shape, type or range, a pixel given twice, or sizes out
            of range.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: M3DM (Wang et al., 2023), section 3.2, and CFM (Costanzino et al., 2024), section 3.1,
    with the order, window sizes and missing padding of their code.
    """
    num_centers = check_integer(num_centers, "num_centers", minimum=1, maximum=MAX_CENTERS)
    grid_size = check_integer(grid_size, "grid_size", minimum=3, maximum=MAX_SIDE)
    output_size = check_integer(output_size, "output_size", minimum=1, maximum=MAX_SIDE)
    pixel_indices = check_indices(
        pixel_indices, "pixel_indices", limit=grid_size**2, of=f"the {grid_size}x{grid_size} grid"
    )
    if not isinstance(weights, tuple) or len(weights) != 2:
        raise InvalidInputError(
            f"weights is a {type(weights).__qualname__}; it must be an InterpolationWeights"
        )
    num_points = len(pixel_indices)
    sizes = (num_centers, grid_size, output_size)
    is_taken = np.zeros(grid_size**2, bool)
    is_taken[pixel_indices] = True
    if np.count_nonzero(is_taken) != num_points:
        raise InvalidInputError("pixel_indices has duplicates; each pixel can hold one point")
    if is_device_array(weights[0]):
        return _pooled_on_device(weights, pixel_indices, sizes, backend)
    center_indices = check_indices(
        weights[0], "weights.indices", limit=num_centers, of="the centres", shape=(num_points, 3)
    )
    values = check_float_matrix(weights[1], "weights.weights", num_columns=3)
    if len(values) != num_points:
        raise InvalidInputError(
            f"weights.weights has {len(values)} rows and there are {num_points} pixel_indices; "
            "each point needs one of both"
        )
    pixels, offsets, columns, row_values = POOLED_ROWS_OP.resolve(backend).function(
        center_indices, values, pixel_indices, *sizes
    )
    return PooledRows(SparseRows(offsets, columns, row_values, num_centers), pixels)


def _pooled_on_device(
    weights: InterpolationWeights,
    pixel_indices: NDArray[np.int64],
    sizes: tuple[int, int, int],
    backend: str,
) -> PooledRows:
    implementation = POOLED_ROWS_OP.resolve(backend, device="cuda")
    shape = (len(pixel_indices), 3)
    indices = read_device_array(weights[0], "weights.indices", shape=shape, dtypes=("int64",))
    values = read_device_array(weights[1], "weights.weights", shape=shape, like=indices)
    pixels, offsets, columns, row_values = implementation.function(
        indices, values, pixel_indices, *sizes
    )
    return PooledRows(SparseRows(offsets, columns, row_values, sizes[0]), pixels)


def _read_centers(centers: Any, like: DeviceArray) -> DeviceArray:
    array = read_device_array(centers, "centers", shape=(None, 3), like=like)
    check_rows(array, "centers", minimum=3)
    return array
