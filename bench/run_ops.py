"""Times the ops on the CPU against the libraries that do the same, piece by piece, each piece in a
process of its own.

Everybody who can do it is called once; whoever gives another result than ours, is not installed or
refuses becomes a row with the reason; the others are timed in turns.

    python bench/run_ops.py --data DATA_SET --frames FOLDER --features FOLDER [--resume]
    python bench/run_ops.py --op knn_grouping --only uniform      # one piece of one op
    python bench/run_ops.py --print                               # the commands, one a line

The rows are appended to bench/results/peers.jsonl; `python bench/pages.py cpu` makes the page of
them. On a GPU bench/on_gpu.py times the same ops.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ops.case import Case, Contender, DisagreementError, RefusalError, Result, op_modules
from settings import RESULTS, append_rows, timing_fields, version_of

from mmad_fast import _kernels
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.environment import environment
from mmad_fast.measure.generated_pages import read_rows
from mmad_fast.measure.timing import time_interleaved
from mmad_fast.threads import set_num_threads

PEER_PACKAGES = ("fpsample", "pykdtree", "faiss-cpu", "open3d-cpu", "openvino", "small_gicp")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
OPENBLAS_CORES = {"AVX512": "SkylakeX", "AVX2": "Haswell"}
WARM_AGAIN_BELOW_MS = 200.0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", help="one op: a stem of bench/ops/bench_<op>.py")
    parser.add_argument("--only", help="one of its pieces")
    parser.add_argument("--print", action="store_true", dest="prints", help="print the commands")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--runs", type=int, help="at most, of each contender")
    parser.add_argument(
        "--budget-s",
        type=float,
        help="time for the runs of one contender in one case; one run is made anyway",
    )
    parser.add_argument("--data", type=Path, help="a data set; its prepared scans are the geometry")
    parser.add_argument("--frames", type=Path, help="folder of xyz TIFFs: real depth frames")
    parser.add_argument("--features", type=Path, help="folder with bank.npy and queries.npy")
    parser.add_argument("--results", type=Path, default=RESULTS / "peers.jsonl")
    parser.add_argument(
        "--resume", action="store_true", help="skip cases that have rows of this commit"
    )
    return parser.parse_args(arguments)


def pieces_of(module: ModuleType, options: argparse.Namespace) -> tuple[str, ...]:
    """Its pieces; those of real features only where they are given."""
    more = getattr(module, "FEATURE_PIECES", ()) if options.features else ()
    return (*module.PIECES, *more)


def commands(options: argparse.Namespace, arguments: Sequence[str]) -> list[list[str]]:
    """One command per piece that is asked for, given the same arguments."""
    return [
        [sys.executable, str(Path(__file__)), "--op", op, "--only", piece, *arguments]
        for op, module in op_modules().items()
        if options.op in (None, op)
        for piece in pieces_of(module, options)
        if options.only in (None, piece)
    ]


def run_piece(options: argparse.Namespace) -> None:
    """One piece, in this process, which starts anew with the threads of all libraries set."""
    module = import_module(f"ops.bench_{options.op}")
    if options.only not in pieces_of(module, options):
        known = ", ".join(pieces_of(module, options))
        raise SystemExit(f"there is no piece {options.only!r} of {options.op}; known are {known}")
    restart_with_threads(options.threads)
    set_num_threads(options.threads)
    options.runs = options.runs or getattr(module, "RUNS", 21)
    options.budget_s = options.budget_s or getattr(module, "BUDGET_S", 0.4)
    for case in module.cases(options):
        compare(case, options)


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
    versions = {package: version_of(package) for package in PEER_PACKAGES}
    facts["versions"] |= {package: version for package, version in versions.items() if version}
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
    names = ("what", "data", "shapes", "threads")
    identity = [case.what, case.data, dict(case.shapes), options.threads]
    return any(
        [row[name] for name in names] == identity and row["environment"]["commit"] == commit
        for row in read_rows(options.results)
    )


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
    timing = timing_fields(entry.latencies_ms)
    contender = entry.contender
    p50_ms = timing["p50_ms"]
    gflops = 1e-6 * case.work.flop / p50_ms if case.work.flop and p50_ms else None
    return {
        "what": case.what,
        "backend": contender.name,
        "is_ours": contender.is_ours,
        "part": contender.part,
        "data": case.data,
        "shapes": dict(case.shapes),
        "dtype": case.dtype,
        "threads": options.threads,
        **timing,
        "min_ms": min(entry.latencies_ms, default=None),
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


def main() -> int:
    """Exit code 1 where a piece failed; the others are run nevertheless."""
    options = parse_arguments()
    if options.op and options.only:
        run_piece(options)
        return 0
    listed = commands(options, [given for given in sys.argv[1:] if given != "--print"])
    if options.prints:
        print("\n".join(shlex.join(command) for command in listed))
        return 0
    if not listed:
        raise SystemExit(f"there is no op {options.op!r}; known are {', '.join(op_modules())}")
    failed = []
    for command in listed:
        start = time.perf_counter()
        if subprocess.run(command, check=False).returncode:
            failed.append(shlex.join(command))
        print(f"{command[3]} {command[5]}: {time.perf_counter() - start:.0f} s\n", flush=True)
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
