"""What an inspector writes: a JSON line per scan, a picture per anomalous one; old ones go."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

from mmad_fast.report.pictures import save_overlay
from mmad_fast.scan import Result, Scan

NUM_FILES = 5
"""results.jsonl is the newest, results.jsonl.4 the oldest."""


@dataclass(frozen=True)
class Record:
    """What became of one scan; a line of results.jsonl.

    Attributes:
        time: ISO 8601, UTC, of the decision.
        scan: The scan's name.
        image_score, threshold, is_anomalous: As in `Result`.
        latency_ms: From the scan's being handed over to its decision.
        is_late: latency_ms is above the deadline; None without one.
        error: Why it was not inspected; all the others but time and scan are None then.
    """

    time: str
    scan: str
    image_score: float | None = None
    threshold: float | None = None
    is_anomalous: bool | None = None
    latency_ms: float | None = None
    is_late: bool | None = None
    error: str | None = None


class _JsonLines(RotatingFileHandler):
    """Rotates as a log does; an error goes to the caller instead of to stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class ResultFolder:
    """results.jsonl and overlays in a folder that keeps its size, also over restarts."""

    def __init__(
        self, folder: Path | str, *, max_mib: float = 64.0, max_overlays: int = 1000
    ) -> None:
        """At most `max_mib` of JSON lines and `max_overlays` pictures (0: none).

        Raises:
            OSError: the folder cannot be made or written.
        """
        self.folder, self.max_overlays = Path(folder), max_overlays
        self.folder.mkdir(parents=True, exist_ok=True)
        file, max_bytes = self.folder / "results.jsonl", max(1, int(max_mib * 2**20 / NUM_FILES))
        self._lines = _JsonLines(
            file, maxBytes=max_bytes, backupCount=NUM_FILES - 1, encoding="utf-8"
        )
        # A name begins with the time, so the order of names is that of age.
        self._overlays = deque(sorted(self.folder.glob("overlay_*.png")))
        self._drop_old_overlays()

    def write(self, record: Record, scan: Scan | None = None, result: Result | None = None) -> None:
        """Adds a line; for an anomalous scan its overlay.

        Raises:
            OSError: the disk is full or gone.
        """
        line = json.dumps(asdict(record), allow_nan=False)
        self._lines.emit(logging.makeLogRecord({"msg": line}))
        if not (record.is_anomalous and self.max_overlays and scan and result):
            return
        time = re.sub(r"\D", "", record.time)[:20]  # to the microsecond
        name = re.sub(r"[^\w-]+", "_", record.scan)[:80]
        self._overlays.append(self.folder / f"overlay_{time}_{name}.png")
        save_overlay(
            self._overlays[-1],
            scan.rgb,
            result.native_anomaly_map,
            threshold=result.map_threshold,
            caption=f"{record.scan}  score {result.image_score:.4g}",
        )
        self._drop_old_overlays()

    def close(self) -> None:
        """Closes results.jsonl."""
        self._lines.close()

    def _drop_old_overlays(self) -> None:
        while len(self._overlays) > self.max_overlays:
            self._overlays.popleft().unlink(missing_ok=True)
