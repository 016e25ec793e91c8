"""farthest_point_sampling against every exact peer, in turns in one run.

python bench/peers/farthest_point_sampling.py --data DATA_SET --frames FOLDER [--only uniform]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from clouds import PARTS, clouds
from numpy.typing import NDArray
from peer_rows import (
    Agreement,
    Case,
    Contender,
    DisagreementError,
    RefusalError,
    compare,
    parse_options,
)

from mmad_fast.measure.timing import time_interleaved
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling

NUM_SAMPLES = 1024
GROWTH_POINTS = 50_000
GROWTH_SAMPLES = (128, 256, 512, 2048)  # besides 1024
HEIGHTS = (3, 4, 5, 6, 7, 8, 9)
SWEEP_RUNS = 7
RELATIVE_TIE = 1e-6
MAX_OPEN3D_POINTS = 50_000

Sampler = Callable[[], NDArray]


def agreement(got: NDArray, points: NDArray[np.float32], ours: NDArray[np.int64]) -> Agreement:
    """How a peer's samples agree with ours.

    fpsample's bucket variants do not begin at the start index they are given. They are compared
    with our samples from the point they begin at. Of equally far points a peer may take any, and
    then goes another way; every step of it must still be a farthest point.

    Args:
        got: (G,) indices, or (G, 3) points where a peer returns no indices.

    Raises:
        DisagreementError: not farthest point sampling.
    """
    if got.ndim == 2:
        if np.array_equal(np.unique(got, axis=0), np.unique(points[ours], axis=0)):
            return Agreement("same points")
        raise DisagreementError("another set of points")
    got = got.astype(np.int64)
    own_start, wanted = "", ours
    if got[0] != ours[0]:
        own_start = ", from a first point of its own"
        wanted = farthest_point_sampling(points, len(got), start_index=int(got[0]))
    differing = np.flatnonzero(got != wanted)
    if len(differing) == 0:
        return Agreement(f"same indices{own_start}")
    nearness = farthest_ratio(points, got, from_step=int(differing[0]))
    if nearness < 1 - RELATIVE_TIE:
        raise DisagreementError(
            f"from sample {differing[0]} on a chosen point is only {nearness:.3g} of the largest "
            "distance away"
        )
    return Agreement(f"ties taken otherwise{own_start}", f"from sample {differing[0]}")


def farthest_ratio(
    points: NDArray[np.float32], indices: NDArray[np.int64], *, from_step: int = 1
) -> float:
    """The smallest ratio of a chosen point's distance to the farthest one, 1 if all are exact."""
    columns = [np.ascontiguousarray(axis) for axis in points.T]
    nearest = np.full(len(points), np.inf, np.float32)
    smallest = 1.0
    for step in range(1, len(indices)):
        last = indices[step - 1]
        x, y, z = (axis - axis[last] for axis in columns)
        np.minimum(nearest, x * x + y * y + z * z, out=nearest)
        if step >= from_step and (farthest := nearest.max()) > 0:
            smallest = min(smallest, float(np.sqrt(nearest[indices[step]] / farthest)))
    return smallest


def torch_loop(points: NDArray[np.float32], num_samples: int) -> Sampler:
    """The loop of the published code's torch versions, without their batch axis."""
    import torch

    xyz = torch.from_numpy(points)

    def sample() -> NDArray:
        nearest = torch.full((len(xyz),), torch.inf)
        indices = torch.zeros(num_samples, dtype=torch.int64)
        last = 0
        for step in range(num_samples):
            indices[step] = last
            nearest = torch.minimum(nearest, ((xyz - xyz[last]) ** 2).sum(-1))
            last = int(nearest.argmax())
        return indices.numpy()

    return sample


def open3d_sampler(points: NDArray[np.float32], num_samples: int) -> Sampler:
    from mmad_fast.preprocess.reference import import_open3d

    open3d = import_open3d()
    if len(points) > MAX_OPEN3D_POINTS:
        raise RefusalError(
            f"seconds already at {MAX_OPEN3D_POINTS} points, and its time grows with N"
        )
    cloud = open3d.t.geometry.PointCloud(open3d.core.Tensor.from_numpy(points))
    return lambda: cloud.farthest_point_down_sample(num_samples).point.positions.numpy()


def fpsample_sampler(function: str, *arguments: object) -> Sampler:
    import fpsample

    chosen = getattr(fpsample, function)
    return lambda: chosen(*arguments, start_idx=0)


def best_height(points: NDArray[np.float32], num_samples: int) -> tuple[int | None, str | None]:
    """The height of fpsample's line tree that is fastest here, and the times of all tried."""
    if find_spec("fpsample") is None:
        return None, None
    samplers = {
        str(height): fpsample_sampler("bucket_fps_kdline_sampling", points, num_samples, height)
        for height in HEIGHTS
    }
    latencies = time_interleaved(samplers, num_runs=dict.fromkeys(samplers, SWEEP_RUNS))
    times_ms = {height: float(np.median(values)) for height, values in latencies.items()}
    best = min(times_ms, key=lambda height: times_ms[height])
    tried = ", ".join(f"{height}: {time_ms:.1f}" for height, time_ms in times_ms.items())
    return int(best), f"ms by height: {tried}"


def contenders(points: NDArray[np.float32], num_samples: int) -> list[Contender]:
    height, note = best_height(points, num_samples)
    arguments = (points, num_samples)
    return [
        Contender(
            "mmad-fast", lambda: lambda: farthest_point_sampling(points, num_samples), is_ours=True
        ),
        Contender(
            "fpsample kdline, best height",
            lambda: fpsample_sampler("bucket_fps_kdline_sampling", *arguments, height),
            parameter=f"h={height}",
            note=note,
        ),
        Contender(
            "fpsample kdtree",
            lambda: fpsample_sampler("bucket_fps_kdtree_sampling", *arguments),
        ),
        Contender("fpsample vanilla", lambda: fpsample_sampler("fps_sampling", *arguments)),
        Contender("fpsample npdu", lambda: fpsample_sampler("fps_npdu_sampling", *arguments)),
        Contender(
            "fpsample npdu kdtree",
            lambda: fpsample_sampler("fps_npdu_kdtree_sampling", *arguments),
        ),
        Contender("torch loop", lambda: torch_loop(*arguments)),
        Contender("open3d", lambda: open3d_sampler(*arguments), note="points without indices"),
    ]


def run(
    name: str,
    points: NDArray[np.float32],
    num_samples: int,
    options: argparse.Namespace,
    *,
    only: tuple[str, ...] | None = None,
) -> None:
    ours = farthest_point_sampling(points, num_samples)
    case = Case(
        "farthest_point_sampling",
        name,
        {"N": len(points), "G": num_samples},
        lambda got: agreement(got, points, ours),
    )
    listed = contenders(points, num_samples)
    compare(case, [c for c in listed if only is None or c.name in only], options)


def main() -> None:
    options = parse_options(__doc__, parts=PARTS)
    for name, points in clouds(options):
        run(name, points, NUM_SAMPLES, options)
        if len(points) == GROWTH_POINTS:
            for num_samples in GROWTH_SAMPLES:
                fastest = ("mmad-fast", "fpsample kdline, best height", "fpsample vanilla")
                run(name, points, num_samples, options, only=fastest)


if __name__ == "__main__":
    main()
