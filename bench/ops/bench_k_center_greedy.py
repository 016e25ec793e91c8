"""Times k_center_greedy beside plain float32 steps of torch and NumPy in the same run: one JSON
line per row.

python bench/ops/bench_k_center_greedy.py [--threads 2] [--features FOLDER] [--largest 765184]

FOLDER holds bank.npy (M, C) float32, tokens of whole scans as bench/extract_tokens.py writes them
(--bank-rows 84672 --query-scans 1 for all good scans of rendered3d); without it the features are
random. Three cases, a tenth of the rows each:
- "gaussian": nothing can be excluded, the worst case;
- "tokens": a size where the plain selection ends;
- "patches": tokens interpolated to 56 x 56 patches per scan and projected to 334 channels, filled
  up to --largest rows with one row that repeats, as the background of M3DM's point bank does.
A backend that would take longer than --seconds is stopped after so long; its time is then that of
the measured steps times the number of steps, and the row says so (measured_steps).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import SPIN_S, parse_options
from ops.feature_cases import low_rank_queries_and_bank

from mmad_fast import _kernels
from mmad_fast.measure.environment import environment
from mmad_fast.measure.memory import peak_working_mib
from mmad_fast.ops.k_center_greedy import k_center_greedy
from mmad_fast.ops.k_center_greedy.backends import projection_of

WIDTH = 334  # what sklearn's johnson_lindenstrauss_min_dim gives for 765,184 rows and eps 0.9
TOKEN_GRID, PATCH_GRID = 28, 56
SMALL_ROWS = 19_600
CHECKED_STEPS = 25

Rows = NDArray[np.float32]
Measured = tuple[NDArray[np.int64], float, int]
"""Indices, seconds, steps that were taken."""


def cases(folder: str, largest: int) -> Iterator[tuple[str, Rows, int]]:
    """What the rows are, rows (N, D), and how many to select."""
    yield "gaussian", np.random.default_rng(0).standard_normal((10_000, WIDTH), np.float32), 1000
    if folder:
        bank = np.load(Path(folder) / "bank.npy")
    else:
        bank = low_rank_queries_and_bank(1, 54 * TOKEN_GRID**2, 2 * WIDTH)[1]
    tokens = random_projection(bank)
    del bank
    step = len(tokens) // SMALL_ROWS
    small = tokens[: step * SMALL_ROWS : step].copy()
    yield ("tokens" if folder else "random, low rank"), small, SMALL_ROWS // 10
    patches = interpolated(tokens)
    rows = np.broadcast_to(np.zeros(WIDTH, np.float32), (largest, WIDTH)).copy()
    rows[: min(largest, len(patches))] = patches[:largest]
    distinct = min(largest, len(patches))
    name = "patches" if folder else "random, low rank, interpolated"
    yield f"{name}, {distinct} of them distinct", rows, largest // 10


def random_projection(rows: Rows) -> Rows:
    """(M, WIDTH) float32: sparse random directions, as SparseRandomProjection draws them."""
    rng = np.random.default_rng(0)
    density = 1 / np.sqrt(rows.shape[1])
    signs = rng.choice([-1.0, 1.0], (rows.shape[1], WIDTH))
    directions = signs * (rng.random(signs.shape) < density) / np.sqrt(density * WIDTH)
    return np.ascontiguousarray(rows @ directions.astype(np.float32))


def interpolated(tokens: Rows) -> Rows:
    """(S * 56 * 56, D) float32 of tokens (S * 28 * 28, D): bilinear, edges repeated."""
    grid = tokens.reshape(-1, TOKEN_GRID, TOKEN_GRID, tokens.shape[1])
    at = np.clip((np.arange(PATCH_GRID) + 0.5) * TOKEN_GRID / PATCH_GRID - 0.5, 0, TOKEN_GRID - 1)
    low = np.minimum(at.astype(int), TOKEN_GRID - 2)
    share = (at - low).astype(np.float32)[:, None]
    grid = grid[:, low] * (1 - share[:, None]) + grid[:, low + 1] * share[:, None]
    grid = grid[:, :, low] * (1 - share) + grid[:, :, low + 1] * share
    return np.ascontiguousarray(grid.reshape(-1, tokens.shape[1]))


def run_steps(
    distances_to: Callable[[int], Any],
    minimum: Callable[[Any, Any], Any],
    num_samples: int,
    seconds: float,
) -> Measured:
    """Plain steps from row 0: all distances to the last row, the smaller ones, their argmax."""
    indices = [0]
    begin = time.perf_counter()
    nearest = distances_to(0)
    while len(indices) < num_samples:
        indices.append(int(nearest.argmax()))
        nearest = minimum(nearest, distances_to(indices[-1]))
        if time.perf_counter() - begin > seconds:
            break
    return np.array(indices), time.perf_counter() - begin, len(indices)


def with_torch(rows: Rows, num_samples: int, seconds: float) -> Measured:
    import torch

    torch.set_num_threads(_kernels.num_threads())
    tensor = torch.from_numpy(rows)
    return run_steps(
        lambda row: torch.linalg.norm(tensor - tensor[row], dim=1),
        torch.minimum,
        num_samples,
        seconds,
    )


def with_numpy(rows: Rows, num_samples: int, seconds: float) -> Measured:
    return run_steps(
        lambda row: np.linalg.norm(rows - rows[row], axis=1), np.minimum, num_samples, seconds
    )


def with_cpu(rows: Rows, num_samples: int, _: float) -> Measured:
    begin = time.perf_counter()
    indices = k_center_greedy(rows, num_samples, backend="cpu")
    return indices, time.perf_counter() - begin, len(indices)


def pair_shares(rows: Rows, num_samples: int) -> dict[str, float]:
    """Which share of all pairs of a row and a selected row was looked at, and how."""
    indices = np.empty(num_samples, np.int64)
    statistics = _kernels.k_center_greedy(
        rows, *projection_of(rows, num_samples), 0, indices, lambda num_selected: None
    )
    pairs = len(rows) * statistics.num_selected
    return {
        "bounded_share": statistics.bounded_pairs / pairs,
        "stepped_share": statistics.stepped_pairs / pairs,
        "measured_share": statistics.measured_pairs / pairs,
    }


def measure(
    function: Callable[[Rows, int, float], Measured], rows: Rows, num_samples: int, seconds: float
) -> tuple[float | None, Measured]:
    """Peak working MiB of one call, and what it returned."""
    returned: list[Measured] = []
    memory = peak_working_mib(lambda: returned.append(function(rows, num_samples, seconds)))
    return memory, returned[0]


def print_case(name: str, rows: Rows, num_samples: int, options: Any) -> None:
    """Checks the first indices of every backend, and prints its row.

    Raises:
        SystemExit: two backends select different rows.
    """
    truth = k_center_greedy(rows[:SMALL_ROWS], CHECKED_STEPS, backend="reference")
    if not np.array_equal(k_center_greedy(rows[:SMALL_ROWS], CHECKED_STEPS), truth):
        raise SystemExit(f"{name}: cpu differs from the reference; no timing")
    backends = {"cpu": with_cpu, "numpy": with_numpy}
    if find_spec("torch"):
        backends["torch"] = with_torch
    facts, selected, cpu_seconds = environment(), np.empty(0, np.int64), float("nan")
    for backend, function in backends.items():
        time.sleep(SPIN_S)
        memory, (indices, seconds, steps) = measure(function, rows, num_samples, options.seconds)
        if backend == "cpu":
            selected, cpu_seconds = indices, seconds
        # Plain float32 distances may tie, or differ, in their last digit.
        equal = float((indices == selected[:steps]).mean())
        if equal < 1 and steps <= CHECKED_STEPS:
            raise SystemExit(f"{name}: {backend} selects other rows than cpu; no timing")
        total = seconds * num_samples / steps if steps < len(selected) else seconds
        row = {
            "what": "k_center_greedy",
            "backend": backend,
            "shapes": {"N": len(rows), "D": rows.shape[1], "n": len(selected), "data": name},
            "dtype": "float32",
            "threads": options.threads,
            "seconds": total,
            "measured_steps": steps,
            "is_extrapolated": steps < len(selected),
            "times_cpu": total / cpu_seconds,
            "equal_indices": equal,
            "peak_working_mib": memory,
            **(pair_shares(rows, num_samples) if backend == "cpu" else {}),
            "environment": facts,
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    options = parse_options(__doc__, features="", largest=765_184, seconds=20)
    for name, rows, num_samples in cases(options.features, options.largest):
        print_case(name, rows, num_samples, options)


if __name__ == "__main__":
    main()
