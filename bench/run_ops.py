"""Times the ops on the CPU against the libraries that do the same, piece by piece, each piece in a
process of its own.

    python bench/run_ops.py --data DATA_SET --frames FOLDER --features FOLDER [--resume]
    python bench/run_ops.py --op knn_grouping --only uniform      # one piece of one op
    python bench/run_ops.py --print                               # the commands, one a line

The rows are appended to bench/results/peers.jsonl; `python bench/pages.py cpu` makes the page of
them. On a GPU bench/on_gpu.py times the same ops.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ops.case import op_modules
from ops.compare import compare, restart_with_threads
from settings import RESULTS

from mmad_fast.threads import set_num_threads


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


def commands(options: argparse.Namespace) -> list[list[str]]:
    """One command per piece that is asked for."""
    common = ["--threads", str(options.threads), "--results", str(options.results)]
    for name in ("runs", "budget_s", "data", "frames", "features"):
        if (value := getattr(options, name)) is not None:
            common += [f"--{name.replace('_', '-')}", str(value)]
    common += ["--resume"] if options.resume else []
    return [
        [sys.executable, str(Path(__file__)), "--op", op, "--only", piece, *common]
        for op, module in op_modules().items()
        if options.op in (None, op)
        for piece in pieces_of(module, options)
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


def main() -> int:
    """Exit code 1 where a piece failed; the others are run nevertheless."""
    options = parse_arguments()
    if options.op and options.only:
        run_piece(options)
        return 0
    listed = commands(options)
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
