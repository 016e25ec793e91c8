"""Times nearest_neighbor_scoring against float32 peers in the same run: one JSON line per row.

python bench/ops/bench_nearest_neighbor_scoring.py [--threads 2] [--runs 9]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.feature_cases import queries_and_bank

from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring

SIZES = [(784, 7651, 768), (784, 1024, 768), (1, 7651, 768)]  # (Q, M, C)


def peers(
    queries: NDArray[np.float32], bank: NDArray[np.float32], num_threads: int
) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """Distances (Q,) by what one would otherwise call."""

    def numpy_expanded() -> NDArray[np.float32]:
        squared = (bank**2).sum(1) - 2 * (queries @ bank.T)
        return np.sqrt(np.maximum(squared.min(1) + (queries**2).sum(1), 0))

    functions: dict[str, Callable[[], NDArray[np.float32]]] = {"numpy": numpy_expanded}
    if find_spec("torch"):
        import torch

        torch.set_num_threads(num_threads)
        torch_queries, torch_bank = torch.from_numpy(queries), torch.from_numpy(bank)
        functions["torch.cdist"] = lambda: torch.cdist(torch_queries, torch_bank).min(1)[0].numpy()
    return functions


def main() -> None:
    options = parse_options(__doc__, runs=9)
    for size in SIZES:
        queries, bank = queries_and_bank(*size)
        prepared = PreparedBank(bank)
        truth = nearest_neighbor_scoring(queries[:20], bank, backend="reference").distances
        print_rows(
            "nearest_neighbor_scoring",
            {
                "cpu": lambda q=queries, b=prepared: nearest_neighbor_scoring(q, b).distances,
                "cpu, bank not prepared": lambda q=queries, b=bank: (
                    nearest_neighbor_scoring(q, b).distances
                ),
                **peers(queries, bank, options.threads),
            },
            lambda got, expected=truth: float(np.abs(got[:20] - expected).max()),
            shapes=dict(zip("QMC", size, strict=True)),
            options=options,
            max_error=1e-4,
            flop=2 * np.prod(size, dtype=float),
        )


if __name__ == "__main__":
    main()
