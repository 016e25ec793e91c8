"""knn_grouping against every exact peer. A search of a peer becomes groups by NumPy, which is part
of its time and also stands by itself."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.clouds import PARTS, Search, clouds, neighbor_agreement, neighbor_searches, sampled_index
from ops.inputs import Floats, Integers, depth_frame

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import KnnGroups, knn_grouping

if TYPE_CHECKING:
    from gpu.device import Device

PIECES = PARTS
NUM_CENTERS = 1024
NUM_NEIGHBORS = (32, 128)
GROWTH_POINTS = 50_000
GROWTH_CENTERS = (128, 256, 512, 2048)  # besides 1024, with the most neighbours
GROWTH_PEERS = ("mmad-fast", "pykdtree", "scipy cKDTree, unbalanced")
MAX_PUBLISHED_BYTES = 1 << 30


def grouped(points: Floats, queries: Floats, indices: NDArray) -> KnnGroups:
    return KnnGroups(indices, points[indices] - queries[:, None])


def search_and_group(
    make: Callable[[], Search], points: Floats, queries: Floats, k: int
) -> Callable[[], KnnGroups]:
    search = make()
    return lambda: grouped(points, queries, search(points, queries, k)[1])


def published_torch(points: Floats, queries: Floats, k: int) -> Callable[[], KnnGroups]:
    """All N x G differences, their norms, topk: as the public code does."""
    import torch

    num_bytes = 12 * len(points) * len(queries)
    if num_bytes > MAX_PUBLISHED_BYTES:
        raise bench.RefusalError(f"the N x G x 3 differences take {num_bytes / 2**30:.1f} GiB")
    xyz, centers = torch.from_numpy(points), torch.from_numpy(queries)

    def group() -> KnnGroups:
        distances = (xyz[:, None] - centers[None]).norm(dim=-1)
        indices = distances.topk(k, dim=0, largest=False).indices.T
        return KnnGroups(indices.numpy(), (xyz[indices] - centers[:, None]).numpy())

    return group


def contenders(
    points: Floats, centers: Integers, k: int, num_threads: int
) -> list[bench.Contender]:
    queries = points[centers]
    indices = knn_grouping(points, centers, k).indices

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: partial(knn_grouping, points, centers, k),
        "mmad-fast, shared index": lambda: partial(
            knn_grouping, points, centers, k, index=sampled_index(points, len(centers))
        ),
        **{
            name: partial(search_and_group, make, points, queries, k)
            for name, make in neighbor_searches(num_threads).items()
        },
        "torch, as published": lambda: published_torch(points, queries, k),
        "NumPy grouping alone": lambda: lambda: grouped(points, queries, indices),
    }
    return bench.contenders("knn_grouping", makes)


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Every cloud, and more numbers of centres of one."""
    for name, points in clouds(options):
        for k in NUM_NEIGHBORS:
            yield case_of(name, points, NUM_CENTERS, k, options)
        if len(points) == GROWTH_POINTS:
            for num_centers in GROWTH_CENTERS:
                yield case_of(
                    name, points, num_centers, max(NUM_NEIGHBORS), options, only=GROWTH_PEERS
                )


def case_of(
    name: str,
    points: Floats,
    num_centers: int,
    k: int,
    options: argparse.Namespace,
    *,
    only: tuple[str, ...] | None = None,
) -> bench.Case:
    centers = farthest_point_sampling(points, num_centers)
    queries = points[centers]
    ours = knn_grouping(points, centers, k).indices
    listed = contenders(points, centers, k, options.threads)
    return bench.Case(
        "knn_grouping",
        {"N": len(points), "G": num_centers, "K": k},
        [c for c in listed if only is None or c.name in only],
        data=name,
        check=lambda got: neighbor_agreement(got.indices, ours, points, queries),
    )


def work(num_points: int, num_groups: int, num_neighbors: int) -> bench.Work:
    """Two passes over all distances of a centre (find the bound of the K nearest, collect them;
    recomputing is cheaper than storing G x N), one comparison each, and a bitonic sort of K."""
    log = math.ceil(math.log2(num_neighbors)) if num_neighbors > 1 else 0
    comparisons = num_neighbors * log * (log + 1) / 4
    return bench.Work(
        plain_flop=num_groups * (2 * num_points * (bench.DISTANCE_FLOP + 1) + comparisons),
        device_bytes=num_points * 3 * bench.FLOAT_BYTES
        + num_groups * bench.INDEX_BYTES
        + num_groups * num_neighbors * (bench.INDEX_BYTES + 3 * bench.FLOAT_BYTES),
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for frame in sizes.frames:
        yield bench.one(gpu_case, *frame, sizes, device)


def gpu_case(side: int, coverage: float, sizes: bench.Sizes, device: Device) -> bench.Case:
    import torch

    points = depth_frame(side, coverage=coverage).points
    center_indices = farthest_point_sampling(points, min(sizes.num_groups, len(points)))
    group_size = min(sizes.group_size, len(points))
    cloud, centers = device.array(points), device.array(center_indices)
    tensor, center_tensor = device.tensor(points), device.tensor(center_indices)

    def in_torch() -> Any:
        chosen = tensor[center_tensor]
        distances = torch.cdist(chosen, tensor, compute_mode="donot_use_mm_for_euclid_dist")
        indices = distances.topk(group_size, dim=1, largest=False).indices
        return indices, tensor[indices] - chosen[:, None]

    backend = bench.public_backend(device, "cuda")
    return bench.Case(
        "knn_grouping",
        {"N": len(points), "G": len(center_indices), "K": group_size},
        [
            bench.ours("cuda", lambda: knn_grouping(cloud, centers, group_size, backend=backend)),
            bench.baseline("cdist and topk", in_torch),
        ],
        work=work(len(points), len(center_indices), group_size),
        error_of=lambda found: grouping_error(points, center_indices, *map(bench.host, found)),
        max_error=bench.TINY_ERROR,
    )


def grouping_error(
    points: Floats, center_indices: Integers, indices: Integers, groups: Floats
) -> float:
    """Largest difference of the distances reached, and of the centred points, relative to the
    largest distance of a group."""
    exact = points.astype(np.float64)
    worst = 0.0
    step = max(1, len(center_indices) // bench.NUM_CHECKED)
    for g in range(0, len(center_indices), step):
        center = exact[center_indices[g]]
        distances = bench.exact_distances(points, points[center_indices[g]])
        nearest = np.sort(distances)[: indices.shape[1]]
        reached = distances[indices[g]]
        scale = max(float(nearest[-1]), np.finfo(np.float32).tiny)
        is_repeated = len(np.unique(indices[g])) < indices.shape[1]
        difference = np.abs(groups[g] - (exact[indices[g]] - center)).max()
        found = max(float(np.abs(reached - nearest).max()), float(difference))
        worst = max(worst, np.inf if is_repeated else found / scale)
    return worst
