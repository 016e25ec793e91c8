"""From a scan to what detectors read. Needs numpy, Pillow and the compiled kernels only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.preprocess.auxiliary import draw_auxiliary
from mmad_fast.preprocess.background_plane import (
    PIXEL_REMOVED,
    PlaneSearch,
    find_background_plane,
    mark_background,
)
from mmad_fast.preprocess.clean_up import keep_largest_cluster
from mmad_fast.preprocess.depth_picture import draw_depth
from mmad_fast.preprocess.normalising import normalise_rgb
from mmad_fast.preprocess.padding import NO_PADDING, Padding, square_padding
from mmad_fast.preprocess.recipes import NO_CLEAN_UP, Recipe
from mmad_fast.preprocess.resizing import resize_mask, resize_rgb, resize_xyz, stretch_mask
from mmad_fast.scan import PreparedScan, Scan

__all__ = [
    "MIN_SCAN_SIDE_PX",
    "NO_CLEAN_UP",
    "Foreground",
    "Recipe",
    "check_resolution",
    "prepare",
    "prepare_ground_truth",
    "segment_foreground",
]

MIN_SCAN_SIDE_PX = 32
"""Shortest side of a scan that a detector is asked about: resized to its grid, fewer pixels would
be thousands of points that nobody measured."""


@dataclass(frozen=True)
class Foreground:
    """Which pixels of a scan are the object.

    Attributes:
        states: (H, W) uint8: 0 not measured, 1 foreground, 2 removed (background_plane.PIXEL_*).
        search: What the search for the background plane found, and if nothing, why.
    """

    states: NDArray[np.uint8]
    search: PlaneSearch


def check_resolution(scan: Scan) -> None:
    """Raises if the scan has too few pixels for a detector.

    Raises:
        InvalidInputError: a side is shorter than 32 pixels.
    """
    height, width = scan.size
    if min(height, width) < MIN_SCAN_SIDE_PX:
        label = f"scan {scan.name!r}" if scan.name else "the scan"
        raise InvalidInputError(
            f"{label} is {height}x{width} pixels; at least {MIN_SCAN_SIDE_PX} a side are needed: "
            "give the sensor's full image"
        )


def prepare(
    scan: Scan, recipe: Recipe, *, rgb_size: int = 224, grid_size: int = 224
) -> PreparedScan:
    """The scan as detectors read it: background removed, square, resized, normalised.

    A scan without any foreground gives a prepared scan of 0 points; what that means is for the
    detector to say.

    Args:
        scan: What the sensor saw.
        recipe: How it is prepared.
        rgb_size: R, side of the RGB network input in pixels.
        grid_size: S, side of the anomaly map's grid in pixels.

    Returns:
        The prepared scan; it shares no memory with `scan`.

    Raises:
        InvalidInputError: rgb_size or grid_size below 1, or the recipe reads a picture of the
            normals and the scan has none.

    Source: method facts 1.2, 1.3, 8.2 and 9.2.
    """
    for name, size in (("rgb_size", rgb_size), ("grid_size", grid_size)):
        _check_size(name, size)
    padding = _padding(scan.size, recipe)
    rgb, states, depth = scan.rgb, None, None
    if recipe.depth_plane_m is not None:
        depth, states = draw_depth(scan.xyz, recipe.depth_plane_m, size=grid_size)
    if recipe.remove_background:
        states = segment_foreground(scan.xyz, recipe).states
        if recipe.rgb_background == "black":
            rgb = rgb * (states != PIXEL_REMOVED)[..., None]
    image = normalise_rgb(resize_rgb(rgb, padding, recipe, size=rgb_size), recipe)
    xyz = resize_xyz(scan.xyz, states, padding, size=grid_size)
    # Of a foreground pixel all three coordinates are non-zero, of the others none.
    pixel_indices = np.flatnonzero(xyz[..., 2])
    points = xyz.reshape(-1, 3)[pixel_indices]
    auxiliary = draw_auxiliary(scan, states, xyz, padding, recipe, size=rgb_size)
    return PreparedScan(
        image, xyz, points, pixel_indices, scan.size, padding, scan.name, depth, auxiliary
    )


def prepare_ground_truth(
    mask: NDArray[np.bool_], recipe: Recipe, *, grid_size: int = 224
) -> NDArray[np.bool_]:
    """(S, S) bool: a defect mask on the grid of the anomaly map.

    Args:
        mask: (H, W) bool, True is anomalous.
        recipe: squaring and rgb_padding are read: the published recipes make ground truth square
            like RGB. Stretched, a pixel is anomalous where an anomalous one has a share in it.
        grid_size: S in pixels.

    Raises:
        InvalidInputError: the mask is not a two-dimensional bool array, or grid_size is below 1.

    Source: method facts 1.3 and 9.2.
    """
    _check_size("grid_size", grid_size)
    if mask.ndim != 2 or mask.dtype != np.bool_ or 0 in mask.shape:
        raise InvalidInputError(
            f"mask is {mask.dtype} of shape {mask.shape}; it must be bool (H, W), True where "
            "anomalous"
        )
    height, width = mask.shape
    if recipe.squaring == "stretching":
        return stretch_mask(mask, size=grid_size)
    return resize_mask(mask, square_padding((height, width)), recipe.rgb_padding, size=grid_size)


def segment_foreground(xyz: NDArray[np.float32], recipe: Recipe) -> Foreground:
    """The object's pixels: measured, off the background plane, of the largest component.

    Without a background plane the clean-up still runs: scans that were cut out before keep stray
    points too.

    Args:
        xyz: (H, W, 3) float32 metres, finite, C-contiguous; a zero coordinate means no measurement.
        recipe: How the plane is found and the rest cleaned up.
    """
    search = find_background_plane(xyz, recipe)
    states = mark_background(xyz, search, recipe)
    return Foreground(keep_largest_cluster(xyz, states, recipe), search)


def _padding(native_size: tuple[int, int], recipe: Recipe) -> Padding:
    return NO_PADDING if recipe.squaring == "stretching" else square_padding(native_size)


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise InvalidInputError(f"{name} is {size}; it must be at least 1 pixel")
