"""Attacks mmad-fast for long, and keeps a row of what became of the cases of each attack.

    python bench/fuzz.py                           # all of bench/sweeps/fuzz.toml: make fuzz
    python bench/fuzz.py --scale 0.01              # a hundredth of each: make fuzz SCALE=0.01
    python bench/fuzz.py hostile_scans --seed 7    # one of them, other cases
    python bench/fuzz.py soak --count 3600         # an hour: make soak MINUTES=60

The attacks are the modules of tests/robustness that are named there; attack.py beside them says
what a fault is. Each runs in a process of its own: one that fails or crashes does not stop the
others. Ctrl-C or SIGTERM keeps the rows that there are, and what was counted of the attack that
ran; a second one ends at once.

Rows of full counts go to bench/results/robustness.jsonl, of which `python bench/pages.py` makes
docs/benchmarks/robustness.md; those of smaller counts to build/robustness.jsonl. Exit code: 0
without faults, 1 with faults or an attack that failed, 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from settings import BENCH, RESULTS, ROOT, append_rows, read_toml

from mmad_fast.measure.environment import environment
from mmad_fast.measure.generated_pages import read_rows
from mmad_fast.measure.memory import process_peak_mib

SETTINGS = BENCH / "sweeps" / "fuzz.toml"
FULL_RESULTS = RESULTS / "robustness.jsonl"
OTHER_RESULTS = ROOT / "build" / "robustness.jsonl"
MAX_EXAMPLES = 20
"""Faults that a row describes; it counts them all."""
PROGRESS_S = 10.0
INTERRUPTED = 130


@dataclass(frozen=True)
class Attack:
    """An attack as it is asked for.

    Attributes:
        name: Its table in the settings.
        spec: What that says: title, module, count, unit.
        count: How many cases, or units.
        seed: Of the cases.
        results: File that its row is added to.
    """

    name: str
    spec: Mapping[str, Any]
    count: int
    seed: int
    results: Path


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    codes = []
    for name in options.attacks or options.specs:
        full = options.specs[name]["count"]
        count = options.count or max(1, round(options.scale * full))
        results = options.results or (FULL_RESULTS if count >= full else OTHER_RESULTS)
        attack = Attack(name, options.specs[name], count, options.seed, results)
        if options.in_this_process:
            return run_attack(attack)
        codes.append(run_apart(attack, options.settings))
        if codes[-1] == INTERRUPTED:
            return INTERRUPTED
    return int(any(codes))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--count", type=int, help="of each attack, in place of --scale")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other cases")
    parser.add_argument("--results", type=Path, help="file that the rows are added to")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="file of the attacks")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.specs = read_toml(options.settings)
    unknown = [name for name in options.attacks if name not in options.specs]
    if unknown:
        parser.error(f"no attack {', '.join(unknown)}; there are {', '.join(options.specs)}")
    is_count = options.count is None or options.count >= 1
    if not (0 < options.scale < float("inf") and is_count and options.seed >= 0):
        parser.error("--scale and --count must be above 0, --seed 0 or more")
    return options


def run_apart(attack: Attack, settings: Path) -> int:
    """The exit code of an attack in a process of its own; where that could not write its row, there
    is one that says so."""
    numbers = {"--count": attack.count, "--seed": attack.seed}
    files = {"--results": attack.results, "--settings": settings}
    options = [str(text) for option in {**numbers, **files}.items() for text in option]
    command = [sys.executable, __file__, attack.name, "--in-this-process", *options]
    rows_before = len(read_rows(attack.results))
    # In a session of its own, so that Ctrl-C reaches this process only.
    process = subprocess.Popen(command, start_new_session=True)
    code = _wait(process)
    if len(read_rows(attack.results)) > rows_before:
        return code
    failure = f"the attack's process ended with exit code {code}"
    append_rows(attack.results, [AttackRow(attack).to_dict(failure=failure)])
    print(f"{attack.name}: {failure}", flush=True)
    return code if code == INTERRUPTED else 1


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, which is told once of an interruption, then ended."""
    for stop in (process.terminate, process.kill):  # SIGINT may be ignored, as behind a shell's &
        try:
            return process.wait()
        except KeyboardInterrupt:
            stop()
    process.wait()
    return INTERRUPTED


def run_attack(attack: Attack) -> int:
    """The exit code of an attack, run here; appends its row whatever happens."""
    sys.path.insert(0, str(ROOT / "tests"))
    row, failure, code = AttackRow(attack), None, 0
    try:
        module = import_module(attack.spec["module"])
        with closing(module.run(attack.count, attack.seed)) as outcomes:
            for outcome in outcomes:
                row.add(outcome)
        row.is_complete = True
    except KeyboardInterrupt:
        failure, code = "interrupted", INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        failure = f"the attack failed: {type(error).__name__}: {error}"
    append_rows(attack.results, [row.to_dict(failure=failure)])
    print(row.line(), "" if failure is None else f": {failure}", sep="", flush=True)
    return code or int(failure is not None or row.num_faults > 0)


class AttackRow:
    """What became of the cases of an attack so far."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.is_complete = False
        self.counts: Counter[str] = Counter()
        self.num_faults = 0
        self.examples: list[dict[str, Any]] = []
        self.slowest = (0.0, "")
        self.peak_mib = 0.0
        self.figures: dict[str, Any] = {}
        self._start = self._last_shown = time.perf_counter()

    @property
    def count(self) -> int:
        return self.counts.total()

    def add(self, outcome: Any) -> None:
        """Counts an outcome (robustness.attack.Outcome); prints faults, and progress at times."""
        self.counts[outcome.kind] += outcome.cases
        self.slowest = max(self.slowest, (outcome.seconds, outcome.case))
        self.peak_mib = max(self.peak_mib, outcome.peak_mib)
        self.figures.update(outcome.figures or {})
        if outcome.is_fault:
            self.num_faults += outcome.cases
            example = {"kind": outcome.kind, "case": outcome.case, "what": outcome.what}
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(example)
                print(f"{self.attack.name}, seed {self.attack.seed}: {example}", flush=True)
        now = time.perf_counter()
        if now - self._last_shown >= PROGRESS_S:
            self._last_shown = now
            print(self.line(), flush=True)

    def line(self) -> str:
        attack, unit = self.attack, self.attack.spec.get("unit", "")
        wanted = f"in {attack.count:,} {unit}" if unit else f"of {attack.count:,}"
        counts = ", ".join(f"{number:,} {kind}" for kind, number in self.counts.most_common())
        seconds = time.perf_counter() - self._start
        return f"{attack.name}: {self.count:,} {wanted}, {seconds:.0f} s: {counts or 'nothing'}"

    def to_dict(self, *, failure: str | None = None) -> dict[str, Any]:
        """The row in JSON types; `failure` is why it has no or not all cases."""
        return {
            "attack": self.attack.name,
            "title": self.attack.spec["title"],
            "count": self.count,
            "wanted": self.attack.count,
            "unit": self.attack.spec.get("unit", "cases"),
            "seed": self.attack.seed,
            "seconds": round(time.perf_counter() - self._start, 1),
            "is_complete": self.is_complete,
            "failure": failure,
            "outcomes": dict(sorted(self.counts.items())),
            "faults": self.num_faults,
            "examples": self.examples,
            "slowest_s": round(self.slowest[0], 3),
            "slowest_case": self.slowest[1],
            "peak_mib": round(max(self.peak_mib, process_peak_mib() or 0.0), 1),
            "figures": self.figures,
            "environment": environment(),
        }


if __name__ == "__main__":
    sys.exit(main())
