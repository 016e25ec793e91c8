"""nearest_neighbor_scoring against every exact peer, in turns in one run. Everybody gets the bank
beforehand, as a detector does when it is loaded.

python bench/peers/nearest_neighbor_scoring.py [--features FOLDER] [--only features-large]

--features holds bank.npy (M, C) and queries.npy (Q, C) float32: patch features of nominal scans and
of another scan. The cases are cut out of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
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

from mmad_fast.ops.nearest_neighbor_scoring import (
    NearestNeighbors,
    PreparedBank,
    nearest_neighbor_scoring,
)

SMALL, LARGE = (7_651, 768), (76_518, 1152)  # (M, C): the banks of M3DM's RGB and point features
NUM_QUERIES = (784, 3136)
GROWTH_ROWS = (9_565, 19_130, 38_259)  # an eighth, a quarter, a half of the large bank
PARTS = ("random-small", "random-large", "random-growth")
PARTS += ("features-small", "features-large", "features-growth")
MAX_SQUARED_ERROR = 1e-5
"""Of |q|^2 + |b|^2: what the expanded form loses in float32 sums of a thousand terms."""
MAX_TREE_MULTIPLICATIONS = 5e9

Score = Callable[[], tuple[NDArray, NDArray]]
"""Distances (Q,) and indices (Q,)."""


def agreement(
    got: tuple[NDArray, NDArray],
    ours: NearestNeighbors,
    queries: NDArray[np.float32],
    bank: NDArray[np.float32],
) -> Agreement:
    """How distances and indices agree with ours; peers that use the expanded form round.

    Raises:
        DisagreementError: a distance differs by more than float32 explains.
    """
    distances, indices = got
    squared_norms = np.einsum("qc,qc->q", queries, queries, dtype=np.float64)
    chosen = bank[ours.indices]
    scale = squared_norms + np.einsum("qc,qc->q", chosen, chosen, dtype=np.float64)
    squared = np.asarray(distances, np.float64) ** 2
    error = float((np.abs(squared - ours.distances.astype(np.float64) ** 2) / scale).max())
    if not error <= MAX_SQUARED_ERROR:
        raise DisagreementError(f"a squared distance differs by {error:.2g} of |q|^2 + |b|^2")
    num_same = int(np.count_nonzero(np.asarray(indices) == ours.indices))
    off = float((np.abs(distances - ours.distances) / np.maximum(ours.distances, 1e-12)).max())
    kind = "same indices" if num_same == len(queries) else "same distances within float32"
    detail = f"{num_same} of {len(queries)} indices the same, distances within {off:.0e}"
    return Agreement(kind, detail)


def faiss_flat(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> Score:
    import faiss

    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)

    def score() -> tuple[NDArray, NDArray]:
        squared, indices = index.search(queries, 1)
        return np.sqrt(squared[:, 0]), indices[:, 0]

    return score


def torch_cdist(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> Score:
    """As M3DM and PatchCore do."""
    import torch

    torch_queries, torch_bank = torch.from_numpy(queries), torch.from_numpy(bank)

    def score() -> tuple[NDArray, NDArray]:
        distances, indices = torch.cdist(torch_queries, torch_bank).min(dim=1)
        return distances.numpy(), indices.numpy()

    return score


def sklearn_argmin(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> Score:
    from sklearn.metrics import pairwise_distances_argmin_min

    return lambda: pairwise_distances_argmin_min(queries, bank)[::-1]


def sklearn_neighbors(
    queries: NDArray[np.float32], bank: NDArray[np.float32], algorithm: str, num_threads: int
) -> Score:
    from sklearn.neighbors import NearestNeighbors as Index

    if algorithm != "brute":
        _refuse_large(queries, bank)
    elif len(bank) > SMALL[0]:
        raise RefusalError("the code behind argmin_min, and as fast: see the small bank")
    index = Index(n_neighbors=1, algorithm=algorithm, n_jobs=num_threads).fit(bank)

    def score() -> tuple[NDArray, NDArray]:
        distances, indices = index.kneighbors(queries)
        return distances[:, 0], indices[:, 0]

    return score


def scipy_tree(queries: NDArray[np.float32], bank: NDArray[np.float32], num_threads: int) -> Score:
    from scipy.spatial import cKDTree

    _refuse_large(queries, bank)
    tree = cKDTree(bank)
    return lambda: tree.query(queries, workers=num_threads)


def _refuse_large(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> None:
    if len(queries) * bank.size > MAX_TREE_MULTIPLICATIONS:
        raise RefusalError(
            "timed in the smallest case only: in so many dimensions a k-d tree visits nearly all "
            "rows"
        )


def contenders(
    queries: NDArray[np.float32], bank: NDArray[np.float32], num_threads: int
) -> list[Contender]:
    arrays = (queries, bank)

    def ours() -> Callable[[], NearestNeighbors]:
        prepared = PreparedBank(bank)
        return lambda: nearest_neighbor_scoring(queries, prepared)

    return [
        Contender("mmad-fast", ours, is_ours=True),
        Contender(
            "faiss flat",
            lambda: faiss_flat(*arrays),
            note="its OpenBLAS told the CPU's instruction set, which it does not find out itself",
        ),
        Contender("torch.cdist + min", lambda: torch_cdist(*arrays)),
        Contender("scikit-learn argmin_min", lambda: sklearn_argmin(*arrays)),
        Contender("scikit-learn brute", lambda: sklearn_neighbors(*arrays, "brute", num_threads)),
        Contender(
            "scikit-learn kd_tree",
            lambda: sklearn_neighbors(*arrays, "kd_tree", num_threads),
            max_runs=1,
        ),
        Contender("scipy cKDTree", lambda: scipy_tree(*arrays, num_threads), max_runs=1),
    ]


def run(
    data: str,
    queries: NDArray[np.float32],
    bank: NDArray[np.float32],
    options: argparse.Namespace,
    *,
    only: tuple[str, ...] | None = None,
) -> None:
    ours = nearest_neighbor_scoring(queries, bank)
    case = Case(
        "nearest_neighbor_scoring",
        data,
        {"Q": len(queries), "M": len(bank), "C": bank.shape[1]},
        lambda got: agreement(got, ours, queries, bank),
        flop=2.0 * len(queries) * bank.size,
    )
    listed = contenders(queries, bank, options.threads)
    compare(case, [c for c in listed if only is None or c.name in only], options)


def arrays_of(
    features: Path | None, num_rows: int, num_channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries (3136, C) and bank (num_rows, C): evenly spaced rows and the first channels of the
    features; random without them."""
    if features is None:
        rng = np.random.default_rng(0)
        bank = rng.standard_normal((num_rows, num_channels), np.float32)
        return rng.standard_normal((max(NUM_QUERIES), num_channels), np.float32), bank
    bank = np.load(features / "bank.npy", mmap_mode="r")
    queries = np.load(features / "queries.npy", mmap_mode="r")
    if len(bank) < num_rows or bank.shape[1] < num_channels or len(queries) < max(NUM_QUERIES):
        raise SystemExit(
            f"--features has a bank of shape {bank.shape} and queries of shape {queries.shape}; "
            f"at least ({num_rows}, {num_channels}) and ({max(NUM_QUERIES)}, {num_channels}) are "
            "needed"
        )
    return (
        evenly(queries, max(NUM_QUERIES), num_channels),
        evenly(bank, num_rows, num_channels),
    )


def evenly(rows: NDArray[np.float32], num_rows: int, num_channels: int) -> NDArray[np.float32]:
    chosen = np.linspace(0, len(rows) - 1, num_rows).astype(np.int64)
    return np.ascontiguousarray(rows[chosen, :num_channels], dtype=np.float32)


def main() -> None:
    options = parse_options(__doc__, parts=PARTS, runs=5, budget_s=8.5)
    sources = {"random": ("random", None), "features": ("features", options.features)}
    if options.features is None:
        del sources["features"]
    if options.only and options.only.split("-")[0] not in sources:
        raise SystemExit("give the folder of the features with --features")
    for source, (data, folder) in sources.items():
        for part, (num_rows, num_channels) in {"small": SMALL, "large": LARGE}.items():
            if options.only not in (None, f"{source}-{part}"):
                continue
            queries, bank = arrays_of(folder, num_rows, num_channels)
            for num_queries in NUM_QUERIES:
                run(data, evenly(queries, num_queries, num_channels), bank, options)
        if options.only in (None, f"{source}-growth"):
            for num_rows in GROWTH_ROWS:
                queries, bank = arrays_of(folder, num_rows, LARGE[1])
                few = evenly(queries, min(NUM_QUERIES), LARGE[1])
                run(data, few, bank, options, only=("mmad-fast", "faiss flat"))


if __name__ == "__main__":
    main()
