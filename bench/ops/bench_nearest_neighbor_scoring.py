"""Times nearest_neighbor_scoring against float32 peers in the same run: one JSON line per row.

python bench/ops/bench_nearest_neighbor_scoring.py [--threads 2] [--runs 9] [--features FOLDER]

FOLDER holds bank.npy (M, C) and queries.npy (Q, C) float32, as bench/extract_tokens.py writes them;
without it, all features are random. How many rows were measured per query goes to the error stream.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.feature_cases import queries_and_bank

from mmad_fast import _kernels
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring

SIZES = [(1, 7651, 768), (784, 7651, 768), (3136, 76_518, 1152)]  # (Q, M, C)
MAX_PAIRS = 10_000_000
"""Largest Q x M for the peers that hold it as a matrix."""

Features = NDArray[np.float32]


def cases(folder: str) -> Iterator[tuple[str, Features, Features]]:
    """What the features are, queries (Q, C) and bank (M, C)."""
    for num_queries, num_rows, num_channels in SIZES:
        rng = np.random.default_rng(0)
        yield (
            "gaussian",
            rng.standard_normal((num_queries, num_channels), np.float32),
            rng.standard_normal((num_rows, num_channels), np.float32),
        )
        if num_rows <= 10_000:
            yield "clusters", *queries_and_bank(num_queries, num_rows, num_channels)
        if folder:
            queries, bank = (np.load(Path(folder) / name) for name in ("queries.npy", "bank.npy"))
            step = len(bank) // num_rows
            yield (
                "tokens",
                queries[:num_queries, :num_channels].copy(),
                bank[: step * num_rows : step, :num_channels].copy(),
            )


def faiss_flat(queries: Features, bank: Features, num_threads: int) -> Callable[[], Features]:
    """Distances (Q,) by faiss. Its OpenBLAS does not know newer processors: with AVX-512 it is told
    the fastest kernels it has, a factor of four against its own choice."""
    if _kernels.best_instruction_set() == _kernels.InstructionSet.AVX512:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    import faiss

    faiss.omp_set_num_threads(num_threads)
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    return lambda: np.sqrt(np.maximum(index.search(queries, 1)[0][:, 0], 0))


def peers(queries: Features, bank: Features, num_threads: int) -> dict[str, Callable[[], Features]]:
    """Distances (Q,) by what one would otherwise call."""

    def numpy_expanded() -> Features:
        squared = (bank**2).sum(1) - 2 * (queries @ bank.T)
        return np.sqrt(np.maximum(squared.min(1) + (queries**2).sum(1), 0))

    functions: dict[str, Callable[[], Features]] = {}
    if find_spec("faiss"):
        functions["faiss flat"] = faiss_flat(queries, bank, num_threads)
    if len(queries) * len(bank) > MAX_PAIRS:
        return functions
    functions["numpy"] = numpy_expanded
    if find_spec("torch"):
        import torch

        torch.set_num_threads(num_threads)
        torch_queries, torch_bank = torch.from_numpy(queries), torch.from_numpy(bank)
        functions["torch.cdist"] = lambda: torch.cdist(torch_queries, torch_bank).min(1)[0].numpy()
    return functions


def report_statistics(name: str, queries: Features, bank: PreparedBank) -> None:
    """Prints how much of the bank a query has to look at."""
    distances, indices = np.empty(len(queries), np.float32), np.empty(len(queries), np.int64)
    found = _kernels.nearest_neighbor_scoring(queries, bank.kernel_bank, distances, indices)
    print(
        f"{name}: {len(queries)} queries, {found.plain_queries} of them without projection; "
        f"per query {found.opened_groups / len(queries):.1f} groups opened, "
        f"{found.measured_rows / len(queries):.1f} rows measured of {len(bank.rows)}",
        file=sys.stderr,
    )


def main() -> None:
    options = parse_options(__doc__, runs=9, features="")
    for name, queries, bank in cases(options.features):
        prepared, half = PreparedBank(bank), PreparedBank(bank.astype(np.float16))
        truth = nearest_neighbor_scoring(queries[:5], bank, backend="reference").distances
        report_statistics(name, queries, prepared)
        print_rows(
            "nearest_neighbor_scoring",
            {
                "cpu": lambda q=queries, b=prepared: nearest_neighbor_scoring(q, b).distances,
                "cpu, bank not prepared": lambda q=queries, b=bank: (
                    nearest_neighbor_scoring(q, b).distances
                ),
                "cpu, float16 bank": lambda q=queries, b=half: (
                    nearest_neighbor_scoring(q, b).distances
                ),
                **peers(queries, bank, options.threads),
            },
            lambda got, expected=truth: float(np.abs(got[: len(expected)] / expected - 1).max()),
            shapes={**dict(zip("QMC", (len(queries), *bank.shape), strict=True)), "data": name},
            options=options,
            max_error=1e-3,
            flop=2 * float(len(queries)) * bank.size,
        )


if __name__ == "__main__":
    main()
