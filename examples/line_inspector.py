"""Inspects the parts of a line as their scans come in, and goes on whatever a single scan does.

    python examples/line_inspector.py runs/bagel camera_dump --output results --deadline-ms 500

The folder is watched for new pairs (name.png beside name.tiff, or rgb/ and xyz/) until Ctrl-C or
SIGTERM; `--once` takes what is there and ends. A program with its own camera imports this file:

    inspector = LineInspector(mmad_fast.load("runs/bagel"), deadline_ms=500, on_record=eject)
    summary = inspector.run(camera.wait_for_scan)  # returns (rgb, xyz), or None at the end

Needs the run half only: no torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from numpy.typing import ArrayLike
from result_folder import Record, ResultFolder
from scan_folder import ScanFolder

import mmad_fast
from mmad_fast.data import ScanFile
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.timing import Timing
from mmad_fast.scan import Result, Scan, Unit
from mmad_fast.threads import MAX_THREADS, set_num_threads

log = logging.getLogger("line_inspector")
Frame = Scan | ScanFile | tuple[ArrayLike, ArrayLike]
"""What a source hands over; a tuple is (rgb, xyz), as `Detector.infer` takes them."""
KEPT_LATENCIES = 10_000
"""Percentiles are those of the last so many scans: a line runs for months."""
MAX_PAUSE_S = 1.0
"""Longest wait before a source that fails again and again is asked once more."""


class LineInspector:
    """Runs a detector on scan after scan; a bad one is counted, logged and left behind.

    Latency is the time from a scan's being handed over to its decision, reading its files included.
    Then comes `on_record`, e.g. to eject the part; then the results are written. A record with an
    error is of a part that was not inspected: do not treat it as a good one.
    """

    def __init__(
        self,
        detector: mmad_fast.Detector,
        *,
        unit: Unit = "m",
        deadline_ms: float | None = None,
        on_record: Callable[[Record], object] | None = None,
        on_finished: Callable[[Frame], object] | None = None,
        results: ResultFolder | None = None,
        report_every: int = 100,
    ) -> None:
        self.detector, self.unit, self.deadline_ms = detector, unit, deadline_ms
        self.on_record, self.on_finished = on_record, on_finished
        self.results, self.report_every = results, report_every
        self.counts = Counter(
            inspected=0, anomalous=0, late=0, failed=0, undelivered=0, unsaved_pictures=0
        )
        self.errors: Counter[str] = Counter()
        self.is_waiting = False
        self._latencies_ms: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Makes `run` return after the current scan; from any thread or signal handler."""
        self._stop.set()

    def run(self, source: Iterable[Frame] | Callable[[], Frame | None]) -> dict[str, Any]:
        """The summary, when the source has ended (a callable: returned None) or `stop` was called.

        A callable that raises is asked again. So is an iterator; a generator has ended then.
        """
        frames: Iterator[Any] = iter(source, None) if callable(source) else iter(source)
        try:
            while not self._stop.is_set() and (frame := self._next(frames)) is not None:
                self.inspect(frame)
        except KeyboardInterrupt:  # while it waited for a scan
            if not self._stop.is_set():
                raise
        return self.summary()

    def inspect(self, frame: Frame) -> Record:
        """The record of one scan, counted and written."""
        start, scan, result = time.perf_counter(), None, None
        name = getattr(frame, "name", "") or f"scan {self._num_seen + 1}"
        try:
            scan = self._scan(frame, name)
            result = self.detector.infer_scan(scan)
        except Exception as error:  # one bad scan must not stop a line
            record = self._failure(name, error)
        else:
            record = self._decision(name, result, (time.perf_counter() - start) * 1e3)
        self._finish(record, scan, result)
        if self.on_finished is not None:
            self.on_finished(frame)
        return record

    def report(self, name: str, error: Exception) -> None:
        """Counts and writes a scan that nobody could inspect, such as one before a restart."""
        self._finish(self._failure(name, error))

    def summary(self) -> dict[str, Any]:
        """Counts since the start, and the latencies of the last 10,000 scans: p95 None below 20 of
        them, p99 below 100. `unsaved` records are not in the file, `undelivered` ones made
        `on_record` raise. `fps` is what the detector can do, not what the line asked for."""
        timing = Timing.from_latencies(list(self._latencies_ms)) if self._latencies_ms else None
        latency = {name: getattr(timing, name, None) for name in ("p50_ms", "p95_ms", "p99_ms")}
        fps = None if timing is None else timing.fps
        unsaved = 0 if self.results is None else self.results.num_unsaved
        return {
            **self.counts,
            "unsaved": unsaved,
            "errors": dict(self.errors),
            **latency,
            "fps": fps,
        }

    @property
    def _num_seen(self) -> int:
        return self.counts["inspected"] + self.counts["failed"]

    def _next(self, frames: Iterator[Frame]) -> Frame | None:
        """The source's next scan, None at its end."""
        pause_s = 0.01
        self.is_waiting = True
        try:
            while not self._stop.is_set():
                try:
                    return next(frames, None)
                except Exception as error:  # the camera's own: whatever it is, it may recover
                    self._finish(self._failure("", error))
                    self._stop.wait(pause_s)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
            return None
        finally:
            self.is_waiting = False

    def _scan(self, frame: Frame, name: str) -> Scan:
        if isinstance(frame, Scan):
            return frame
        if isinstance(frame, ScanFile):
            return frame.load(unit=self.unit)
        rgb, xyz = frame
        return Scan.from_arrays(rgb, xyz, unit=self.unit, name=name)

    def _decision(self, name: str, result: Result, latency_ms: float) -> Record:
        is_late = None if self.deadline_ms is None else latency_ms > self.deadline_ms
        self._latencies_ms.append(latency_ms)
        self.counts.update(inspected=1, anomalous=bool(result.is_anomalous), late=bool(is_late))
        return Record(
            time=_now(),
            scan=name,
            image_score=result.image_score,
            threshold=result.threshold,
            is_anomalous=result.is_anomalous,
            latency_ms=latency_ms,
            is_late=is_late,
        )

    def _failure(self, name: str, error: Exception) -> Record:
        self.counts["failed"] += 1
        self.errors[type(error).__name__] += 1
        is_explained = isinstance(error, MmadFastError)  # else the log needs to say where it was
        log.warning("scan %r failed: %s", name, error, exc_info=None if is_explained else error)
        return Record(_now(), name, error=f"{type(error).__name__}: {error}")

    def _finish(
        self, record: Record, scan: Scan | None = None, result: Result | None = None
    ) -> None:
        if self.on_record is not None:
            try:
                self.on_record(record)
            except Exception as error:  # a jammed actuator: the next part still comes
                self.counts["undelivered"] += 1
                log.error("scan %r: the record was not delivered: %s", record.scan, error)
        if self.results is not None:
            try:
                self.results.write(record)
            except Exception as error:  # a full disk
                log.error("scan %r: the record is kept in memory: %s", record.scan, error)
            try:
                self.results.write_overlay(record, scan, result)
            except Exception as error:
                self.counts["unsaved_pictures"] += 1
                log.error("scan %r: the picture was not saved: %s", record.scan, error)
        if self._num_seen % self.report_every == 0:
            log.info("%s", json.dumps(self.summary()))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


@contextmanager
def stopping_on_signals(inspector: LineInspector) -> Iterator[None]:
    """SIGINT and SIGTERM let the current scan finish, or end the wait for one; a second signal does
    what it does by default."""

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(_number: int, _frame: object) -> None:
        restore()
        inspector.stop()
        if inspector.is_waiting:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


def load_detector(options: argparse.Namespace) -> mmad_fast.Detector:
    """The detector, warmed up: the first scan of a part is as fast as the next ones."""
    if options.threads is not None:
        set_num_threads(options.threads)  # of the kernels and, if not told otherwise, of the engine
    chosen = {name: getattr(options, name) for name in ("engine", "device", "precision")}
    given = {name: value for name, value in chosen.items() if value is not None}
    detector = mmad_fast.load(options.artifact, **given)
    choice = detector.engine_choice
    log.info("engine %s, %s: %s", choice.engine, choice.precision, choice.reason)
    replay = detector.replay_golden()
    if not replay.agrees:  # to be expected of a precision below fp32 only
        log.warning("the golden map differs by %.1e: see mmad-fast doctor", replay.map_difference)
    return detector


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def thread_count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to {MAX_THREADS}")
    return value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", help="folder from `mmad-fast fit`")
    parser.add_argument("folder", help="where the camera writes its scans")
    parser.add_argument("--once", action="store_true", help="take what is there, then end")
    parser.add_argument("--output", help="folder for results.jsonl and overlays of anomalous scans")
    parser.add_argument("--deadline-ms", type=not_negative, help="slower decisions count as late")
    parser.add_argument(
        "--settle-s", type=not_negative, default=0.5, help="a file not changed for so long is whole"
    )
    parser.add_argument(
        "--repeat-interrupted",
        action="store_true",
        help="after a kill, inspect the scan that was in work again; else it is an error",
    )
    parser.add_argument("--unit", choices=("m", "mm"), default="m", help="of the XYZ files")
    for name in ("engine", "device", "precision"):
        parser.add_argument(f"--{name}", help="as of mmad_fast.load; default: its own")
    parser.add_argument("--threads", type=thread_count, help="CPU threads; default: all cores")
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code: 0 after a clean end, 1 where it cannot begin, 2 for wrong usage."""
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        results = ResultFolder(options.output) if options.output else None
        source = ScanFolder(
            options.folder,
            once=options.once,
            settle_s=options.settle_s,
            position=None if results is None else results.folder / "position.jsonl",
            repeat_interrupted=options.repeat_interrupted,
        )
        detector = load_detector(options)
    except (MmadFastError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    inspector = LineInspector(
        detector,
        unit=options.unit,
        deadline_ms=options.deadline_ms,
        on_finished=source.finish,
        results=results,
    )
    with stopping_on_signals(inspector):
        for name in source.interrupted:
            inspector.report(name, InterruptedError("the program ended while it was in work"))
            source.finish(name)
        log.info("inspecting what comes into %s", options.folder)
        summary = inspector.run(source)
    if results is not None:
        try:
            results.close()
        except OSError as error:
            log.error("%d records are not saved: %s", results.num_unsaved, error)
        summary["unsaved"] = results.num_unsaved
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
