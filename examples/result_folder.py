"""What an inspector writes: a JSON line per scan, a picture per anomalous one; old ones go."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from json_lines import JsonLines

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
        self._lines = JsonLines(file, max_bytes=max_bytes, num_files=NUM_FILES)
        # A name begins with the time, so the order of names is that of age.
        self._overlays = deque(sorted(self.folder.glob("overlay_*.png")))
        self._drop_old_overlays()

    @property
    def num_unsaved(self) -> int:
        """Records that are not in results.jsonl: still in memory, or lost."""
        return self._lines.num_unsaved

    def write(self, record: Record) -> None:
        """Adds a line; where there is no room it is kept, and written once there is.

        Raises:
            OSError: the disk is full or gone.
        """
        self._lines.append(asdict(record))

    def write_overlay(self, record: Record, scan: Scan | None, result: Result | None) -> None:
        """Adds the picture of an anomalous scan; of others none.

        Raises:
            OSError: the disk is full or gone.
        """
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
        """Writes the records that are still in memory.

        Raises:
            OSError: the disk is full or gone.
        """
        self._lines.flush()

    def _drop_old_overlays(self) -> None:
        while len(self._overlays) > self.max_overlays:
            self._overlays.popleft().unlink(missing_ok=True)
