"""Rows of the ops' benchmarks: one JSON line each. Imported by the scripts beside it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmad_fast.measure.environment import environment
from mmad_fast.measure.timing import time_calls
from mmad_fast.threads import get_num_threads, set_num_threads

SPIN_S = 0.3
"""Worker threads of a BLAS or OpenMP spin that long for further work, on the cores that the next
backend is timed on."""


def parse_options(
    description: str | None, *, runs: int = 15, **further: int | str
) -> argparse.Namespace:
    """threads, runs, data and further options with their defaults, from the command line; the
    kernels are given these threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--data", type=Path, help="folder with scans (xyz as .tiff) to time, too")
    for name, default in further.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    set_num_threads(options.threads)
    return options


def print_rows(
    what: str,
    functions: Mapping[str, Callable[[], Any]],
    error_of: Callable[[Any], float],
    *,
    shapes: Mapping[str, Any],
    options: argparse.Namespace,
    max_error: float,
    flop: float | None = None,
) -> None:
    """Checks every function's result, then times it and prints its row.

    Args:
        functions: By backend or peer; "reference" and slow peers are timed over three runs.
        error_of: The result's distance from the truth.
        max_error: Above it there is no row but an error.
        flop: Floating point operations of one call, for a row's gflops.
    """
    facts = environment()
    for backend, function in functions.items():
        time.sleep(SPIN_S)
        error = error_of(function())
        if not error <= max_error:
            raise SystemExit(
                f"{what}, {backend}: error {error:g} is above {max_error:g}; no timing"
            )
        is_slow = backend == "reference" or backend.endswith("(slow)")
        timing = time_calls(function, num_warmup=1, num_runs=3 if is_slow else options.runs)
        row = {
            "what": what,
            "backend": backend,
            "shapes": dict(shapes),
            "dtype": "float32",
            "threads": options.threads,
            "p50_ms": timing.p50_ms,
            "p95_ms": timing.p95_ms,
            "p99_ms": timing.p99_ms,
            "runs": timing.runs,
            "gflops": None if flop is None else 1e-6 * flop / timing.p50_ms,
            "max_error": error,
            "environment": facts,
        }
        print(json.dumps(row), flush=True)
