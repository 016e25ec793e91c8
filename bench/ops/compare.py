"""Checks and times the contenders of a case on the CPU, in turns, and writes their rows.

Everybody who can do it is called once; whoever gives another result than ours, is not installed or
refuses becomes a row with the reason; the others are timed in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from ops.case import Case, Contender, DisagreementError, RefusalError, Result
from settings import append_rows

from mmad_fast import _kernels
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.environment import environment
from mmad_fast.measure.timing import Timing, time_interleaved

PEER_PACKAGES = ("fpsample", "pykdtree", "faiss-cpu", "open3d-cpu", "openvino")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
OPENBLAS_CORES = {"AVX512": "SkylakeX", "AVX2": "Haswell"}
WARM_AGAIN_BELOW_MS = 200.0


@dataclass
class _Entry:
    contender: Contender
    agreement: str | None = None
    refusal: str | None = None
    detail: str | None = None
    function: Callable[[], Result] | None = None
    first_ms: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)


def library_environment(num_threads: int) -> dict[str, str]:
    """Environment variables under which every library is at its best with so many threads.

    An OpenBLAS that is older than the CPU (that of faiss's wheel) takes SSE3 where it does not know
    the model: a fifth of the speed.
    """
    variables = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    if core := OPENBLAS_CORES.get(_kernels.best_instruction_set().name):
        variables["OPENBLAS_CORETYPE"] = core
    return variables


def restart_with_threads(num_threads: int) -> None:
    wanted = library_environment(num_threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **wanted})


def peer_environment() -> dict[str, Any]:
    """`environment()` with the versions of the peers too."""
    facts = environment()
    for package in PEER_PACKAGES:
        try:
            facts["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def compare(case: Case, options: argparse.Namespace) -> None:
    """Checks and times the contenders, ours first among them, and appends the case's rows.

    Raises:
        SystemExit: there are peers, and none that is installed gives our result: then nothing is
            timed.
    """
    facts = peer_environment()
    if options.resume and is_measured(case, options, facts["commit"]):
        return
    entries = [_tried(contender, case) for contender in case.contenders]
    timed = {entry.contender.name: entry for entry in entries if entry.function is not None}
    peers = {e.contender.name for e in entries if not (e.contender.is_ours or e.contender.part)}
    if peers and not peers & set(timed):
        reasons = "\n".join(
            f"  {e.contender.name}: {e.refusal}: {e.detail}" for e in entries if e.refusal
        )
        raise SystemExit(
            f"{case.what}, {case.data}, {dict(case.shapes)}: no peer confirms our result, so there "
            f"is no timing (peers: pip install 'mmad-fast[bench]')\n{reasons}"
        )
    latencies = time_interleaved(
        {name: entry.function for name, entry in timed.items() if entry.function},
        num_runs={
            name: _num_runs(entry, options.runs, options.budget_s) for name, entry in timed.items()
        },
    )
    for name, values in latencies.items():
        timed[name].latencies_ms = values
    started = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    rows = [_row(entry, case, options, started, facts) for entry in entries]
    append_rows(options.results, rows)
    _print(case, rows)


def is_measured(case: Case, options: argparse.Namespace, commit: str | None) -> bool:
    """Whether the results hold rows of this case by the same code, threads included."""
    if not options.results.is_file():
        return False
    identity = [case.what, case.data, dict(case.shapes), options.threads, commit]
    with options.results.open(encoding="utf-8") as file:
        return any(_identity(json.loads(line)) == identity for line in file)


def _identity(row: Mapping[str, Any]) -> list[Any]:
    commit = row["environment"]["commit"]
    return [row["what"], row["data"], row["shapes"], row["threads"], commit]


def _tried(contender: Contender, case: Case) -> _Entry:
    """The contender after its first call; with the reason where it refused or gave another result.

    What peers raise is their refusal; ours has no excuse.
    """
    entry = _Entry(contender)
    try:
        function = contender.make()
        result, entry.first_ms = _timed_call(function)
        if contender.part is None:
            agreement = case.agreement(result)
            entry.agreement, entry.detail = agreement.kind, agreement.detail
        del result
        if entry.first_ms < WARM_AGAIN_BELOW_MS:
            entry.first_ms = _timed_call(function)[1]
        entry.function = function
    except DisagreementError as error:
        if contender.is_ours:
            raise SystemExit(f"{case.what}, {contender.name}: {error}; no timing") from error
        entry.refusal, entry.detail = "another result", str(error)
    except (ImportError, RefusalError, MmadFastError, MemoryError, RuntimeError) as error:
        if contender.is_ours:
            raise
        entry.refusal = str(error).strip().split("\n")[0] or type(error).__name__
    return entry


def _timed_call(function: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - start) * 1e3


def _num_runs(entry: _Entry, most: int, budget_s: float) -> int:
    most = min(most, entry.contender.max_runs or most)
    return max(1, min(most, int(budget_s * 1e3 / entry.first_ms)))


def _row(
    entry: _Entry, case: Case, options: argparse.Namespace, started: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    timing = Timing.from_latencies(entry.latencies_ms) if entry.latencies_ms else None
    contender = entry.contender
    gflops = 1e-6 * case.work.flop / timing.p50_ms if case.work.flop and timing else None
    return {
        "what": case.what,
        "backend": contender.name,
        "is_ours": contender.is_ours,
        "part": contender.part,
        "data": case.data,
        "shapes": dict(case.shapes),
        "dtype": case.dtype,
        "threads": options.threads,
        "p50_ms": timing and timing.p50_ms,
        "p95_ms": timing and timing.p95_ms,
        "p99_ms": timing and timing.p99_ms,
        "min_ms": min(entry.latencies_ms, default=None),
        "runs": len(entry.latencies_ms),
        "gflops": gflops,
        "parameter": contender.parameter,
        "agreement": entry.agreement,
        "refusal": entry.refusal,
        "detail": entry.detail,
        "note": contender.note,
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
        "case": started,
        "environment": dict(facts),
    }


def _print(case: Case, rows: Sequence[Mapping[str, Any]]) -> None:
    sizes = " ".join(f"{letter}={size}" for letter, size in case.shapes.items())
    print(f"{case.what}, {case.data}, {sizes}")
    for row in rows:
        if row["refusal"]:
            print(f"  {row['backend']:44s} {row['refusal']}: {row['detail'] or ''}"[:150])
            continue
        remark = "; ".join(filter(None, (row["agreement"], row["detail"], row["note"])))
        print(f"  {row['backend']:44s} {row['p50_ms']:9.2f} ms  x{row['runs']:<3d} {remark}")
    sys.stdout.flush()
