"""The depth as a picture: holes filled, background taken away, stretched to the map's grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND, PIXEL_MISSING, PIXEL_REMOVED
from mmad_fast.scan import DepthPicture


def draw_depth(
    xyz: NDArray[np.float32], plane_m: float, *, size: int
) -> tuple[DepthPicture, NDArray[np.uint8]]:
    """(the depth picture, (H, W) uint8 pixel states by it; filled holes count as missing).

    Three rounds fill holes with the mean of their measured neighbours, but for those of the first
    row and column; the background is bilinear between the means of the four corners' 2 x 2 pixels;
    the object is what lies further than `plane_m` from it. Not published, whose code gives NaN or
    takes 0 for the depth there: where a corner has no measurement the background is the plane of
    the three others, and without two of them every measured pixel is the object.

    Args:
        xyz: (H, W, 3) float32 metres, finite, C-contiguous, at least 2 x 2; depth 0 means no
            measurement.
        plane_m: Metres from the background's depth.
        size: S, side of the picture in pixels.

    Source: method facts 9.2; csrc/run/depth_picture.h.
    """
    from mmad_fast import _kernels

    picture = np.empty((size, size), np.float32)
    foreground = np.empty((size, size), np.uint8)
    is_object = np.empty(xyz.shape[:2], np.uint8)
    _, has_plane = _kernels.draw_depth(xyz, plane_m, picture, foreground, is_object)
    states = np.where(is_object, PIXEL_FOREGROUND, PIXEL_REMOVED).astype(np.uint8)
    states[xyz[..., 2] == 0] = PIXEL_MISSING
    return DepthPicture(picture, foreground.view(np.bool_), has_plane), states
