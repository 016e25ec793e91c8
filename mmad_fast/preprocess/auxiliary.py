"""Pictures of a scan's geometry as inputs of networks for RGB: depth, surface normals."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.surface_normals import surface_normals
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND
from mmad_fast.preprocess.normalising import normalise_rgb
from mmad_fast.preprocess.padding import NO_PADDING, Padding, pad_image
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.preprocess.resizing import resize_rgb
from mmad_fast.scan import Scan

logger = logging.getLogger("mmad_fast")

NEAREST, FARTHEST = 0.1, 0.9
"""Depth of the object's nearest and farthest point in the picture; 0 off the object."""
MAX_NEIGHBORS = 30
"""Points that a normal is taken from: those of about 3 pixels around, on the map's grid."""
FILLING_ROUNDS = 2


@dataclass(frozen=True)
class OrganisedPoints:
    """Points on a grid of pixels, and which of the pixels are the object.

    Attributes:
        xyz: (H, W, 3) float32 metres; (0, 0, 0) where there is no point.
        is_object: (H, W) uint8: 1 on the object, also in its small holes.
    """

    xyz: NDArray[np.float32]
    is_object: NDArray[np.uint8]


def draw_auxiliary(
    scan: Scan,
    states: NDArray[np.uint8] | None,
    grid: NDArray[np.float32],
    padding: Padding,
    recipe: Recipe,
    *,
    size: int,
) -> NDArray[np.float32] | None:
    """(A, 3, R, R) float32: the pictures that the recipe names, normalised as RGB; None of none.

    The object is what is measured and lies off the plane through the scan's corners, closed by 7 x
    7 pixels. Not published, whose code takes (0, 0, 0) for a point there: where a corner has no
    measurement the plane goes through the three others, and without two of them every measured
    pixel is the object; so it is where they lie on a line. Where the recipe finds the background
    itself, the object is its foreground.

    Args:
        scan: What the sensor saw.
        states: (H, W) uint8 pixel states, of which the foreground is the object; None: what lies
            off the plane.
        grid: (S, S, 3) float32 metres: the points on the anomaly map's grid, all that are measured
            or, with states, the foreground.
        padding: (top, bottom, left, right) pixels that make the scan square.
        recipe: auxiliary, normals_from, sobel_size, depth_axis, plane_removal_m and what RGB is
            resized and normalised by are read.
        size: R in pixels.

    Raises:
        InvalidInputError: the picture of the scan's normals is needed and it has none.

    Source: method facts 8.2 and 8.3; reference.py has TRD's preparation, which this is.
    """
    if not recipe.auxiliary:
        return None
    if not recipe.reads_normals:
        _warn_of_another_axis(grid, recipe.depth_axis)
    if recipe.depth_axis == "y":
        scan, grid = replace(scan, xyz=_seen_along_y(scan.xyz)), _seen_along_y(grid)
    pictures = np.empty((len(recipe.auxiliary), 3, size, size), np.float32)
    for name, picture in zip(recipe.auxiliary, pictures, strict=True):
        if name == "depth":
            points = _nearest_points(scan, states, padding, recipe, size)
            depth = scale_depth(points, NEAREST, FARTHEST)
            _stretch(np.repeat(depth[..., None], 3, axis=-1), recipe, picture)
        elif recipe.normals_from == "images":
            picture[:] = normalise_rgb(
                resize_rgb(_normals_of(scan), padding, recipe, size=size), recipe
            )
        elif recipe.normals_from == "sobel":
            points = _all_points(scan, states, padding, recipe)
            _stretch(sobel_picture(points, recipe.sobel_size), recipe, picture)
        else:
            points = _grid_points(grid, scan.size, states is not None, padding, recipe)
            _stretch(normals_picture(points), recipe, picture)
    return pictures


def scale_depth(points: OrganisedPoints, nearest: float, farthest: float) -> NDArray[np.float32]:
    """(H, W) float32: the object's depth scaled to nearest..farthest, two rounds of holes filled,
    two pixels beyond its rim as well; 0 elsewhere."""
    from mmad_fast import _kernels

    depth = np.empty(points.is_object.shape, np.float32)
    _kernels.scale_depth(points.xyz, points.is_object, nearest, farthest - nearest, depth)
    return depth


def sobel_picture(points: OrganisedPoints, sobel_size: int) -> NDArray[np.float32]:
    """(H, W, 3) float32 in 0-1: normals of the object's scaled depth by a Sobel filter, 0 off it.

    They are of no metric surface: pixels have no size in it and the depth is the object's range.
    """
    from mmad_fast import _kernels

    depth = scale_depth(points, 0.0, 1.0)
    picture = np.empty((*depth.shape, 3), np.float32)
    _kernels.sobel_normals(depth, points.is_object, sobel_size, picture)
    return picture


def normals_picture(points: OrganisedPoints) -> NDArray[np.float32]:
    """(H, W, 3) float32 in 0-1: (n + 1) / 2 of the object's surface normals, 0 off it.

    Their signs are those of the Sobel filter's: away from the camera, so that the third channel is
    largest where the surface faces it. A hole of the object gets the mean of the normals around
    it, as holes of the depth do, in two rounds.
    """
    is_point = (points.is_object != 0) & (points.xyz[..., 2] != 0)
    normals = np.zeros(points.xyz.shape, np.float32)
    normals[is_point] = -surface_normals(points.xyz[is_point], max_neighbors=MAX_NEIGHBORS)
    is_known = is_point.copy()
    for _ in range(FILLING_ROUNDS):
        _fill_normals(normals, is_known, points.is_object)
    picture = (normals + np.float32(1)) * np.float32(0.5)
    picture *= is_known[..., None]
    return picture


def _fill_normals(
    normals: NDArray[np.float32], is_known: NDArray[np.bool_], is_object: NDArray[np.uint8]
) -> None:
    """Gives pixels of the object without a normal the mean direction of those around them."""
    holes = np.argwhere((is_object != 0) & ~is_known)
    rows, columns = (
        holes[:, axis, None] + offsets
        for axis, offsets in enumerate(np.indices((3, 3)).reshape(2, -1))
    )
    around = np.pad(normals, ((1, 1), (1, 1), (0, 0)))[rows, columns]  # (holes, 9, 3)
    sums = around.sum(axis=1)
    lengths = np.linalg.norm(sums, axis=-1)
    is_filled = lengths > 0
    at = tuple(holes[is_filled].T)
    normals[at] = sums[is_filled] / lengths[is_filled, None]
    is_known[at] = True


def _seen_along_y(xyz: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (x, -depth, height) in the frame of the camera, (x, height, depth)."""
    turned = xyz[..., [0, 2, 1]]
    np.negative(turned[..., 2], out=turned[..., 2])
    return np.ascontiguousarray(turned)


def _warn_of_another_axis(grid: NDArray[np.float32], depth_axis: str) -> None:
    """Logs once where the points lie along another axis than the one that is said to be depth."""
    _, y, z = np.abs(grid.mean(axis=(0, 1), dtype=np.float64))
    if min(y, z) * 2 < max(y, z) and (y > z) != (depth_axis == "y"):
        _warn_once(depth_axis)


@cache
def _warn_once(depth_axis: str) -> None:
    other = "z" if depth_axis == "y" else "y"
    logger.warning(
        "depth_axis is %r, and the points lie along %s: the pictures of their depth and normals "
        "show something else; fit with depth_axis=%r if the camera looks along %s (Eyecandies: y)",
        depth_axis, other, other, other,
    )  # fmt: skip


def _normals_of(scan: Scan) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the picture of the scan's normals.

    Raises:
        InvalidInputError: it has none.
    """
    if scan.normals is None:
        label = f"scan {scan.name!r}" if scan.name else "the scan"
        raise InvalidInputError(
            f"{label} has no picture of its surface normals, which normals_from='images' reads: "
            "pass it as normals=, or let it lie as a PNG of the scan's name in a folder normals "
            "beside rgb (ScanFile.load(with_normals=True)); or fit with normals_from='points'"
        )
    return scan.normals


def _all_points(
    scan: Scan, states: NDArray[np.uint8] | None, padding: Padding, recipe: Recipe
) -> OrganisedPoints:
    """At the sensor's resolution, padded."""
    xyz = np.ascontiguousarray(pad_image(scan.xyz, padding, "zero"))
    if states is not None:
        states = pad_image(states, padding, "zero")
    return _with_object(xyz, states, padding, recipe)


def _nearest_points(
    scan: Scan, states: NDArray[np.uint8] | None, padding: Padding, recipe: Recipe, size: int
) -> OrganisedPoints:
    """The padded scan's nearest ones on the picture's pixels, as OpenCV takes them."""
    rows, columns = _nearest_indices(scan.size, padding, size)
    border = _border(rows, scan.size[0]) + _border(columns, scan.size[1])
    xyz = _taken(scan.xyz, rows, columns)
    return _with_object(
        xyz, None if states is None else _taken(states, rows, columns), border, recipe
    )


def _grid_points(
    grid: NDArray[np.float32],
    native_size: tuple[int, int],
    is_foreground: bool,
    padding: Padding,
    recipe: Recipe,
) -> OrganisedPoints:
    """On the anomaly map's grid."""
    if is_foreground:
        states = (grid[..., 2] != 0).view(np.uint8) * np.uint8(PIXEL_FOREGROUND)
        return _with_object(grid, states, NO_PADDING, recipe)
    rows, columns = _nearest_indices(native_size, padding, len(grid))
    border = _border(rows, native_size[0]) + _border(columns, native_size[1])
    return _with_object(grid, None, border, recipe)


def _with_object(
    xyz: NDArray[np.float32], states: NDArray[np.uint8] | None, padding: Padding, recipe: Recipe
) -> OrganisedPoints:
    from mmad_fast import _kernels

    if states is None:
        is_object = np.empty(xyz.shape[:2], np.uint8)
        _kernels.mark_object(xyz, padding, recipe.plane_removal_m, is_object)
    else:
        is_object = (states == PIXEL_FOREGROUND).view(np.uint8)
        _kernels.close_mask(is_object)
    return OrganisedPoints(xyz, is_object)


def _nearest_indices(
    native_size: tuple[int, int], padding: Padding, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows, columns), (size,) each: the scan's pixel that each pixel of a picture of the padded
    scan is nearest to; -1 or at least the scan's height or width where that is in the border."""
    top, bottom, left, right = padding
    height, width = native_size
    found = []
    for before, length, after in ((top, height, bottom), (left, width, right)):
        padded = before + length + after
        scale = 1.0 / (size / padded)  # OpenCV's order, which decides where a pixel begins
        indices = np.minimum((np.arange(size) * scale).astype(np.int64), padded - 1)
        found.append(np.maximum(indices - before, -1))
    return found[0], found[1]


def _border(indices: NDArray[np.int64], length: int) -> tuple[int, int]:
    """How many of the indices lie before and after those of the scan."""
    return int((indices < 0).sum()), int((indices >= length).sum())


def _taken(image: NDArray, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray:
    """The image at rows and columns, 0 where these lie outside of it."""
    height, width = image.shape[:2]
    taken = image.take(rows.clip(0, height - 1), axis=0).take(columns.clip(0, width - 1), axis=1)
    taken[(rows < 0) | (rows >= height)] = 0
    taken[:, (columns < 0) | (columns >= width)] = 0
    return taken


def _stretch(image: NDArray[np.float32], recipe: Recipe, picture: NDArray[np.float32]) -> None:
    """Writes an image (H, W, 3) in 0-1 to a picture (3, R, R): resized bilinearly, normalised."""
    from mmad_fast import _kernels

    mean, std = np.array(recipe.mean), np.array(recipe.std)
    _kernels.stretch_picture(image, tuple(1 / std), tuple(-mean / std), picture)
