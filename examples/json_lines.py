"""JSON lines in a file that keeps its size, and survives a disk that is full for a while."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_PENDING = 100_000


class JsonLines:
    """Appends lines; what cannot be written now is kept in memory, and written before the next."""

    def __init__(self, file: Path, *, max_bytes: int, num_files: int = 1) -> None:
        """`file` and file.1, file.2, ..., of at most `max_bytes` each; the oldest goes.

        Raises:
            OSError: the file cannot be written.
        """
        self.file, self.max_bytes, self.num_files = file, max_bytes, num_files
        self.num_lost = 0
        """Lines that memory had no room for either."""
        self._pending: deque[bytes] = deque()
        with file.open("ab"):
            pass

    @property
    def num_unsaved(self) -> int:
        """Lines that are not in the file: those still to be written, and those lost for good."""
        return len(self._pending) + self.num_lost

    def append(self, content: Any) -> None:
        """Adds a line.

        Raises:
            OSError: it, or one before it, could not be written yet.
        """
        self._pending.append(json.dumps(content, allow_nan=False).encode() + b"\n")
        if len(self._pending) > MAX_PENDING:
            self._pending.popleft()
            self.num_lost += 1
        self.flush()

    def flush(self) -> None:
        """Writes what is still to be written.

        Raises:
            OSError: the disk is full or gone; the lines are kept.
        """
        while self._pending:
            self._write(self._pending[0])
            self._pending.popleft()

    def replace(self, contents: list[Any]) -> None:
        """These lines instead of all others, at once."""
        beside = self.file.with_name(f".{self.file.name}.new")
        beside.write_bytes(b"".join(json.dumps(content).encode() + b"\n" for content in contents))
        beside.replace(self.file)
        self._pending.clear()

    def read(self) -> Iterator[Any]:
        """The lines of the newest file; one that was cut off is left out."""
        for line in self.file.read_bytes().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def _write(self, line: bytes) -> None:
        # Without a buffer: what a buffer could not write would come again, at some other time.
        if self.num_files > 1 and self.file.exists():
            size = self.file.stat().st_size
            if size and size + len(line) > self.max_bytes:
                self._rotate()
        with self.file.open("ab+", buffering=0) as file:
            size = file.tell()
            file.seek(max(0, size - 1))
            if file.read(1) not in (b"", b"\n"):
                line = b"\n" + line  # the last one was cut off by a kill or a power cut
            written = file.write(line)
            if written != len(line):
                file.truncate(size)
                raise OSError(28, os.strerror(28), str(self.file))

    def _rotate(self) -> None:
        for number in range(self.num_files - 1, 0, -1):
            older = (
                self.file if number == 1 else self.file.with_name(f"{self.file.name}.{number - 1}")
            )
            if older.exists():
                older.replace(self.file.with_name(f"{self.file.name}.{number}"))
