"""Bilinear interpolation of a token grid, as sparse rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.validation import check_indices, check_integer


def bilinear_rows(
    pixel_indices: NDArray[np.int64], *, token_grid: int, output_size: int = 224
) -> SparseRows:
    """How each pixel's feature is combined from the tokens of a square grid.

    Applied to tokens (token_grid^2, C) in row-major order it gives what
    torch.nn.functional.interpolate(mode="bilinear", align_corners=False) gives at those pixels.

    Args:
        pixel_indices: (P,) integers, row-major index on the output_size x output_size grid.
        token_grid: Side of the token grid.
        output_size: Side of the pixel grid.

    Returns:
        P rows over token_grid^2 columns with 1 to 4 entries each; weights sum to 1. Weights of
        exactly 0 are left out.

    Raises:
        InvalidInputError: an index outside the pixel grid, or a size below 1.
    """
    token_grid = check_integer(token_grid, "token_grid", minimum=1)
    output_size = check_integer(output_size, "output_size", minimum=1)
    pixels = check_indices(
        pixel_indices, "pixel_indices", limit=output_size**2, of="the pixel grid"
    )
    lower, upper, fraction = _axis(token_grid, output_size)
    row, column = np.divmod(pixels, output_size)
    columns = np.stack(
        [
            vertical[row] * token_grid + horizontal[column]
            for vertical in (lower, upper)
            for horizontal in (lower, upper)
        ],
        axis=1,
    )  # (P, 4), ascending
    down, right = fraction[row], fraction[column]
    values = np.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1
    )
    used = values > 0
    offsets = np.zeros(len(pixels) + 1, np.int64)
    np.cumsum(used.sum(axis=1), out=offsets[1:])
    return SparseRows(
        offsets, columns[used].astype(np.int32), values[used].astype(np.float32), token_grid**2
    )


def _axis(
    token_grid: int, output_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(S,) each: lower token, upper token and the upper one's weight along one axis; at the border,
    where both would be the same token, the weight is 0."""
    position = (np.arange(output_size) + 0.5) * (token_grid / output_size) - 0.5
    position = np.clip(position, 0, token_grid - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, token_grid - 1)
    return lower, upper, position - lower
