"""k_center_greedy against plain float32 steps of torch and NumPy: distances to the last selected
row, their minimum with those before, the largest.

--features holds bank.npy (M, C) float32, tokens of whole scans as bench/extract_tokens.py writes
them; without it the features are random. A tenth of the rows is selected:
- "gaussian": nothing can be excluded, the worst case;
- "patches": rows like a network's, filled up with one that repeats, as the background of a point
  bank does; the plain steps are the first ones only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ops import case as bench
from ops.bench_farthest_point_sampling import farthest_first, sampling_shortfall
from ops.inputs import Floats, Integers, low_rank_queries_and_bank, queries_and_bank

from mmad_fast.ops.k_center_greedy import k_center_greedy

if TYPE_CHECKING:
    from gpu.device import Device

OP = "k_center_greedy"
PIECES = ("gaussian", "patches")
RUNS, BUDGET_S = 3, 20.0
WIDTH = 334  # what sklearn's johnson_lindenstrauss_min_dim gives for 765,184 rows and eps 0.9
LARGEST_ROWS = 765_184
PLAIN_STEPS = 100
"""Of the plain selection where the whole would take hours."""
NEEDED_FIRST = 25
"""So many of the first rows must be the same; after that plain float32 distances may tie, or
differ, in their last digit, and the selection goes another way."""
NUM_CHECKED_STEPS = 12
PART = 8192


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Selects a tenth of the rows."""
    if options.only == "gaussian":
        rows = np.random.default_rng(0).standard_normal((10_000, WIDTH), np.float32)
        yield case_of("gaussian", rows, 1000, options.threads)
    else:
        if options.features is not None:
            distinct = np.load(options.features / "bank.npy")[:, :WIDTH]
        else:
            distinct = low_rank_queries_and_bank(1, LARGEST_ROWS // 5, WIDTH)[1]
        rows = np.zeros((LARGEST_ROWS, WIDTH), np.float32)
        rows[: len(distinct)] = distinct
        kind = "random, low rank" if options.features is None else "tokens"
        name = f"{kind}, {len(distinct)} of them distinct"
        yield case_of(name, rows, LARGEST_ROWS // 10, options.threads, plain_steps=PLAIN_STEPS)


def case_of(
    name: str, rows: Floats, num_samples: int, num_threads: int, *, plain_steps: int | None = None
) -> bench.Case:
    """Plain steps as far as `plain_steps`; None: to the end."""
    first = k_center_greedy(rows, NEEDED_FIRST)
    num_steps = plain_steps or num_samples
    part = f"takes the first {plain_steps} steps only" if plain_steps else None

    def check(got: Integers) -> bench.Agreement:
        if not np.array_equal(got[:NEEDED_FIRST], first):
            raise bench.DisagreementError("selects other rows from the beginning on")
        return bench.Agreement("same first rows", f"{NEEDED_FIRST} compared")

    def in_torch() -> Callable[[], Integers]:
        torch = bench.with_threads(num_threads)
        tensor = torch.from_numpy(rows)
        return lambda: plain_selection(
            lambda row: torch.linalg.norm(tensor - tensor[row], dim=1), torch.minimum, num_steps
        )

    def in_numpy() -> Integers:
        return plain_selection(
            lambda row: np.linalg.norm(rows - rows[row], axis=1), np.minimum, num_steps
        )

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: lambda: k_center_greedy(rows, num_samples),
        "torch": in_torch,
        "NumPy": lambda: in_numpy,
    }
    return bench.Case(
        OP,
        {"N": len(rows), "D": rows.shape[1], "n": num_samples},
        [one if one.is_ours else replace(one, part=part) for one in bench.contenders(OP, makes)],
        data=name,
        check=check,
    )


def plain_selection(
    distances_to: Callable[[int], Any], minimum: Callable[[Any, Any], Any], num_steps: int
) -> Integers:
    """So many rows, from row 0 on."""
    indices = [0]
    nearest = distances_to(0)
    while len(indices) < num_steps:
        indices.append(int(nearest.argmax()))
        nearest = minimum(nearest, distances_to(indices[-1]))
    return np.array(indices)


def work(
    num_rows: int, num_samples: int, num_channels: int, *, dtype: str = "float32"
) -> bench.Work:
    """Every step but the last reads all rows (they are larger than the caches), measures them
    against the row that was selected, and keeps one float32 distance each; what float64 measures
    again is left out."""
    steps = num_samples - 1
    row_bytes = num_channels * bench.OPERAND_BYTES[dtype] + 2.0 * bench.FLOAT_BYTES
    return bench.Work(
        plain_flop=steps * num_rows * (3.0 * num_channels + 2),
        device_bytes=steps * num_rows * row_bytes + num_samples * bench.INDEX_BYTES,
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for name, size in sizes.coresets.items():
        for dtype in sizes.dtypes:
            if dtype != "bfloat16":
                yield bench.one(gpu_case, name, size, dtype, device)


def gpu_case(name: str, size: tuple[int, int, int], dtype: str, device: Device) -> bench.Case:
    """n rows that cover all others; rows held in `dtype`. The error is `selection_shortfall`."""
    import torch

    num_rows, num_samples, num_channels = size
    rows = device.tensor(queries_and_bank(1, num_rows, num_channels)[1]).to(getattr(torch, dtype))
    exact = bench.host(rows.float())

    return bench.Case(
        OP,
        {"rows": name, "N": num_rows, "n": num_samples, "C": num_channels},
        [
            bench.triton(OP, rows, num_samples),
            bench.baseline("norm of differences", lambda: published_selection(rows, num_samples)),
            bench.baseline("matrix product", lambda: expanded_selection(rows, num_samples)),
        ],
        dtype=dtype,
        work=work(num_rows, num_samples, num_channels, dtype=dtype),
        error_of=lambda selected: selection_shortfall(exact, bench.host(selected), num_samples),
        max_error=bench.TINY_ERROR,
    )


def selection_shortfall(rows: Floats, selected: Integers, num_samples: int) -> float:
    """`sampling_shortfall` of the first steps; of the others that there are num_samples different
    ones."""
    is_wrong = float(len(np.unique(selected)) != num_samples)
    return max(is_wrong, sampling_shortfall(rows, selected[:NUM_CHECKED_STEPS]))


def published_selection(rows: Any, num_samples: int) -> Any:
    """The published loop, but for its waiting for the device: norms of all differences, their
    minimum with those before, the largest. It runs in the rows' type (published: float16)."""
    import torch

    def norms(last: Any) -> Any:
        return torch.linalg.norm(rows - rows.index_select(0, last), dim=1)

    return farthest_first(rows, num_samples, norms)


def expanded_selection(rows: Any, num_samples: int) -> Any:
    """As one writes it to read the rows once per step: |x|^2 - 2 x.c by a product with a vector.
    Loses digits where a row is near the selected one."""
    import torch

    squares = torch.cat([part.float().square().sum(dim=1) for part in rows.split(PART)])

    def expanded(last: Any) -> Any:
        return squares + squares[last] - 2 * (rows @ rows.index_select(0, last)[0]).float()

    return farthest_first(rows, num_samples, expanded)
