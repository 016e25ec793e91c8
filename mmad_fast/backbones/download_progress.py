"""A rich progress bar on stderr with the interface that pooch's downloaders expect."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


class DownloadProgress:
    """Shows one download. pooch sets `total`, then calls `update`, `reset` and `close`."""

    def __init__(self, label: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=None)
        self._total: float = 0

    @property
    def total(self) -> float:
        """Bytes of the whole download; 0 if the server does not say."""
        return self._total

    @total.setter
    def total(self, value: float) -> None:
        self._total = value
        self._progress.update(self._task, total=value or None)

    def update(self, num_bytes: float) -> None:
        """Adds bytes that have arrived."""
        self._progress.update(self._task, advance=num_bytes)

    def reset(self) -> None:
        """Back to zero; pooch does this to fill the bar at the end."""
        self._progress.reset(self._task, total=self._total or None)

    def close(self) -> None:
        """Ends the display. May be called twice."""
        self._progress.stop()

    def __enter__(self) -> DownloadProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
