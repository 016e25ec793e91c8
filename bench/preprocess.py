"""Times the preprocessing stage by stage, beside the published recipe in the same run.

python bench/preprocess.py [--size 800] [--runs 15] [--published-runs 1] [--threads 2]
python bench/preprocess.py --data DATA_SET     (agreement over a whole set)

One JSON line per row on stdout, a table on stderr. Needs the `dev` extra (open3d). No timing is
printed unless the foregrounds agree.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from mmad_fast.measure.environment import environment
from mmad_fast.measure.timing import Timing
from mmad_fast.preprocess import RECIPES, prepare, segment_foreground
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
from mmad_fast.threads import get_num_threads, set_num_threads

NEEDED_IOU = 0.99
RECIPE = RECIPES["cfm"]


@dataclass(frozen=True)
class Row:
    backend: str
    stage: str
    function: Callable[[], object]


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


def foreground_iou(xyz: NDArray[np.float32]) -> float:
    """Intersection over union of our foreground and the published recipe's."""
    ours = segment_foreground(xyz, RECIPE).states == PIXEL_FOREGROUND
    published = published_foreground(xyz)
    return float((ours & published).sum() / max(1, (ours | published).sum()))


def set_agreement(root: Path) -> Iterator[dict[str, object]]:
    """Per category of a set in the MVTec 3D-AD layout, the agreement over all its scans."""
    from mmad_fast.data import open_dataset

    dataset = open_dataset(root)
    for category in dataset.categories():
        scans = [
            scan
            for split in ("train", "validation", "test")
            for scan in dataset.scans(category, split)
        ]
        ious = [foreground_iou(scan.load().xyz) for scan in scans]
        yield {
            "what": "preprocess foreground",
            "category": category,
            "scans": len(ious),
            "iou_mean": float(np.mean(ious)),
            "iou_min": min(ious),
        }


def published_prepare(scan: Scan) -> None:
    """The published recipe from arrays to network input, without its file access."""
    foreground = published_foreground(scan.xyz)
    xyz = np.where(foreground[..., None], scan.xyz, np.float32(0))
    image = Image.fromarray(scan.rgb).resize((224, 224), Image.Resampling.BICUBIC)
    normalise_rgb(np.asarray(image), RECIPE)
    resize_xyz(xyz, None, square_padding(scan.size), size=224)


def fast_rows(scan: Scan) -> list[Row]:
    """Every stage by itself, then the whole."""
    padding = square_padding(scan.size)
    search = find_background_plane(scan.xyz, RECIPE)
    marked = mark_background(scan.xyz, search, RECIPE)
    states = keep_largest_cluster(scan.xyz, marked, RECIPE)
    image = resize_rgb(scan.rgb, padding, RECIPE, size=224)
    pillow_image = Image.fromarray(scan.rgb)
    size, bicubic = (224, 224), Image.Resampling.BICUBIC
    return [
        Row("cpu", "find plane", lambda: find_background_plane(scan.xyz, RECIPE)),
        Row("cpu", "remove plane", lambda: mark_background(scan.xyz, search, RECIPE)),
        Row("cpu", "clean up", lambda: keep_largest_cluster(scan.xyz, marked, RECIPE)),
        Row("cpu", "resize rgb", lambda: resize_rgb(scan.rgb, padding, RECIPE, size=224)),
        Row("cpu", "normalise rgb", lambda: normalise_rgb(image, RECIPE)),
        Row("cpu", "resize xyz", lambda: resize_xyz(scan.xyz, states, padding, size=224)),
        Row("cpu", "whole (cfm)", lambda: prepare(scan, RECIPE)),
        Row("cpu", "whole (m3dm)", lambda: prepare(scan, RECIPES["m3dm"])),
        Row("pillow", "resize rgb", lambda: pillow_image.resize(size, bicubic)),
    ]


def published_rows(scan: Scan) -> list[Row]:
    """The slow steps of the published recipe, then the whole."""
    off_plane = published_plane_removal(scan.xyz)
    return [
        Row("open3d", "find + remove plane", lambda: published_plane_removal(scan.xyz)),
        Row("open3d", "clean up", lambda: published_clean_up(scan.xyz, off_plane)),
        Row("open3d", "whole (cfm)", lambda: published_prepare(scan)),
    ]


def latencies(function: Callable[[], object], runs: int, *, num_warmup: int = 3) -> list[float]:
    for _ in range(num_warmup):
        function()
    measured = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        measured.append((time.perf_counter() - start) * 1e3)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--published-runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    set_num_threads(options.threads)
    if options.data is not None:
        for record in set_agreement(options.data):
            print(json.dumps(record), flush=True)
        return
    scan = object_on_table(options.size)
    # Ours first: once Open3D is loaded, the threads it keeps slow down what runs after it.
    measured = [(row, latencies(row.function, options.runs)) for row in fast_rows(scan)]
    iou = foreground_iou(scan.xyz)
    if not iou >= NEEDED_IOU:
        raise SystemExit(f"foreground IoU {iou:.4f} is below {NEEDED_IOU}; no timing")
    measured += [
        (row, latencies(row.function, options.published_runs, num_warmup=0))
        for row in published_rows(scan)
    ]
    table = Table("backend", "stage", "min ms", "p50 ms", "p95 ms")
    table.title = f"{scan.name}, foreground IoU {iou:.4f}"
    facts = environment()
    for row, times_ms in measured:
        timing = Timing.from_latencies(times_ms)
        record = {
            "what": "preprocess",
            "backend": row.backend,
            "stage": row.stage,
            "shapes": {"H": options.size, "W": options.size},
            "threads": options.threads,
            "iou": iou,
            "min_ms": min(times_ms),
            **asdict(timing),
            "environment": facts,
        }
        print(json.dumps(record), flush=True)
        figures = (min(times_ms), timing.p50_ms, timing.p95_ms)
        cells = ("–" if value is None else f"{value:.2f}" for value in figures)
        table.add_row(row.backend, row.stage, *cells)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
