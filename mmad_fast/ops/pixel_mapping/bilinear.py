"""Bilinear interpolation of a token grid, as sparse rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.validation import MAX_SIDE, check_indices, check_integer


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
        InvalidInputError: an index outside the pixel grid, or a size not in 1..4096.
    """
    token_grid = check_integer(token_grid, "token_grid", minimum=1, maximum=MAX_SIDE)
    output_size = check_integer(output_size, "output_size", minimum=1, maximum=MAX_SIDE)
    pixels = check_indices(
        pixel_indices, "pixel_indices", limit=output_size**2, of="the pixel grid"
    )
    from mmad_fast import _kernels

    offsets, columns, values = _kernels.bilinear_rows(pixels, token_grid, output_size)
    return SparseRows(offsets, columns, values, token_grid**2)
