"""Wall-clock time of repeated calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmad_fast.errors import InvalidInputError

MIN_RUNS = {95: 20, 99: 100}
"""Calls from which on a percentile is reported: with fewer it would only name the slowest one."""


@dataclass(frozen=True)
class Timing:
    """Latency of single calls, one after the other.

    Attributes:
        p50_ms, p95_ms, p99_ms: Percentiles of the latency, linear between ranks; p95 is None below
            20 calls and p99 below 100.
        mean_ms: Mean latency.
        fps: Calls per second of the whole series, 1000 / mean_ms: what the papers report (the
            average over all test samples), not 1000 / p50_ms, which hides the slow calls.
        runs: Number of calls measured.
    """

    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float
    fps: float
    runs: int

    @classmethod
    def from_latencies(cls, latencies_ms: Sequence[float]) -> Timing:
        """The timing of a series of latencies in milliseconds.

        Raises:
            InvalidInputError: no latencies, or one that is not a positive finite number.
        """
        latencies = np.asarray(latencies_ms, np.float64)
        if latencies.size == 0 or not (np.isfinite(latencies) & (latencies > 0)).all():
            raise InvalidInputError(
                f"got {latencies.size} latencies; at least one is needed, each a positive finite "
                "number of milliseconds"
            )
        p95, p99 = (
            float(np.percentile(latencies, rank)) if latencies.size >= MIN_RUNS[rank] else None
            for rank in (95, 99)
        )
        mean_ms = float(latencies.mean())
        p50 = float(np.median(latencies))
        return cls(p50, p95, p99, mean_ms, 1e3 / mean_ms, int(latencies.size))


def time_interleaved(
    functions: Mapping[str, Callable[[], object]], *, num_runs: Mapping[str, int]
) -> dict[str, list[float]]:
    """The latencies in milliseconds of each function, called in turns.

    A B C A B C ...: a machine that gets slower or faster on the way does so for all of them, so
    their ratios hold where their times do not. A function with fewer runs than the others has its
    turns spread evenly over the rounds. Nothing is warmed up here.

    Args:
        functions: By name; each returns when its work is done.
        num_runs: Of each function, by the same names, >= 1.

    Raises:
        InvalidInputError: other names, or a number of runs below 1.
    """
    if set(num_runs) != set(functions) or any(count < 1 for count in num_runs.values()):
        raise InvalidInputError(
            f"num_runs is {dict(num_runs)}; each of {', '.join(functions)} needs at least 1 run"
        )
    num_rounds = max(num_runs.values(), default=0)
    latencies_ms: dict[str, list[float]] = {name: [] for name in functions}
    for round_index in range(num_rounds):
        for name, function in functions.items():
            if round_index * num_runs[name] % num_rounds < num_runs[name]:
                start = time.perf_counter()
                function()
                latencies_ms[name].append((time.perf_counter() - start) * 1e3)
    return latencies_ms
