"""RGB as the backbones expect it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.preprocess.recipes import Recipe


def normalise_rgb(rgb: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """(3, R, R) float32, C-contiguous: (rgb / 255 - mean) / std per channel.

    Args:
        rgb: (R, R, 3) uint8, 0-255.
        recipe: mean and std are read.

    Source: method facts 1.3 (ImageNet normalisation).
    """
    normalised = np.empty((3, *rgb.shape[:2]), np.float32)
    for channel in range(3):
        scale = np.float32(1.0 / (255.0 * recipe.std[channel]))
        shift = np.float32(recipe.mean[channel] / recipe.std[channel])
        np.multiply(rgb[..., channel], scale, out=normalised[channel])
        normalised[channel] -= shift
    return normalised
