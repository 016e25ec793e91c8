"""One process that scores good, broken and hostile scans for long, alone and in the example's
inspector, and loads its detectors again and again.

After a warm-up, memory, descriptors and threads must stay as they are, a good scan must cost the
same processor time and give the same bits as at the start, and the inspector must have a record of
every scan.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from robustness.attack import (
    ANSWER,
    DIFFERENT_REPEAT,
    LEAK,
    LOST_ROW,
    Outcome,
    Work,
    run_guarded,
)
from robustness.hostile_scans import hostile_scan, judge

import mmad_fast
from mmad_fast.data import ScanFile
from mmad_fast.heap import return_freed_memory
from mmad_fast.threads import set_num_threads

BLOCK_SCANS = 40
BLOCK_LIMIT_S = 60.0
WARM_UP = 0.2
"""Share of the time after which nothing may grow any more."""
MAX_GROWTH_MIB = 16.0
"""Of resident memory, from the median of the first blocks after the warm-up to that of the last:
what single large scans leave in the allocators comes and goes."""
MAX_SLOWER = 1.5
"""Of the processor time of a good scan; only of runs that have enough of them to tell."""
MIN_TIMED_BLOCKS = 200
END = -1
"""The case that judges what was measured."""
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(seconds: int, seed: int) -> Iterator[Outcome]:
    """What became of the scans that were scored in so many seconds."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:

        def blocks() -> Iterator[int]:
            block = 0
            while time.monotonic() < end:
                yield block
                block += 1
            yield END

        yield from run_guarded(open_line, (folder, seed), blocks(), limit_s=BLOCK_LIMIT_S)


def open_line(folder: str, seed: int) -> Work:
    """Scores a block of scans, or judges all the blocks before."""
    from tiny_artifacts import make_arrays, write_small_artifacts

    sys.path.insert(0, str(EXAMPLES))
    example: ModuleType = __import__("line_inspector")
    results = Path(folder, "results")
    line = _Line(
        list(write_small_artifacts(Path(folder)).values()),
        _broken_files(Path(folder, "files")),
        make_arrays(1, 64),
        lambda detector: example.LineInspector(
            detector, results=example.ResultFolder(results, max_overlays=20), report_every=10**9
        ),
        results,
    )

    def work(block: int) -> Outcome:
        return line.judge() if block == END else line.score(np.random.default_rng([seed, block]))

    return work


class _Line:
    """The detectors, and what was measured after each block."""

    def __init__(
        self,
        artifacts: list[Path],
        files: list[ScanFile],
        good: tuple[Any, Any],
        inspect: Callable[[mmad_fast.Detector], Any],
        results: Path,
    ) -> None:
        set_num_threads(2)
        self._artifacts, self._files, self._good, self._results = artifacts, files, good, results
        self._detectors = [mmad_fast.load(path, num_threads=2) for path in artifacts]
        self._inspectors = [inspect(detector) for detector in self._detectors]
        self._first = [_bits(detector, good) for detector in self._detectors]
        self._blocks: list[dict[str, float]] = []

    def score(self, rng: np.random.Generator) -> Outcome:
        """What became of a block."""
        for outcome in (self._ask(rng), self._inspect(rng), self._load_again(rng)):
            if outcome is not None:
                return outcome
        start = time.process_time()
        answers = [_bits(detector, self._good) for detector in self._detectors]
        cpu_ms = (time.process_time() - start) * 1e3
        if answers != self._first:
            return Outcome(DIFFERENT_REPEAT, what=f"after {len(self._blocks)} blocks")
        return_freed_memory()
        self._blocks.append({"cpu_ms": cpu_ms, **_held()})
        return Outcome(ANSWER, f"block {len(self._blocks)}", cases=2 * BLOCK_SCANS)

    def _ask(self, rng: np.random.Generator) -> Outcome | None:
        """Hostile scans among good ones, straight to the detectors."""
        for _ in range(BLOCK_SCANS):
            detector = self._detectors[rng.integers(len(self._detectors))]
            scan = hostile_scan(rng)
            outcome = judge({1: detector, 2: detector}, scan)
            set_num_threads(2)
            if outcome.is_fault:
                return outcome._replace(case=f"{detector.method}, {scan.kind}")
        return None

    def _inspect(self, rng: np.random.Generator) -> Outcome | None:
        """Good, hostile and broken ones through the example's loop."""
        frames: list[Any] = []
        for _ in range(BLOCK_SCANS - len(self._files)):
            scan = hostile_scan(rng)
            frames.append(self._good if rng.random() < 0.3 else (scan.rgb, scan.xyz))
        frames += self._files
        inspector = self._inspectors[rng.integers(len(self._inspectors))]
        before = sum(inspector.counts[name] for name in ("inspected", "failed"))
        inspector.run(iter(frames))
        counts = inspector.counts
        seen = counts["inspected"] + counts["failed"] - before
        if seen != len(frames) or counts["unsaved"]:
            return Outcome(LOST_ROW, what=f"{seen} of {len(frames)} records, {dict(counts)}")
        return None

    def _load_again(self, rng: np.random.Generator) -> Outcome | None:
        index = int(rng.integers(len(self._artifacts)))
        again = mmad_fast.load(self._artifacts[index], num_threads=2)
        if _bits(again, self._good) != self._first[index]:
            return Outcome(DIFFERENT_REPEAT, what=f"loaded again: {again.method}")
        return None

    def judge(self) -> Outcome:
        """Whether anything grew after the warm-up."""
        blocks = self._blocks[int(WARM_UP * len(self._blocks)) :]
        part = max(1, len(blocks) // 4)
        first, last = blocks[:part], blocks[-part:]
        figures = {f"{name}_start": median(one[name] for one in first) for name in first[0]}
        figures |= {f"{name}_end": median(one[name] for one in last) for name in last[0]}
        figures["blocks"] = len(self._blocks)
        grown = [name for name in ("descriptors", "threads") if _grows(blocks, name)]
        if figures["resident_mib_end"] > figures["resident_mib_start"] + MAX_GROWTH_MIB:
            grown.append("resident memory")
        is_slower = figures["cpu_ms_end"] > MAX_SLOWER * figures["cpu_ms_start"]
        if is_slower and len(blocks) >= MIN_TIMED_BLOCKS:
            grown.append("processor time")
        if grown:
            return Outcome(LEAK, what=f"{', '.join(grown)}: {figures}", figures=figures)
        problem = _unreadable_line(self._results)
        kind = LOST_ROW if problem else ANSWER
        return Outcome(kind, what=problem, cases=int(bool(problem)), figures=figures)


def _grows(blocks: list[dict[str, float]], name: str) -> bool:
    return max(one[name] for one in blocks[1:] or blocks) > blocks[0][name]


def _held() -> dict[str, float]:
    """What the process has of the system."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "resident_mib": resident / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def _bits(detector: mmad_fast.Detector, arrays: tuple[Any, Any]) -> tuple[float, bytes]:
    result = detector.infer(*arrays)
    return result.image_score, result.anomaly_map.tobytes()


def _unreadable_line(results: Path) -> str:
    """The first line of the records that is no JSON object; "" if there is none."""
    for file in sorted(results.glob("results.jsonl*")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                json.loads(line)
            except ValueError:
                return f"{file.name}: {line[:80]!r}"
    return ""


def _broken_files(folder: Path) -> list[ScanFile]:
    """Pairs of which one is not there, cut, of another size, or no picture."""
    from tiny_artifacts import make_arrays

    folder.mkdir(parents=True, exist_ok=True)
    rgb, xyz = make_arrays(0, 48)
    found = []
    for name in ("gone", "cut", "empty", "size", "text"):
        png, tiff = folder / f"{name}.png", folder / f"{name}.tiff"
        Image.fromarray(rgb).save(png)
        tifffile.imwrite(tiff, xyz[:40] if name == "size" else xyz, photometric="rgb")
        content = tiff.read_bytes()
        if name == "gone":
            tiff.unlink()
        elif name in ("cut", "empty"):
            tiff.write_bytes(content[: len(content) // 2 if name == "cut" else 0])
        elif name == "text":
            png.write_text("no picture")
        found.append(
            ScanFile(name=name, category="c", split="test", defect="", rgb_path=png, xyz_path=tiff)
        )
    return found
