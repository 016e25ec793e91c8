"""Which points an output pixel of a pooled feature map averages, as a table for a GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KERNEL_WINDOW = 16
"""Points per window that the kernel takes: 4 x 4, what 3 x 3 smoothing and pooling from 222 to 224
pixels span. Wider ones are cut into several."""


class PixelWindows(NamedTuple):
    """The points under each output pixel that has any.

    Attributes:
        pixel_indices: (P,) int64, row-major on the output grid, ascending.
        points: (P, W) int32 into the points; -1 where the window has none. W is a multiple of
            KERNEL_WINDOW.
        values: (P, W) float32, the share of each in the average; 0 where there is none.
    """

    pixel_indices: NDArray[np.int64]
    points: NDArray[np.int32]
    values: NDArray[np.float32]


def pixel_windows(
    pixel_indices: NDArray[np.int64], grid_size: int, output_size: int
) -> PixelWindows:
    """The windows of `pooled_interpolation_rows`; arguments as there, validated."""
    begin, shares = _axis_windows(grid_size, output_size)
    side = shares.shape[1]
    # Windows may reach beyond the grid, where their shares are 0.
    point_at = np.full((grid_size + side, grid_size + side), -1, np.int32)
    row, column = np.divmod(pixel_indices, grid_size)
    point_at[row, column] = np.arange(len(pixel_indices), dtype=np.int32)
    reached = (shares > 0).astype(np.float32)
    counts = np.zeros((output_size, grid_size + side), np.float32)
    is_point = (point_at >= 0).astype(np.float32)
    for step in range(side):
        counts += reached[:, step, None] * is_point[begin + step]
    totals = np.zeros((output_size, output_size), np.float32)
    for step in range(side):
        totals += reached[None, :, step] * counts[:, begin + step]
    kept = np.flatnonzero(totals)
    row, column = np.divmod(kept, output_size)
    steps = np.arange(side)
    rows, columns = begin[row, None] + steps, begin[column, None] + steps  # (P, side)
    width = -(-(side * side) // KERNEL_WINDOW) * KERNEL_WINDOW
    points = np.full((len(kept), width), -1, np.int32)
    values = np.zeros((len(kept), width), np.float32)
    window = point_at[rows[:, :, None], columns[:, None, :]].reshape(len(kept), side * side)
    share = (shares[row, :, None] * shares[column, None, :]).reshape(window.shape)
    is_used = (window >= 0) & (share > 0)
    points[:, : side * side] = np.where(is_used, window, -1)
    values[:, : side * side] = np.where(is_used, share, 0)
    return PixelWindows(kept, points, values)


def _axis_windows(
    grid_size: int, output_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(output_size,) first grid position, and (output_size, side) the share of it and the next
    ones in an output: 3-mean without padding, then adaptive mean; see README.md."""
    smoothed_size = grid_size - 2
    output = np.arange(output_size)
    begin = output * smoothed_size // output_size
    length = -(-(output + 1) * smoothed_size // output_size) - begin
    shares = np.zeros((output_size, int(length.max()) + 2))
    for step in range(int(length.max())):
        shares[:, step : step + 3] += (step < length)[:, None]
    return begin, shares / (3.0 * length[:, None])
