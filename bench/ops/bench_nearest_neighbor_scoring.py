"""nearest_neighbor_scoring against every exact peer. Everybody gets the bank beforehand, as a
detector does when it is loaded.

--features holds bank.npy (M, C) and queries.npy (Q, C) float32: patch features of nominal scans and
of another scan, as bench/extract_tokens.py writes them. The cases are cut out of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.inputs import Floats, queries_and_bank

from mmad_fast.ops.nearest_neighbor_scoring import (
    NearestNeighbors,
    PreparedBank,
    nearest_neighbor_scoring,
)

if TYPE_CHECKING:
    from gpu.device import Device

OP = "nearest_neighbor_scoring"
PIECES = ("random-small", "random-large", "random-growth")
FEATURE_PIECES = ("features-small", "features-large", "features-growth")
RUNS, BUDGET_S = 5, 8.5
SMALL, LARGE = (7_651, 768), (76_518, 1152)  # (M, C): banks of RGB and of point features
NUM_QUERIES = (784, 3136)
GROWTH_ROWS = (9_565, 19_130, 38_259)  # an eighth, a quarter, a half of the large bank
MAX_SQUARED_ERROR = 1e-5
"""Of |q|^2 + |b|^2: what the expanded form loses in float32 sums of a thousand terms."""
MAX_TREE_MULTIPLICATIONS = 5e9
NUM_CHECKED_QUERIES = 8
MAX_MATRIX_BYTES = 8 << 30

Score = Callable[[], tuple[NDArray, NDArray]]
"""Distances (Q,) and indices (Q,)."""


def agreement(
    got: tuple[NDArray, NDArray], ours: NearestNeighbors, queries: Floats, bank: Floats
) -> bench.Agreement:
    """How distances and indices agree with ours; peers that use the expanded form round.

    Raises:
        bench.DisagreementError: a distance differs by more than float32 explains.
    """
    distances, indices = got
    squared_norms = np.einsum("qc,qc->q", queries, queries, dtype=np.float64)
    chosen = bank[ours.indices]
    scale = squared_norms + np.einsum("qc,qc->q", chosen, chosen, dtype=np.float64)
    squared = np.asarray(distances, np.float64) ** 2
    error = float((np.abs(squared - ours.distances.astype(np.float64) ** 2) / scale).max())
    if not error <= MAX_SQUARED_ERROR:
        raise bench.DisagreementError(f"a squared distance differs by {error:.2g} of |q|^2 + |b|^2")
    num_same = int(np.count_nonzero(np.asarray(indices) == ours.indices))
    off = float((np.abs(distances - ours.distances) / np.maximum(ours.distances, 1e-12)).max())
    kind = "same indices" if num_same == len(queries) else "same distances within float32"
    detail = f"{num_same} of {len(queries)} indices the same, distances within {off:.0e}"
    return bench.Agreement(kind, detail)


def faiss_flat(queries: Floats, bank: Floats) -> Score:
    import faiss

    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)

    def score() -> tuple[NDArray, NDArray]:
        squared, indices = index.search(queries, 1)
        return np.sqrt(squared[:, 0]), indices[:, 0]

    return score


def torch_cdist(queries: Floats, bank: Floats) -> Score:
    """As the published codes do."""
    import torch

    torch_queries, torch_bank = torch.from_numpy(queries), torch.from_numpy(bank)

    def score() -> tuple[NDArray, NDArray]:
        distances, indices = torch.cdist(torch_queries, torch_bank).min(dim=1)
        return distances.numpy(), indices.numpy()

    return score


def sklearn_argmin(queries: Floats, bank: Floats) -> Score:
    from sklearn.metrics import pairwise_distances_argmin_min

    return lambda: pairwise_distances_argmin_min(queries, bank)[::-1]


def sklearn_neighbors(queries: Floats, bank: Floats, algorithm: str, num_threads: int) -> Score:
    from sklearn.neighbors import NearestNeighbors as Index

    if algorithm != "brute":
        _refuse_large(queries, bank)
    elif len(bank) > SMALL[0]:
        raise bench.RefusalError("the code behind argmin_min, and as fast: see the small bank")
    index = Index(n_neighbors=1, algorithm=algorithm, n_jobs=num_threads).fit(bank)

    def score() -> tuple[NDArray, NDArray]:
        distances, indices = index.kneighbors(queries)
        return distances[:, 0], indices[:, 0]

    return score


def scipy_tree(queries: Floats, bank: Floats, num_threads: int) -> Score:
    from scipy.spatial import cKDTree

    _refuse_large(queries, bank)
    tree = cKDTree(bank)
    return lambda: tree.query(queries, workers=num_threads)


def _refuse_large(queries: Floats, bank: Floats) -> None:
    if len(queries) * bank.size > MAX_TREE_MULTIPLICATIONS:
        raise bench.RefusalError(
            "timed in the smallest case only: in so many dimensions a k-d tree visits nearly all "
            "rows"
        )


def contenders(queries: Floats, bank: Floats, num_threads: int) -> list[bench.Contender]:
    arrays = (queries, bank)

    def ours(dtype: type = np.float32) -> Callable[[], NearestNeighbors]:
        prepared = PreparedBank(bank.astype(dtype, copy=False))
        return lambda: nearest_neighbor_scoring(queries, prepared)

    makes: dict[str, bench.Make] = {
        "mmad-fast": ours,
        "mmad-fast, float16 bank": lambda: ours(np.float16),
        "faiss flat": lambda: faiss_flat(*arrays),
        "torch.cdist + min": lambda: torch_cdist(*arrays),
        "scikit-learn argmin_min": lambda: sklearn_argmin(*arrays),
        "scikit-learn brute": lambda: sklearn_neighbors(*arrays, "brute", num_threads),
        "scikit-learn kd_tree": lambda: sklearn_neighbors(*arrays, "kd_tree", num_threads),
        "scipy cKDTree": lambda: scipy_tree(*arrays, num_threads),
    }
    return bench.contenders(OP, makes)


def case_of(
    data: str,
    queries: Floats,
    bank: Floats,
    options: argparse.Namespace,
    *,
    only: tuple[str, ...] | None = None,
) -> bench.Case:
    ours = nearest_neighbor_scoring(queries, bank)
    listed = contenders(queries, bank, options.threads)
    return bench.Case(
        OP,
        {"Q": len(queries), "M": len(bank), "C": bank.shape[1]},
        [c for c in listed if only is None or c.name in only],
        data=data,
        work=bench.Work(matrix_flop=2.0 * len(queries) * bank.size),
        check=lambda got: agreement(got, ours, queries, bank),
    )


def arrays_of(features: Path | None, num_rows: int, num_channels: int) -> tuple[Floats, Floats]:
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
    return (evenly(queries, max(NUM_QUERIES), num_channels), evenly(bank, num_rows, num_channels))


def evenly(rows: Floats, num_rows: int, num_channels: int) -> Floats:
    chosen = np.linspace(0, len(rows) - 1, num_rows).astype(np.int64)
    return np.ascontiguousarray(rows[chosen, :num_channels], dtype=np.float32)


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Small and large banks, and the large one growing: random, and cut out of the features."""
    for data, folder in (("random", None), ("features", options.features)):
        for part, (num_rows, num_channels) in {"small": SMALL, "large": LARGE}.items():
            if options.only == f"{data}-{part}":
                queries, bank = arrays_of(folder, num_rows, num_channels)
                for num_queries in NUM_QUERIES:
                    yield case_of(data, evenly(queries, num_queries, num_channels), bank, options)
        if options.only == f"{data}-growth":
            for num_rows in GROWTH_ROWS:
                queries, bank = arrays_of(folder, num_rows, LARGE[1])
                few = evenly(queries, min(NUM_QUERIES), LARGE[1])
                yield case_of(data, few, bank, options, only=("mmad-fast", "faiss flat"))


def work(
    num_queries: int, num_rows: int, num_channels: int, *, dtype: str = "float32"
) -> bench.Work:
    """The product of queries and bank, a norm and a comparison per pair, and the winners measured
    again in float32. The bank comes from device memory once."""
    return bench.Work(
        matrix_flop=2.0 * num_queries * num_rows * num_channels,
        plain_flop=3.0 * num_queries * num_rows + 3.0 * num_queries * num_channels,
        device_bytes=num_rows * num_channels * bench.OPERAND_BYTES[dtype]
        + num_rows * bench.FLOAT_BYTES
        + 2 * num_queries * num_channels * bench.FLOAT_BYTES
        + 2 * num_queries * (bench.INDEX_BYTES + bench.FLOAT_BYTES),
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for name, size in sizes.banks.items():
        for dtype in sizes.dtypes:
            yield bench.one(gpu_case, name, size, dtype, device)


def gpu_case(name: str, size: tuple[int, int, int], dtype: str, device: Device) -> bench.Case:
    """Distance of every query to its nearest bank row; the bank held in `dtype`."""
    num_queries, num_rows, num_channels = size
    queries, bank = queries_and_bank(*size)
    bank = bench.rounded(bank, dtype)
    chosen = bench.checked_rows(num_queries, NUM_CHECKED_QUERIES)
    truth = np.empty(len(chosen))
    plain = np.empty(len(chosen))
    norms = (bank * bank).sum(axis=1, dtype=np.float32)
    for at, query in enumerate(queries[chosen]):
        exact = bench.exact_distances(bank, query)
        truth[at] = exact.min()
        nearest = int((norms - 2 * (bank @ bench.rounded(query, dtype))).argmin())
        plain[at] = exact[nearest]
    plain_error = float((np.abs(plain - truth) / truth).max())

    def error_of(found: Any) -> float:
        distances, indices = (bench.host(part)[chosen] for part in found)
        reached = np.linalg.norm(bank[indices].astype(np.float64) - queries[chosen], axis=1)
        wrong = np.maximum(np.abs(reached - truth), np.abs(distances - reached))
        return float((wrong / truth).max())

    import torch

    query_tensor = device.tensor(queries)
    bank_tensor = device.tensor(bank).to(getattr(torch, dtype))

    def triton() -> Callable[[], Any]:
        kernels = bench.kernels_of(OP)
        squared_norms = kernels.squared_norms(bank_tensor)
        return lambda: kernels.nearest_neighbor_scoring(query_tensor, bank_tensor, squared_norms)

    def expanded() -> Any:
        """The smallest |m|^2 - 2 q.m, with the whole matrix in memory."""
        operand = query_tensor.to(bank_tensor.dtype)
        rows_float = bank_tensor.float()
        scores = (rows_float * rows_float).sum(dim=1) - 2 * (operand @ bank_tensor.T).float()
        indices = scores.argmin(dim=1)
        return (query_tensor - rows_float[indices]).norm(dim=1), indices

    listed = [bench.Contender("triton", triton, is_ours=True)]
    if num_queries * num_rows * 12 <= MAX_MATRIX_BYTES:
        if dtype == "float32":
            cdist = partial(torch.cdist, query_tensor, bank_tensor)
            listed.append(bench.baseline("cdist and min", lambda: tuple(cdist().min(dim=1))))
        listed.append(bench.baseline("matrix product and argmin", expanded))
    return bench.Case(
        OP,
        {"bank": name, "Q": num_queries, "M": num_rows, "C": num_channels},
        listed,
        dtype=dtype,
        work=work(*size, dtype=dtype),
        error_of=error_of,
        max_error=2 * plain_error + bench.TINY_ERROR,
    )
