"""What the scripts beside it share: options, checked and interleaved timing, rows.

A case is one job on one input. Everybody who can do it is called once; whoever gives another result
than ours, is not installed or refuses becomes a row with the reason; the others are timed in turns.
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
from pathlib import Path
from typing import Any

from mmad_fast import _kernels
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.environment import environment
from mmad_fast.measure.timing import Timing, time_interleaved
from mmad_fast.threads import set_num_threads

RESULTS = Path(__file__).parents[1] / "results" / "peers.jsonl"
PEER_PACKAGES = ("fpsample", "pykdtree", "faiss-cpu", "open3d-cpu", "openvino")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
OPENBLAS_CORES = {"AVX512": "SkylakeX", "AVX2": "Haswell"}
WARM_AGAIN_BELOW_MS = 200.0

Result = Any


class RefusalError(Exception):
    """Why a peer is not asked for this case."""


class DisagreementError(Exception):
    """How a result differs from ours."""


@dataclass(frozen=True)
class Agreement:
    """How a result agrees with ours.

    Attributes:
        kind: In words that are the same in every case.
        detail: The case's numbers.
    """

    kind: str
    detail: str | None = None


@dataclass(frozen=True)
class Contender:
    """One implementation that can do the job.

    Attributes:
        name: As the tables call it.
        make: Returns the function that is timed; what one keeps between scans (a packed bank) is
            prepared here, what depends on the scan is not.
        is_ours: Ours, not a peer.
        parameter: Its best parameter here.
        part: What it does if it does only a part of the job: shown, but no peer to be compared
            with. Its result is not checked.
        note: What a reader of the row must know.
        max_runs: Fewer runs for the very slow.
    """

    name: str
    make: Callable[[], Callable[[], Result]]
    is_ours: bool = False
    parameter: str | None = None
    part: str | None = None
    note: str | None = None
    max_runs: int | None = None


@dataclass(frozen=True)
class Case:
    """One job on one input.

    Attributes:
        what: The op.
        data: What the input is.
        shapes: Sizes by letter.
        check: Says how a result agrees with ours; raises DisagreementError where it does not.
        flop: Floating point operations of brute force, for a row's gflops.
    """

    what: str
    data: str
    shapes: Mapping[str, Any]
    check: Callable[[Result], Agreement]
    flop: float | None = None


@dataclass
class _Entry:
    contender: Contender
    agreement: str | None = None
    refusal: str | None = None
    detail: str | None = None
    function: Callable[[], Result] | None = None
    first_ms: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)


def parse_options(
    description: str | None, *, parts: Sequence[str], runs: int = 21, budget_s: float = 0.4
) -> argparse.Namespace:
    """The command line's options; also sets the number of threads of all libraries, which most read
    once, when they are loaded: the script starts anew with another environment.

    Args:
        description: The script's.
        parts: Names of the pieces into which the script's cases fall, for --only.
        runs: Default of --runs.
        budget_s: Default of --budget-s.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--runs", type=int, default=runs, help="at most, of each contender")
    parser.add_argument(
        "--budget-s",
        type=float,
        default=budget_s,
        help="time for the runs of one contender in one case; one run is made anyway",
    )
    parser.add_argument("--data", type=Path, help="a data set; its prepared scans are the geometry")
    parser.add_argument("--frames", type=Path, help="folder of xyz TIFFs: real depth frames")
    parser.add_argument("--features", type=Path, help="folder with bank.npy and queries.npy")
    parser.add_argument("--only", choices=parts, help="one piece of the cases")
    parser.add_argument("--results", type=Path, default=RESULTS, help="rows are appended here")
    parser.add_argument(
        "--resume", action="store_true", help="skip cases that have rows of this commit"
    )
    options = parser.parse_args()
    _restart_with_threads(options.threads)
    set_num_threads(options.threads)
    return options


def library_environment(num_threads: int) -> dict[str, str]:
    """Environment variables under which every library is at its best with so many threads.

    An OpenBLAS that is older than the CPU (that of faiss's wheel) takes SSE3 where it does not know
    the model: a fifth of the speed.
    """
    variables = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    if core := OPENBLAS_CORES.get(_kernels.best_instruction_set().name):
        variables["OPENBLAS_CORETYPE"] = core
    return variables


def _restart_with_threads(num_threads: int) -> None:
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


def compare(case: Case, contenders: Sequence[Contender], options: argparse.Namespace) -> None:
    """Checks and times the contenders, ours first among them, and appends the case's rows.

    Raises:
        SystemExit: no peer that is installed gives our result: then nothing is timed.
    """
    facts = peer_environment()
    if options.resume and is_measured(case, options, facts["commit"]):
        return
    entries = [_tried(contender, case) for contender in contenders]
    timed = {entry.contender.name: entry for entry in entries if entry.function is not None}
    if not any(not (e.contender.is_ours or e.contender.part) for e in timed.values()):
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
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
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
            agreement = case.check(result)
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
    entry: _Entry,
    case: Case,
    options: argparse.Namespace,
    started: str,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    timing = Timing.from_latencies(entry.latencies_ms) if entry.latencies_ms else None
    contender = entry.contender
    gflops = 1e-6 * case.flop / timing.p50_ms if case.flop and timing else None
    return {
        "what": case.what,
        "backend": contender.name,
        "is_ours": contender.is_ours,
        "part": contender.part,
        "data": case.data,
        "shapes": dict(case.shapes),
        "dtype": "float32",
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
