"""The clouds on which the geometric ops are timed. Imported by the scripts beside it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from ops.cases import depth_frame

NUM_POINTS = (5_000, 13_000, 50_000, 200_000)
COVERAGE = 0.28


def bench_clouds(data: Path | None) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(name, points (N, 3)) for about each of NUM_POINTS: a procedural depth frame, and a scan of
    `data` where one has as many points."""
    for num_points in NUM_POINTS:
        grid_size = round(math.sqrt(num_points / COVERAGE))
        yield "procedural", depth_frame(grid_size, coverage=COVERAGE).points
        points = None if data is None else scan_of(data, num_points)
        if points is not None:
            yield data.name, points


def scan_of(data: Path, num_points: int) -> NDArray[np.float32] | None:
    """The first points (num_points, 3), row by row, of the first scan below `data` that has as many
    at some pixel stride, the largest that does; None if no scan has."""
    for path in sorted(data.rglob("*.tiff")):
        xyz = tifffile.imread(path)
        for stride in (8, 7, 6, 5, 4, 3, 2, 1):
            pixels = xyz[::stride, ::stride].reshape(-1, 3)
            points = pixels[np.isfinite(pixels).all(axis=1) & pixels.any(axis=1)]
            if len(points) >= num_points:
                return np.ascontiguousarray(points[:num_points], np.float32)
    return None
