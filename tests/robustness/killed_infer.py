"""`mmad-fast infer --jsonl` that is ended at any moment, by SIGINT, SIGTERM or SIGKILL.

A scan is decided when `Detector.infer_scan` returns, which the attacked process notes for itself.
Every decided scan has its row then, whole and with that score; of SIGKILL the one scan that was
decided last may lack it. After the other two the command says what it had, and its exit code which
signal it was.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image
from robustness.attack import (
    ANSWER,
    HANG,
    LOST_ROW,
    WRONG_ANSWER,
    WRONG_EXCEPTION,
    Outcome,
)

NUM_SCANS = 40
BROKEN = (7, 8, 25)
"""Scans that end as an error row."""
END_LIMIT_S = 30.0
"""From the signal to the end of the process."""
START_S = 1.5
"""About what the process needs until the first scan; some are ended in this time."""
# What runs in the attacked process: the command line, with a note of each decision.
COMMAND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
notes = int(sys.argv.pop(1))
from mmad_fast.detector import Detector
infer_scan = Detector.infer_scan
def noted(self, scan):
    result = infer_scan(self, scan)
    os.write(notes, f"{scan.name} {result.image_score!r}\\n".encode())
    return result
Detector.infer_scan = noted
from mmad_fast.cli import main
main()
"""


class Ended(NamedTuple):
    """What a process that was ended leaves.

    Attributes:
        number: Of the signal.
        exit_code: Negative where a signal ended it.
        decided: (scan, score) in order.
        lines: Of the file of JSON lines; None where there is no such file.
        stdout, stderr: What it printed.
    """

    number: int
    exit_code: int
    decided: list[tuple[str, float]]
    lines: list[str] | None
    stdout: str
    stderr: str


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What became of the rows of `count` runs that were ended."""
    from tiny_artifacts import write_tiny_cfm

    with tempfile.TemporaryDirectory(prefix="killed-infer-") as scratch:
        folder = Path(scratch)
        artifact = write_tiny_cfm(folder / "artifact")
        scans = write_scans(folder / "scans")
        for case in range(count):
            rng = random.Random(f"{seed} {case}")
            number = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
            arguments = [artifact, scans, "--jsonl", folder / f"{case}.jsonl"]
            arguments += ["--json"] if rng.random() < 0.5 else []
            arguments += ["--output", folder / f"{case}"] if rng.random() < 0.5 else []
            start = time.perf_counter()
            outcome = end_infer(rng, number, arguments)
            label = f"{case}: {signal.Signals(number).name}, {' '.join(map(str, arguments[4:5]))}"
            yield outcome._replace(case=label, seconds=time.perf_counter() - start)


def write_scans(folder: Path) -> Path:
    """A folder of pairs, some of them broken."""
    from tiny_artifacts import make_arrays

    folder.mkdir()
    for index in range(NUM_SCANS):
        rgb, xyz = make_arrays(index, 48)
        Image.fromarray(rgb).save(folder / f"{index:03}.png")
        tiff = folder / f"{index:03}.tiff"
        tifffile.imwrite(tiff, xyz * np.float32(index not in BROKEN[:1]), photometric="rgb")
        if index in BROKEN[1:]:
            tiff.write_bytes(tiff.read_bytes()[:500])
    return folder


def end_infer(rng: random.Random, number: int, arguments: list[Any]) -> Outcome:
    """Runs the command, ends it at a random moment and judges what is left."""
    lines = Path(arguments[3])
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(write_end), "infer", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[write_end],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    os.close(write_end)
    with os.fdopen(read_end, "r", encoding="utf-8") as notes:
        decided = []
        if rng.random() < 0.15:
            time.sleep(rng.uniform(0, START_S))
        else:
            for _ in range(rng.randrange(NUM_SCANS - len(BROKEN))):
                decided.append(notes.readline())
            time.sleep(rng.uniform(0, 0.02))
        process.send_signal(number)
        try:
            stdout, stderr = process.communicate(timeout=END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Outcome(HANG, what=f"{END_LIMIT_S:g} s after the signal it still runs")
        decided += notes.readlines()
    pairs = [line.split() for line in decided if line]
    return judge(
        Ended(
            number,
            process.returncode,
            [(name, float(score)) for name, score in pairs],
            lines.read_text(encoding="utf-8").splitlines(keepends=True) if lines.exists() else None,
            stdout,
            stderr,
        )
    )


def judge(ended: Ended) -> Outcome:
    """Whether every decision is written down, and the end is said."""
    rows = {}
    for line in ended.lines or []:
        try:
            row = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict) or row["scan"] in rows:
            return Outcome(LOST_ROW, what=f"the line {line!r} is no whole row, or a second one")
        rows[row["scan"]] = row
    lost = [name for name, _ in ended.decided if name not in rows]
    is_killed = ended.number == signal.SIGKILL
    if is_killed and lost == [name for name, _ in ended.decided[-1:]]:
        lost = []  # nobody can note a decision and write its row in one step
    if lost:
        return Outcome(LOST_ROW, what=f"{', '.join(lost)} of {len(ended.decided)} decided")
    for name, score in ended.decided:
        if name in rows and rows[name].get("image_score") != score:
            return Outcome(WRONG_ANSWER, what=f"{name}: decided {score}, written {rows[name]}")
    return Outcome(ANSWER) if is_killed else _judge_words(ended, rows)


def _judge_words(ended: Ended, rows: dict[str, Any]) -> Outcome:
    """What was printed, and the exit code."""
    code, wanted = ended.exit_code, 128 + ended.number
    was_reached = ended.lines is not None
    if was_reached and "Traceback" in ended.stderr:
        return Outcome(WRONG_EXCEPTION, what=ended.stderr[-300:])
    has_all = len(rows) == NUM_SCANS and code == 1  # it was done before the signal came
    if code != wanted and not has_all and was_reached:
        return Outcome(WRONG_ANSWER, what=f"exit code {code}, expected {wanted}: {ended.stderr}")
    printed = json.loads(ended.stdout).get("scans", []) if ended.stdout.startswith("{") else None
    if printed is not None and printed != list(rows.values()):
        return Outcome(LOST_ROW, what=f"{len(printed)} rows printed, {len(rows)} written")
    return Outcome(ANSWER)
