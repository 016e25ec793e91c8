"""Which points an output pixel of a pooled feature map averages, as tables on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

KERNEL_WINDOW = 16
"""Points per window that the kernel takes: 4 x 4, what 3 x 3 smoothing and pooling from 222 to 224
pixels span. Wider ones are cut into several."""


class PixelWindows(NamedTuple):
    """The points under each output pixel that has any.

    Attributes:
        pixel_indices: (P,) int64, row-major on the output grid, ascending; in host memory.
        points: (P, W) int32 into the points; -1 where the window has none. W is a multiple of
            KERNEL_WINDOW.
        shares: (P, W) float32, the share of each in the average.
    """

    pixel_indices: NDArray[np.int64]
    points: torch.Tensor
    shares: torch.Tensor


def pixel_windows(
    pixel_indices: NDArray[np.int64],
    grid_size: int,
    output_size: int,
    *,
    upload: Callable[[NDArray], torch.Tensor],
) -> PixelWindows:
    """The windows of `pooled_interpolation_rows`; the first three arguments as there, validated.

    The host finds out which output pixels have points, so that nobody waits for the device to learn
    how many there are; the device fills the tables in.

    Args:
        upload: Copies an array to the device.
    """
    begin, shares = _axis_windows(grid_size, output_size)
    side = shares.shape[1]
    # Windows may reach beyond the grid, where their shares are 0.
    point_at = np.full((grid_size + side, grid_size + side), -1, np.int32)
    row, column = np.divmod(pixel_indices, grid_size)
    point_at[row, column] = np.arange(len(pixel_indices), dtype=np.int32)
    kept = np.flatnonzero(_is_reached(point_at >= 0, begin, shares > 0))
    points, products = _fill_in(*map(upload, (kept, point_at, begin, shares)))
    return PixelWindows(kept, points, products)


def _is_reached(
    is_point: NDArray[np.bool_], begin: NDArray[np.int64], is_used: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(output_size, output_size): whether a window holds a point; along one axis, then the
    other."""
    for _ in range(2):
        steps = (is_point[begin + step] & used[:, None] for step, used in enumerate(is_used.T))
        is_point = np.logical_or.reduce(list(steps)).T
    return is_point


def _fill_in(
    pixels: torch.Tensor, point_at: torch.Tensor, begin: torch.Tensor, shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """points (P, W) int32 and shares (P, W) float32 of the given output pixels."""
    import torch

    output_size, side = shares.shape
    row, column = pixels // output_size, pixels % output_size
    share = shares[row][:, :, None] * shares[column][:, None, :]  # (P, side, side) float64
    steps = torch.arange(side, device=begin.device)
    rows = (begin[row][:, None] + steps) * point_at.shape[1]
    positions = rows[:, :, None] + (begin[column][:, None] + steps)[:, None, :]
    found = point_at.flatten()[positions].masked_fill_(share == 0, -1)
    width = -(-(side * side) // KERNEL_WINDOW) * KERNEL_WINDOW
    points = found.new_full((len(pixels), width), -1)
    values = share.new_zeros((len(pixels), width)).float()
    points[:, : side * side] = found.flatten(1)
    values[:, : side * side] = share.flatten(1)
    return points, values


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
