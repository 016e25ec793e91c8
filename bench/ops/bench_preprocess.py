"""The preprocessing stage by stage, beside the published recipe. Needs the `dev` extra (open3d).

Nothing is timed unless the foregrounds agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from ops import case as bench
from ops.inputs import Floats
from PIL import Image
from settings import read_toml

from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess import prepare, segment_foreground
from mmad_fast.preprocess.background_plane import (
    PIXEL_FOREGROUND,
    find_background_plane,
    mark_background,
)
from mmad_fast.preprocess.clean_up import keep_largest_cluster
from mmad_fast.preprocess.normalising import normalise_rgb
from mmad_fast.preprocess.padding import square_padding
from mmad_fast.preprocess.reference import (
    published_clean_up,
    published_foreground,
    published_plane_removal,
)
from mmad_fast.preprocess.resizing import resize_rgb, resize_xyz
from mmad_fast.scan import Scan

PIECES = ("stages",)
RUNS, BUDGET_S = 15, 5.0
NEEDED_IOU = 0.99
SIDE = 800
RECIPE = get_recipe(read_toml(bench.FOLDER / "sizes.toml")["recipe"])


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Each stage by itself, then the whole: ours, and the published steps that do the same."""
    scan = object_on_table(SIDE)
    padding = square_padding(scan.size)
    search = find_background_plane(scan.xyz, RECIPE)
    marked = mark_background(scan.xyz, search, RECIPE)
    states = keep_largest_cluster(scan.xyz, marked, RECIPE)
    image = resize_rgb(scan.rgb, padding, RECIPE, size=224)
    off_plane = published_plane_removal(scan.xyz)
    picture, size, bicubic = Image.fromarray(scan.rgb), (224, 224), Image.Resampling.BICUBIC
    stages: dict[str, dict[str, Callable[[], object]]] = {
        "plane": {
            "mmad-fast": lambda: mark_background(
                scan.xyz, find_background_plane(scan.xyz, RECIPE), RECIPE
            ),
            "mmad-fast, search alone": lambda: find_background_plane(scan.xyz, RECIPE),
            "open3d": lambda: published_plane_removal(scan.xyz),
        },
        "clean up": {
            "mmad-fast": lambda: keep_largest_cluster(scan.xyz, marked, RECIPE),
            "open3d": lambda: published_clean_up(scan.xyz, off_plane),
        },
        "resize rgb": {
            "mmad-fast": lambda: resize_rgb(scan.rgb, padding, RECIPE, size=224),
            "pillow": lambda: picture.resize(size, bicubic),
        },
        "normalise rgb": {"mmad-fast": lambda: normalise_rgb(image, RECIPE)},
        "resize xyz": {"mmad-fast": lambda: resize_xyz(scan.xyz, states, padding, size=224)},
        "whole": {
            "mmad-fast": lambda: prepare(scan, RECIPE),
            "open3d": lambda: published_prepare(scan),
        },
    }
    disagreement = 1 - foreground_iou(scan.xyz)
    for stage, functions in stages.items():
        makes = {name: partial(prepared, function) for name, function in functions.items()}
        yield bench.Case(
            "preprocess",
            {"H": SIDE, "W": SIDE, "stage": stage},
            bench.contenders("preprocess", makes),
            data=scan.name,
            error_of=lambda result: disagreement,
            max_error=1 - NEEDED_IOU,
            same="same foreground",
        )


def prepared(function: Callable[[], object]) -> Callable[[], object]:
    """The function: it has nothing to prepare."""
    return function


def object_on_table(size: int) -> Scan:
    """A noisy dome of 5 cm on a table, 0.2 mm per pixel at size 800, a third of the pixels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    pitch = 0.16 / size
    x, y = (columns - size / 2 + 0.25) * pitch, (rows - size / 2 + 0.25) * pitch
    z = 0.46 + 0.02 * x + rng.normal(0, 1e-4, (size, size))
    squared_radius = (x**2 + y**2) / 0.052**2
    dome = squared_radius < 1
    z[dome] -= 0.01 + 0.03 * np.sqrt(1 - squared_radius[dome])
    xyz = np.stack([x, y, z], axis=-1)
    xyz[rng.random((size, size)) < 0.02] = 0
    rgb = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Scan.from_arrays(rgb, xyz, name=f"dome {size}x{size}")


def foreground_iou(xyz: Floats) -> float:
    """Intersection over union of our foreground and the published recipe's."""
    ours = segment_foreground(xyz, RECIPE).states == PIXEL_FOREGROUND
    published = published_foreground(xyz)
    return float((ours & published).sum() / max(1, (ours | published).sum()))


def published_prepare(scan: Scan) -> None:
    """The published recipe from arrays to network input, without its file access."""
    foreground = published_foreground(scan.xyz)
    xyz = np.where(foreground[..., None], scan.xyz, np.float32(0))
    image = Image.fromarray(scan.rgb).resize((224, 224), Image.Resampling.BICUBIC)
    normalise_rgb(np.asarray(image), RECIPE)
    resize_xyz(xyz, None, square_padding(scan.size), size=224)
