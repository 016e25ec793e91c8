"""Runs every comparison with peers, piece by piece, each in a process of its own.

python bench/peers/run_all.py --data DATA_SET --frames FOLDER --features FOLDER [--resume]
python bench/peers/run_all.py --data DATA_SET ... --print     # the commands, one a line

Every option is handed on to the pieces. The rows are appended to bench/results/peers.jsonl;
bench/tables/peers.py makes the page of them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
PIECES = {
    "farthest_point_sampling": ("part", "frame", "uniform"),
    "knn_grouping": ("part", "frame", "uniform"),
    "inverse_distance_interpolation": ("part", "frame", "uniform", "dense"),
    "nearest_neighbor_scoring": ("random-small", "random-large", "random-growth"),
    "pixel_mapping": ("10k", "14k", "25k", "49k"),
    "point_embedding": ("cloud-128", "calibrated-128", "cloud-32"),
}
FEATURE_PIECES = ("features-small", "features-large", "features-growth")


def commands(arguments: list[str]) -> list[list[str]]:
    """One command per piece; real features only where they are given."""
    pieces = dict(PIECES)
    if any(argument.split("=")[0] == "--features" for argument in arguments):
        pieces["nearest_neighbor_scoring"] += FEATURE_PIECES
    return [
        [sys.executable, str(FOLDER / f"{script}.py"), *arguments, "--only", part]
        for script, parts in pieces.items()
        for part in parts
    ]


def main() -> int:
    """Exit code 1 where a piece failed; the others are run nevertheless."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if "--print" in arguments:
        arguments.remove("--print")
        print("\n".join(shlex.join(command) for command in commands(arguments)))
        return 0
    failed = []
    for command in commands(arguments):
        start = time.perf_counter()
        if subprocess.run(command, check=False).returncode:
            failed.append(shlex.join(command))
        print(f"{Path(command[1]).stem} {command[-1]}: {time.perf_counter() - start:.0f} s\n")
    for command in failed:
        print(f"failed: {command}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
