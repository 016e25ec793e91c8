"""Interpolation weights and the dense result against every exact peer, in turns in one run. A
search of a peer becomes weights by NumPy, which is part of its time.

python bench/peers/inverse_distance_interpolation.py --data DATA_SET --frames FOLDER [--only dense]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from clouds import PARTS, clouds
from neighbor_search import RELATIVE_TIE, Search, neighbor_agreement, neighbor_searches
from numpy.typing import NDArray
from peer_rows import Agreement, Case, Contender, DisagreementError, compare, parse_options
from scipy.spatial import cKDTree

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    InterpolationWeights,
    inverse_distance_interpolation,
    inverse_distance_weights,
)
from mmad_fast.ops.point_index import PointIndex

NUM_CENTERS = 1024
DENSE_POINTS, DENSE_CHANNELS = 50_000, 1152
MAX_WEIGHT_DIFFERENCE = 1e-4
MAX_FEATURE_DIFFERENCE = 1e-4


def weighted(
    search: Search, points: NDArray[np.float32], centers: NDArray[np.float32]
) -> InterpolationWeights:
    squared, indices = search(centers, points, 3)
    weights = 1 / (squared + 1e-8)
    weights /= weights.sum(axis=1, keepdims=True)
    return InterpolationWeights(indices, weights)


def weights_agreement(
    got: InterpolationWeights,
    ours: InterpolationWeights,
    points: NDArray[np.float32],
    centers: NDArray[np.float32],
) -> Agreement:
    """How a peer's weights agree with ours.

    Raises:
        DisagreementError: other neighbours than equally near ones, or other weights.
    """
    how = neighbor_agreement(got.indices, ours.indices, centers, points)
    difference = float(np.abs(got.weights - ours.weights).max())
    if not difference <= MAX_WEIGHT_DIFFERENCE:
        raise DisagreementError(f"weights differ by {difference:.2g}")
    detail = ", ".join(filter(None, (how.detail, f"weights within {difference:.0e}")))
    return Agreement(how.kind, detail)


def run_weights(
    name: str,
    points: NDArray[np.float32],
    options: argparse.Namespace,
) -> None:
    centers = points[farthest_point_sampling(points, NUM_CENTERS)]
    ours = inverse_distance_weights(points, centers)
    case = Case(
        "inverse_distance_weights",
        name,
        {"N": len(points), "G": NUM_CENTERS},
        lambda got: weights_agreement(got, ours, points, centers),
    )
    searches = neighbor_searches(options.threads)

    def peer(make: Callable[[], Search]) -> Callable[[], InterpolationWeights]:
        search = make()
        return lambda: weighted(search, points, centers)

    def shared_index() -> Callable[[], InterpolationWeights]:
        index = PointIndex(points)
        farthest_point_sampling(points, NUM_CENTERS, index=index)
        return lambda: inverse_distance_weights(points, centers, index=index)

    def query_alone() -> Callable[[], object]:
        search = searches["pykdtree"]()
        return lambda: search(centers, points, 3)

    contenders = [
        Contender(
            "mmad-fast", lambda: lambda: inverse_distance_weights(points, centers), is_ours=True
        ),
        Contender(
            "mmad-fast, shared index",
            shared_index,
            is_ours=True,
            note="index made by the sampling before, not timed",
        ),
        *(Contender(name, lambda make=make: peer(make)) for name, make in searches.items()),
        Contender("pykdtree, no weights", query_alone, part="finds the neighbours only"),
    ]
    compare(case, contenders, options)


def written(shape: tuple[int, int], num_threads: int) -> Callable[[], NDArray[np.float32]]:
    """Writes a new array of this shape once, each thread its rows."""
    pool = ThreadPoolExecutor(num_threads)

    def write() -> NDArray[np.float32]:
        output = np.empty(shape, np.float32)
        list(pool.map(lambda rows: rows.fill(1), np.array_split(output, num_threads)))
        return output

    return write


def torch_dense(
    search: Search,
    features: NDArray[np.float32],
    centers: NDArray[np.float32],
    points: NDArray[np.float32],
) -> Callable[[], NDArray[np.float32]]:
    """The published gather and sum, on the weights of the fastest search."""
    import torch

    tensor = torch.from_numpy(features)

    def interpolate() -> NDArray[np.float32]:
        indices, weights = weighted(search, points, centers)
        chosen = tensor[torch.from_numpy(indices.astype(np.int64))]  # (N, 3, C)
        return (chosen * torch.from_numpy(weights.astype(np.float32))[..., None]).sum(1).numpy()

    return interpolate


def without_ties(points: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) whether the third centre is nearer than the fourth: else any of them is right."""
    distances, _ = cKDTree(centers).query(points, 4)
    return distances[:, 3] - distances[:, 2] > RELATIVE_TIE * distances[:, 3]


def run_dense(name: str, points: NDArray[np.float32], options: argparse.Namespace) -> None:
    centers = points[farthest_point_sampling(points, NUM_CENTERS)]
    features = np.random.default_rng(0).standard_normal((NUM_CENTERS, DENSE_CHANNELS), np.float32)
    ours = inverse_distance_interpolation(features, centers, points)
    is_decided = without_ties(points, centers)

    def agreement(got: NDArray[np.float32]) -> Agreement:
        difference = float(np.abs(got - ours)[is_decided].max())
        if not difference <= MAX_FEATURE_DIFFERENCE * float(np.abs(ours).max()):
            raise DisagreementError(f"features differ by {difference:.2g}")
        num_tied = int(np.count_nonzero(~is_decided))
        detail = f"within {difference:.0e}, apart from {num_tied} points with tied centres"
        return Agreement("same features", detail)

    shape = (len(points), DENSE_CHANNELS)
    case = Case(
        "inverse_distance_interpolation",
        name,
        {"N": len(points), "G": NUM_CENTERS, "C": DENSE_CHANNELS},
        agreement,
    )
    search = neighbor_searches(options.threads)["pykdtree"]
    contenders = [
        Contender(
            "mmad-fast",
            lambda: lambda: inverse_distance_interpolation(features, centers, points),
            is_ours=True,
        ),
        Contender(
            "pykdtree + torch", lambda: torch_dense(search(), features, centers, points), max_runs=5
        ),
        Contender(
            "writing the output",
            lambda: written(shape, options.threads),
            part="lower bound: fills a new array of the output's shape",
        ),
    ]
    compare(case, contenders, options)


def main() -> None:
    options = parse_options(__doc__, parts=(*PARTS, "dense"))
    if options.only != "dense":
        for name, points in clouds(options):
            run_weights(name, points, options)
    if options.only in (None, "dense"):
        options.only = "frame"
        for name, points in clouds(options, sizes=(DENSE_POINTS,)):
            run_dense(name, points, options)


if __name__ == "__main__":
    main()
