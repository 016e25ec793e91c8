"""knn_grouping against every exact peer, in turns in one run. A search of a peer becomes groups by
NumPy, which is part of its time and also stands by itself.

python bench/peers/knn_grouping.py --data DATA_SET --frames FOLDER [--only uniform]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from clouds import PARTS, clouds
from neighbor_search import Search, neighbor_agreement, neighbor_searches
from numpy.typing import NDArray
from peer_rows import Case, Contender, RefusalError, compare, parse_options

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import KnnGroups, knn_grouping
from mmad_fast.ops.point_index import PointIndex

NUM_CENTERS = 1024
NUM_NEIGHBORS = (32, 128)
GROWTH_POINTS = 50_000
GROWTH_CENTERS = (128, 256, 512, 2048)  # besides 1024, with the most neighbours
GROWTH_PEERS = ("mmad-fast", "pykdtree", "scipy cKDTree, unbalanced")
MAX_PUBLISHED_BYTES = 1 << 30


def grouped(
    points: NDArray[np.float32], queries: NDArray[np.float32], indices: NDArray
) -> KnnGroups:
    return KnnGroups(indices, points[indices] - queries[:, None])


def search_and_group(
    search: Search, points: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> Callable[[], KnnGroups]:
    return lambda: grouped(points, queries, search(points, queries, k)[1])


def published_torch(
    points: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> Callable[[], KnnGroups]:
    """All N x G differences, their norms, topk: as the public code does."""
    import torch

    num_bytes = 12 * len(points) * len(queries)
    if num_bytes > MAX_PUBLISHED_BYTES:
        raise RefusalError(f"the N x G x 3 differences take {num_bytes / 2**30:.1f} GiB")
    xyz, centers = torch.from_numpy(points), torch.from_numpy(queries)

    def group() -> KnnGroups:
        distances = (xyz[:, None] - centers[None]).norm(dim=-1)
        indices = distances.topk(k, dim=0, largest=False).indices.T
        return KnnGroups(indices.numpy(), (xyz[indices] - centers[:, None]).numpy())

    return group


def contenders(
    points: NDArray[np.float32], centers: NDArray[np.int64], k: int, num_threads: int
) -> list[Contender]:
    queries = points[centers]
    indices = knn_grouping(points, centers, k).indices

    def shared_index() -> Callable[[], KnnGroups]:
        index = PointIndex(points)
        farthest_point_sampling(points, len(centers), index=index)
        return lambda: knn_grouping(points, centers, k, index=index)

    return [
        Contender("mmad-fast", lambda: lambda: knn_grouping(points, centers, k), is_ours=True),
        Contender(
            "mmad-fast, shared index",
            shared_index,
            is_ours=True,
            note="index made by the sampling before, not timed",
        ),
        *(
            Contender(name, lambda make=make: search_and_group(make(), points, queries, k))
            for name, make in neighbor_searches(num_threads).items()
        ),
        Contender("torch, as published", lambda: published_torch(points, queries, k)),
        Contender(
            "NumPy grouping alone",
            lambda: lambda: grouped(points, queries, indices),
            part="what every search of a peer gets on top",
        ),
    ]


def run(
    name: str,
    points: NDArray[np.float32],
    num_centers: int,
    k: int,
    options: argparse.Namespace,
    *,
    only: tuple[str, ...] | None = None,
) -> None:
    centers = farthest_point_sampling(points, num_centers)
    queries = points[centers]
    ours = knn_grouping(points, centers, k).indices
    case = Case(
        "knn_grouping",
        name,
        {"N": len(points), "G": num_centers, "K": k},
        lambda got: neighbor_agreement(got.indices, ours, points, queries),
    )
    listed = contenders(points, centers, k, options.threads)
    compare(case, [c for c in listed if only is None or c.name in only], options)


def main() -> None:
    options = parse_options(__doc__, parts=PARTS)
    for name, points in clouds(options):
        for k in NUM_NEIGHBORS:
            run(name, points, NUM_CENTERS, k, options)
        if len(points) == GROWTH_POINTS:
            for num_centers in GROWTH_CENTERS:
                run(name, points, num_centers, max(NUM_NEIGHBORS), options, only=GROWTH_PEERS)


if __name__ == "__main__":
    main()
