"""Point clouds for the comparison with peers: parts, a real depth frame, noise."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from ops.case import FOLDER, is_asked_for
from ops.inputs import Floats, depth_frame, uniform_cloud
from settings import read_toml

from mmad_fast.data import open_dataset
from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess import prepare

PARTS = ("part", "frame", "uniform")
SIZES = (5_000, 13_000, 50_000, 200_000)
SURFACE_SIDE = 640  # of the synthetic frame that stands in: as many points as a real one


def clouds(
    options: argparse.Namespace, *, sizes: tuple[int, ...] = SIZES
) -> Iterator[tuple[str, Floats]]:
    """What it is and points (N, 3) float32 metres, of every size that the data has.

    "part" is the foreground of a prepared scan of --data, "frame" the valid points of a frame of
    --frames, each drawn without replacement and in the order of the pixels. Without the option a
    synthetic surface takes the place, and the name says so.
    """
    sources: dict[str, Callable[[], tuple[str, Floats]]] = {
        "part": lambda: _part(options.data),
        "frame": lambda: _frame(options.frames),
        "uniform": lambda: ("uniform noise", uniform_cloud(max(sizes))),
    }
    for part, source in sources.items():
        if not is_asked_for(options, part):
            continue
        name, points = source()
        for size in sizes:
            if size <= len(points):
                yield name, drawn(points, size)


def drawn(points: Floats, size: int) -> Floats:
    """(size, 3) of the points, without replacement, in their order."""
    kept = np.random.default_rng(0).choice(len(points), size, replace=False)
    return np.ascontiguousarray(points[np.sort(kept)])


def _part(data: Path | None) -> tuple[str, Floats]:
    if data is None:
        return "synthetic part", depth_frame(224, coverage=0.28).points
    dataset = open_dataset(data)
    category = dataset.categories()[0]
    scan = dataset.scans(category, "train")[0].load()
    recipe = get_recipe(read_toml(FOLDER / "sizes.toml")["recipe"])
    return f"{data.resolve().name} {category}", prepare(scan, recipe).points


def _frame(frames: Path | None) -> tuple[str, Floats]:
    if frames is None:
        return "synthetic frame", depth_frame(SURFACE_SIDE, coverage=0.6).points
    file = sorted(frames.glob("*.tif*"))[0]
    xyz = tifffile.imread(file).reshape(-1, 3)
    is_valid = np.isfinite(xyz).all(axis=1) & (xyz != 0).any(axis=1)
    return f"real frame {file.stem}", np.ascontiguousarray(xyz[is_valid], dtype=np.float32)
