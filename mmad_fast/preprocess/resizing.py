"""Between the sensor's pixels and the network's grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmad_fast.errors import InvalidInputError
from mmad_fast.preprocess.padding import Padding, pad_image
from mmad_fast.preprocess.recipes import Recipe


def resize_rgb(
    rgb: NDArray[np.uint8], padding: Padding, recipe: Recipe, *, size: int
) -> NDArray[np.uint8]:
    """(R, R, 3) uint8: the padded image, antialiased, R = size.

    The same bits as Pillow's BICUBIC or BILINEAR, on all threads and without the fourth channel
    that Pillow carries along; bench/ops/bench_preprocess.py times both.

    Args:
        rgb: (H, W, 3) uint8, C-contiguous.
        padding: (top, bottom, left, right) pixels that are added before.
        recipe: rgb_padding and rgb_filter are read.
        size: R in pixels.

    Source: method facts 1.3 and 9.2.
    """
    from mmad_fast import _kernels

    resized = np.empty((size, size, 3), np.uint8)
    _kernels.resize_padded_rgb(
        rgb, padding, recipe.rgb_padding == "edge", resized, recipe.rgb_filter
    )
    return resized


def resize_xyz(
    xyz: NDArray[np.float32], states: NDArray[np.uint8] | None, padding: Padding, *, size: int
) -> NDArray[np.float32]:
    """(S, S, 3) float32 metres: the foreground of the padded scan at its nearest pixels, else 0.

    Only the pixels that are taken are read; the padded scan is never made.

    Args:
        xyz: (H, W, 3) float32 metres, finite, C-contiguous.
        states: (H, W) uint8 pixel states, of which the foreground is taken; None takes all pixels
            with three non-zero coordinates.
        padding: (top, bottom, left, right) pixels that make it square.
        size: S in pixels.

    Source: method facts 1.3 (torch `interpolate(mode="nearest")`).
    """
    from mmad_fast import _kernels

    resized = np.empty((size, size, 3), np.float32)
    known = np.empty(0, np.uint8) if states is None else states
    _kernels.resize_padded_xyz(xyz, known, padding, resized)
    return resized


def resize_mask(
    mask: NDArray[np.bool_], padding: Padding, fill: str, *, size: int
) -> NDArray[np.bool_]:
    """(S, S) bool: the padded mask at the pixels that Pillow's NEAREST takes.

    Args:
        mask: (H, W) bool.
        padding: (top, bottom, left, right) pixels that make it square.
        fill: "edge" or "zero", what the border holds.
        size: S in pixels.

    Source: method facts 1.3. Pillow samples at pixel centres, torch's "nearest" at their corners,
    so ground truth and xyz lie about half an output pixel apart, as in the published evaluations.
    """
    square = pad_image(mask, padding, fill)
    indices = _pillow_nearest_indices(square.shape[0], size)
    return square[np.ix_(indices, indices)]


def stretch_mask(mask: NDArray[np.bool_], *, size: int) -> NDArray[np.bool_]:
    """(S, S) bool: True where a True pixel has a share in the mask (H, W) stretched bilinearly.

    Args:
        mask: (H, W) bool.
        size: S in pixels.

    Source: method facts 9.2 (torch's `interpolate(mode="bilinear")`, then > 0).
    """
    by_row = _any_of_taps(mask, size)  # (S, W)
    return _any_of_taps(by_row.T, size).T


def _any_of_taps(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """(S, W): the mask (H, W) resized along its first axis."""
    low, high, weights = bilinear_taps(size, len(mask))
    return mask[low] & (weights < 1)[:, None] | mask[high] & (weights > 0)[:, None]


def resize_map_to_native(
    anomaly_map: NDArray[np.float32], native_size: tuple[int, int], padding: Padding
) -> NDArray[np.float32]:
    """(H, W) float32: the map (S, S) of the square at the scan's resolution, without border.

    Bilinear with pixel centres aligned, torch's `align_corners=False`.

    Args:
        anomaly_map: (S, S) float32, finite.
        native_size: (H, W) of the scan.
        padding: (top, bottom, left, right) pixels that made it square; all 0 where it was
            stretched.

    Raises:
        InvalidInputError: the map is not square, or size and padding do not make a square.
    """
    (height, width), (top, bottom, left, right) = native_size, padding
    if anomaly_map.ndim != 2 or anomaly_map.shape[0] != anomaly_map.shape[1]:
        raise InvalidInputError(f"map has shape {anomaly_map.shape}; it must be (S, S)")
    sides = (top + height + bottom, left + width + right)
    if any(padding) and sides[0] != sides[1]:
        raise InvalidInputError(
            f"size {height}x{width} with padding {padding} is {sides[0]}x{sides[1]}; it must be "
            "square: pass the native_size and padding of the scan that the map belongs to"
        )
    size = len(anomaly_map)
    rows, columns = slice(top, top + height), slice(left, left + width)
    low, high, weights = bilinear_taps(sides[0], size)
    # Rows first: whole rows are added up, which lie contiguous in memory.
    weight = weights[rows, None]
    by_row = anomaly_map[low[rows]] * (1 - weight) + anomaly_map[high[rows]] * weight  # (H, S)
    low, high, weights = bilinear_taps(sides[1], size)
    weight = weights[columns]
    native = by_row.take(low[columns], axis=1)
    native *= 1 - weight
    upper = by_row.take(high[columns], axis=1)
    upper *= weight
    native += upper
    return native


def _pillow_nearest_indices(input_size: int, output_size: int) -> NDArray[np.int32]:
    """(output_size,) input index of each output pixel: what Pillow makes of a row of indices."""
    row = Image.fromarray(np.arange(input_size, dtype=np.int32)[None])
    return np.asarray(row.resize((output_size, 1), Image.Resampling.NEAREST))[0]


def bilinear_taps(
    output_size: int, input_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Per output pixel the two input indices and the weight of the second; positions are float32,
    as torch's."""
    scale = np.float32(input_size) / np.float32(output_size)
    centers = (np.arange(output_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centers = np.maximum(centers, np.float32(0))
    low = np.minimum(centers.astype(np.int64), input_size - 1)
    high = np.minimum(low + 1, input_size - 1)
    return low, high, centers - low.astype(np.float32)
