"""One procedural scan, from its seed to its arrays."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.scan_file import GOOD, SPLITS, Split
from mmad_fast.data.synthetic.camera import photograph, sample_canvas, sample_view
from mmad_fast.data.synthetic.catalogue import CATALOGUE
from mmad_fast.data.synthetic.defects import MISMATCH, SURFACE_DEFECTS, changed_pixels
from mmad_fast.errors import InvalidInputError

CATEGORIES: tuple[str, ...] = tuple(CATALOGUE)
DEFECTS: tuple[str, ...] = (*SURFACE_DEFECTS, MISMATCH)
MIN_SIZE = 64
_GOLDEN_RATIO_FRACTION = 0.6180339887498949


@dataclass(frozen=True)
class SyntheticScan:
    """A rendered scan and what is wrong with it.

    Attributes:
        rgb: (S, S, 3) uint8.
        xyz: (S, S, 3) float32 metres, camera frame; (0, 0, 0) is missing.
        ground_truth: (S, S) bool, True where the part differs from a nominal one.
        coverage: (S, S) bool, True on the part.
        focal_px: Focal length in pixels; principal point (S / 2, S / 2), pixel centres at +0.5.
    """

    rgb: NDArray[np.uint8]
    xyz: NDArray[np.float32]
    ground_truth: NDArray[np.bool_]
    coverage: NDArray[np.bool_]
    focal_px: float


def render_scan(
    category: str, split: Split, defect: str, index: int, *, size: int = 256, seed: int = 0
) -> SyntheticScan:
    """One procedural scan; it depends on the arguments only, not on which others are rendered.

    Args:
        category: One of CATEGORIES.
        split: "train", "validation" or "test".
        defect: "good" or one of DEFECTS.
        index: Which scan of its folder, from 0; it also sets the defect's severity.
        size: S, the image's side in pixels, at least 64.
        seed: Of the whole data set, not negative.

    Raises:
        InvalidInputError: no such category, split or defect, or a number out of range.
    """
    _check(category, split, defect, index, size, seed)
    kind = CATALOGUE[category]
    key = [seed, zlib.crc32(category.encode()), zlib.crc32(f"{split}/{defect}".encode()), index]
    scene, spoil, sensor = (np.random.default_rng([*key, stream]) for stream in range(3))
    view = sample_view(
        scene, size, view_mm=kind.view_mm, height_mm=kind.height_mm, distance_m=kind.distance_m
    )
    canvas = sample_canvas(scene, view, height_mm=kind.height_mm, turn_degrees=kind.turn_degrees)
    part = kind.sample(scene)
    nominal = surface = kind.draw(part, canvas)
    severity = _severity(index)
    if defect == MISMATCH:
        surface = kind.draw(kind.mismatch(part, spoil, severity), canvas)
    elif defect != GOOD:
        surface = SURFACE_DEFECTS[defect](nominal, canvas, spoil, severity)
    rgb, xyz = photograph(sensor, view, surface)
    return SyntheticScan(
        rgb, xyz, changed_pixels(nominal, surface), nominal.coverage > 0.5, view.focal_px
    )


def _severity(index: int) -> float:
    """0 to 1, spread evenly for any number of scans; index 0 is moderately strong."""
    return (0.55 + index * _GOLDEN_RATIO_FRACTION) % 1.0


def _check(category: str, split: str, defect: str, index: int, size: int, seed: int) -> None:
    for what, given, known in (
        ("category", category, CATEGORIES),
        ("split", split, SPLITS),
        ("defect", defect, (GOOD, *DEFECTS)),
    ):
        if given not in known:
            raise InvalidInputError(
                f"no synthetic {what} {given!r}; choose one of {', '.join(known)}"
            )
    for what, number, least in (("index", index, 0), ("size", size, MIN_SIZE), ("seed", seed, 0)):
        if number < least:
            raise InvalidInputError(f"{what} is {number}; it must be at least {least}")
