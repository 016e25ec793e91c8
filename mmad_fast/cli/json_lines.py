"""JSON lines that are on their way to the reader as soon as they are known."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mmad_fast.cli.interrupts import uninterrupted
from mmad_fast.cli.output import describe_error, discard_stdout, json_line, notice
from mmad_fast.errors import InvalidInputError

STDOUT = Path("-")
_LONGEST_LINE = 1 << 20


class JsonLines(Protocol):
    """Where JSON lines go.

    Attributes:
        is_refused: Some line could not be written there.
    """

    is_refused: bool

    def write(self, content: dict[str, Any]) -> None:
        """Writes one JSON object as a line, whole and at once."""

    def close(self) -> None:
        """Writes what is left, to stderr if need be."""


@contextmanager
def json_lines(target: Path | None) -> Iterator[JsonLines]:
    """Where JSON lines are written.

    Args:
        target: A file, which the lines are added to; "-" is stdout, None: nothing is written.

    Yields:
        The lines' place. What a full disk refuses is kept, tried again with the next line and at
        the end, and goes to stderr if it is refused then.

    Raises:
        InvalidInputError: the file cannot be opened.
        BrokenPipeError: stdout has been closed by its reader.
    """
    lines: JsonLines = _Nothing()
    if target is not None:
        lines = _Stdout() if target == STDOUT else _File(target)
    try:
        yield lines
    finally:
        with uninterrupted():
            lines.close()


class _Nothing:
    is_refused = False

    def write(self, content: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Stdout:
    is_refused = False

    def write(self, content: dict[str, Any]) -> None:
        line = json_line(content)
        if not self.is_refused:
            try:
                sys.stdout.write(line)
                sys.stdout.flush()
                return
            except BrokenPipeError:
                raise
            except OSError as error:
                discard_stdout()
                error.filename = "stdout"
                notice(f"error: {describe_error(error)}; the lines follow here")
                self.is_refused = True
        notice(line.rstrip("\n"))

    def close(self) -> None:
        """Nothing: each line is flushed."""


class _File:
    """A file of JSON lines; whatever happens between two writes, its lines are whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending = b""
        self.is_told = self.is_refused = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not buffered: what is written survives the end of this process, however it ends.
            self.file = path.open("a+b", buffering=0)
            if self.file.seekable():
                self._end_last_line()
        except OSError as error:
            raise InvalidInputError(
                f"the file of JSON lines {path} cannot be written ({error.strerror or error}); "
                "name a file in a folder that you may write to"
            ) from error

    def write(self, content: dict[str, Any]) -> None:
        self.pending += json_line(content).encode()
        self._try()

    def close(self) -> None:
        self._try()
        self.file.close()
        self.is_refused = bool(self.pending)
        if self.pending:
            notice(f"error: these lines could not be written to {self.path}:")
            notice(self.pending.decode().rstrip("\n"))

    def _try(self) -> None:
        try:
            while self.pending:
                self._forget(self.file.write(self.pending))
        except OSError as error:
            error.filename = str(self.path)
            if not self.is_told:
                notice(f"error: {describe_error(error)}; the lines are kept for now")
            self.is_told = True

    def _forget(self, written: int) -> None:
        """Takes whole lines as written; part of a line is taken back where that can be done."""
        whole = self.pending.rfind(b"\n", 0, written) + 1
        if whole < written and self.file.seekable():
            self.file.truncate(self.file.seek(0, os.SEEK_END) - (written - whole))
            written = whole
        self.pending = self.pending[written:]

    def _end_last_line(self) -> None:
        """Cuts the line of a process that was killed while it wrote; ends one of anybody else."""
        end = self.file.seek(0, os.SEEK_END)
        start = self.file.seek(max(0, end - _LONGEST_LINE))
        last = self.file.read(end - start).rpartition(b"\n")[2]
        if last.startswith(b'{"scan": ') and not _is_whole(last):
            self.file.truncate(end - len(last))
        elif last:
            self.pending = b"\n"


def _is_whole(line: bytes) -> bool:
    """Only the line's end was not written."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
