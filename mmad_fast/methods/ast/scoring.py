"""From the squared differences of both networks to the anomaly map and the image score."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmad_fast.preprocess.resizing import bilinear_taps

CUBIC_A = -0.75
"""Of torch's bicubic interpolation."""
DILATION = 8
"""Side of the square that the foreground is dilated with, in pixels of the map's grid."""


def foreground_weights(foreground: NDArray[np.bool_], *, side: int) -> NDArray[np.float32]:
    """(M, M) float32, 0-1: the dilated foreground (S, S), resized bilinearly.

    A pixel is in the dilated foreground if one of 8 x 8 pixels around it is, of which four are in
    front of it and three behind, as in scipy.ndimage.binary_dilation.

    Args:
        foreground: (S, S) bool.
        side: M.

    Source: method facts 9.2.
    """
    dilated = _dilate(_dilate(foreground).T).T.astype(np.float32)
    low, high, weights = bilinear_taps(side, len(foreground))
    rows = dilated[low] * (1 - weights)[:, None] + dilated[high] * weights[:, None]
    return rows[:, low] * (1 - weights) + rows[:, high] * weights


def _dilate(foreground: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Along the first axis."""
    size = len(foreground)
    padded = np.zeros((size + DILATION - 1, foreground.shape[1]), np.bool_)
    # binary_dilation puts the centre of an even side behind its middle.
    padded[DILATION // 2 - 1 : DILATION // 2 - 1 + size] = foreground
    dilated = padded[:size].copy()
    for shift in range(1, DILATION):
        dilated |= padded[shift : shift + size]
    return dilated


def upsample_bicubic(small: NDArray[np.float32], *, size: int) -> NDArray[np.float32]:
    """(S, S) float32: the map (M, M) as torch's interpolate(mode="bicubic", align_corners=False).

    Args:
        small: (M, M) float32, finite.
        size: S.
    """
    matrix = _bicubic_matrix(len(small), size)
    return np.ascontiguousarray(matrix @ small @ matrix.T)


@cache
def _bicubic_matrix(inputs: int, outputs: int) -> NDArray[np.float32]:
    """(outputs, inputs): the weights of the inputs in each output; they sum to 1."""
    matrix = np.zeros((outputs, inputs))
    centers = (np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5
    first = np.floor(centers).astype(int)
    for tap in range(-1, 3):
        weights = _cubic(np.abs(centers - first - tap))
        np.add.at(matrix, (np.arange(outputs), np.clip(first + tap, 0, inputs - 1)), weights)
    rounded = matrix.astype(np.float32)
    rounded.setflags(write=False)
    return rounded


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution at distances of 0 to 2."""
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = ((CUBIC_A * distance - 5 * CUBIC_A) * distance + 8 * CUBIC_A) * distance - 4 * CUBIC_A
    return np.where(distance <= 1, near, far)
