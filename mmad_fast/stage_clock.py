"""Wall-clock time per named stage of one inference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up milliseconds per stage, in order of first use. One per inference; not shared."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of the with-block towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed_ms = (time.perf_counter() - start) * 1e3
            self.stage_ms[name] = self.stage_ms.get(name, 0.0) + elapsed_ms
