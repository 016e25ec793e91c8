"""RGB as the backbones expect it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.preprocess.recipes import Recipe


def normalise_rgb(rgb: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """(3, R, R) float32, C-contiguous: (rgb / 255 - mean) / std per channel.

    Args:
        rgb: (R, R, 3) uint8, 0-255, C-contiguous.
        recipe: mean and std are read.

    Source: method facts 1.3 (ImageNet normalisation).
    """
    from mmad_fast import _kernels

    normalised = np.empty((3, *rgb.shape[:2]), np.float32)
    _kernels.normalise_rgb(rgb, recipe.mean, recipe.std, normalised)
    return normalised
