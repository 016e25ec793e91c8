"""farthest_point_sampling against every exact peer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.clouds import PARTS, clouds
from ops.inputs import Floats, Integers, depth_frame

from mmad_fast.measure.timing import time_interleaved
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling

if TYPE_CHECKING:
    from gpu.device import Device

PIECES = PARTS
NUM_SAMPLES = 1024
GROWTH_POINTS = 50_000
GROWTH_SAMPLES = (128, 256, 512, 2048)  # besides 1024
KDLINE = "fpsample kdline, best height"
GROWTH_CONTENDERS = ("mmad-fast", KDLINE, "fpsample vanilla")
HEIGHTS = (3, 4, 5, 6, 7, 8, 9)
SWEEP_RUNS = 7
RELATIVE_TIE = 1e-6
MAX_OPEN3D_POINTS = 50_000

Sampler = Callable[[], NDArray]


def agreement(got: NDArray, points: Floats, ours: Integers) -> bench.Agreement:
    """How a peer's samples agree with ours.

    fpsample's bucket variants do not begin at the start index they are given. They are compared
    with our samples from the point they begin at. Of equally far points a peer may take any, and
    then goes another way; every step of it must still be a farthest point.

    Args:
        got: (G,) indices, or (G, 3) points where a peer returns no indices.

    Raises:
        bench.DisagreementError: not farthest point sampling.
    """
    if got.ndim == 2:
        if np.array_equal(np.unique(got, axis=0), np.unique(points[ours], axis=0)):
            return bench.Agreement("same points")
        raise bench.DisagreementError("another set of points")
    got = got.astype(np.int64)
    own_start, wanted = "", ours
    if got[0] != ours[0]:
        own_start = ", from a first point of its own"
        wanted = farthest_point_sampling(points, len(got), start_index=int(got[0]))
    differing = np.flatnonzero(got != wanted)
    if len(differing) == 0:
        return bench.Agreement(f"same indices{own_start}")
    nearness = 1 - sampling_shortfall(points, got, from_step=int(differing[0]))
    if nearness < 1 - RELATIVE_TIE:
        raise bench.DisagreementError(
            f"from sample {differing[0]} on a chosen point is only {nearness:.3g} of the largest "
            "distance away"
        )
    return bench.Agreement(f"ties taken otherwise{own_start}", f"from sample {differing[0]}")


def open3d_sampler(points: Floats, num_samples: int) -> Sampler:
    from mmad_fast.preprocess.reference import import_open3d

    open3d = import_open3d()
    if len(points) > MAX_OPEN3D_POINTS:
        raise bench.RefusalError(
            f"seconds already at {MAX_OPEN3D_POINTS} points, and its time grows with N"
        )
    cloud = open3d.t.geometry.PointCloud(open3d.core.Tensor.from_numpy(points))
    return lambda: cloud.farthest_point_down_sample(num_samples).point.positions.numpy()


def fpsample_sampler(function: str, *arguments: object) -> Sampler:
    import fpsample

    chosen = getattr(fpsample, function)
    return lambda: chosen(*arguments, start_idx=0)


def best_height(points: Floats, num_samples: int) -> tuple[int | None, str | None]:
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


def contenders(points: Floats, num_samples: int) -> list[bench.Contender]:
    height, note = best_height(points, num_samples)
    arguments = (points, num_samples)
    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: lambda: farthest_point_sampling(*arguments),
        KDLINE: lambda: fpsample_sampler("bucket_fps_kdline_sampling", *arguments, height),
        "fpsample kdtree": lambda: fpsample_sampler("bucket_fps_kdtree_sampling", *arguments),
        "fpsample vanilla": lambda: fpsample_sampler("fps_sampling", *arguments),
        "fpsample npdu": lambda: fpsample_sampler("fps_npdu_sampling", *arguments),
        "fpsample npdu kdtree": lambda: fpsample_sampler("fps_npdu_kdtree_sampling", *arguments),
        "torch loop": lambda: torch_loop(*arguments),
        "open3d": lambda: open3d_sampler(*arguments),
    }
    return [
        replace(one, parameter=f"h={height}", note=note) if one.name == KDLINE else one
        for one in bench.contenders("farthest_point_sampling", makes)
    ]


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Every cloud, and more numbers of samples of one."""
    for name, points in clouds(options):
        yield case_of(name, points, NUM_SAMPLES)
        if len(points) == GROWTH_POINTS:
            for num_samples in GROWTH_SAMPLES:
                yield case_of(name, points, num_samples, only=GROWTH_CONTENDERS)


def case_of(
    name: str, points: Floats, num_samples: int, *, only: tuple[str, ...] | None = None
) -> bench.Case:
    ours = farthest_point_sampling(points, num_samples)
    listed = contenders(points, num_samples)
    return bench.Case(
        "farthest_point_sampling",
        {"N": len(points), "G": num_samples},
        [c for c in listed if only is None or c.name in only],
        data=name,
        check=lambda got: agreement(got, points, ours),
    )


def work(num_points: int, num_samples: int) -> bench.Work:
    """Every step measures every point against the last sample, keeps the minimum and looks for the
    largest: pruning, which skips most of it, is left out."""
    return bench.Work(
        plain_flop=num_samples * num_points * (bench.DISTANCE_FLOP + 2),
        device_bytes=num_points * 3 * bench.FLOAT_BYTES + num_samples * bench.INDEX_BYTES,
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for frame in sizes.frames:
        yield bench.one(gpu_case, *frame, sizes, device)


def gpu_case(side: int, coverage: float, sizes: bench.Sizes, device: Device) -> bench.Case:
    points = depth_frame(side, coverage=coverage).points
    num_samples = min(sizes.num_groups, len(points))
    cloud, tensor = device.array(points), device.tensor(points)
    backend = bench.public_backend(device, "cuda")
    return bench.Case(
        "farthest_point_sampling",
        {"N": len(points), "G": num_samples},
        [
            bench.ours(
                "cuda", lambda: farthest_point_sampling(cloud, num_samples, backend=backend)
            ),
            bench.baseline("loop", lambda: torch_sampling(tensor, num_samples)),
        ],
        work=work(len(points), num_samples),
        error_of=lambda indices: sampling_shortfall(points, bench.host(indices)),
        max_error=bench.TINY_ERROR,
    )


def sampling_shortfall(points: Floats, indices: Integers, *, from_step: int = 0) -> float:
    """How much nearer than the farthest point a sample was when it was chosen, at worst, relative
    to the farthest; 0 for an exact sampling whatever its ties. In float64, from a step on; from
    step 0 it must begin at point 0."""
    nearest = np.full(len(points), np.inf)
    worst = float(from_step == 0 and indices[0] != 0)
    for step, (last, chosen) in enumerate(pairwise(indices), start=1):
        nearest = np.minimum(nearest, bench.exact_distances(points, points[last]))
        farthest = nearest.max()
        if step >= from_step and farthest > 0:
            worst = max(worst, float(1 - nearest[chosen] / farthest))
    return worst


def torch_loop(points: Floats, num_samples: int) -> Sampler:
    """The loop of the published code's torch versions, without their batch axis."""
    import torch

    xyz = torch.from_numpy(points)
    return lambda: torch_sampling(xyz, num_samples).numpy()


def torch_sampling(points: Any, num_samples: int) -> Any:
    """`farthest_first` of points (N, 3), by squared distances."""

    def distances(last: Any) -> Any:
        difference = points - points.index_select(0, last)
        return (difference * difference).sum(dim=1)

    return farthest_first(points, num_samples, distances)


def farthest_first(rows: Any, num_samples: int, distances_to: Callable[[Any], Any]) -> Any:
    """The loop that one writes in torch: row 0, then each time the farthest from all before.
    Nothing in it waits for the device.

    Args:
        rows: (N, C) on the device.
        num_samples: G.
        distances_to: The distances (N,) to a row, given its index (1,) int64, or what grows alike.

    Returns:
        (G,) int64 indices.
    """
    import torch

    selected = torch.zeros(num_samples, dtype=torch.int64, device=rows.device)
    last, nearest = selected[:1], None
    for step in range(1, num_samples):
        distances = distances_to(last)
        nearest = distances if nearest is None else torch.minimum(nearest, distances)
        last = nearest.argmax().view(1)
        selected[step : step + 1] = last
    return selected
