"""What the commands print: one JSON object or tables on stdout, progress and notices on stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import TextIOWrapper
from typing import Any, TextIO, cast

from mmad_fast.cli.interrupts import Interrupted, finish

LEAST_ESTIMATED_S = 2.0
"""Of a stage that must have passed before anything is said of its rest."""


class _Stderr:
    """stderr, of which nothing is asked: where it refuses what is written (the log's disk is full),
    that and the rest goes nowhere, and the command goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._lenient():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lenient():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _lenient(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _discard(self._stream)


def prepare_streams() -> None:
    """Makes stdout and stderr escape the signs that their encoding has not, such as \\u0434.

    A stream that was closed before the start takes what is written, as /dev/null does. stderr takes
    it also where it is refused, as by a full disk.
    """
    if sys.stdout is None or sys.stderr is None:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stderr, _Stderr):
        sys.stderr = cast(TextIO, _Stderr(sys.stderr))


def discard_stdout() -> None:
    """What stdout still holds goes nowhere: it was refused, and would be again at the end."""
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def print_json(content: dict[str, Any]) -> None:
    """Writes one JSON object to stdout; a value that was not measured is null, never NaN."""
    sys.stdout.write(json.dumps(_readable(content), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()
    finish()  # nothing may follow the object


def json_line(content: dict[str, Any]) -> str:
    """One JSON object on one line, with the line's end."""
    return json.dumps(_readable(content), allow_nan=False) + "\n"


def shown(text: str) -> str:
    """The text for people: signs that cannot be seen are escaped, such as \\n and \\udce9."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _readable(content: Any) -> Any:
    """The content as valid Unicode: names of files may have bytes that are no text."""
    if isinstance(content, str):
        return content.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(content, dict):
        return {_readable(key): _readable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_readable(value) for value in content]
    return content


def print_table(*tables: Any) -> None:
    """Writes rich renderables to stdout, at full width where it is not a terminal.

    Strings are shown as they are; for colours put a rich.text.Text into a cell.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    # Names of files and scans are text: their brackets and colons are no markup.
    console = Console(width=width, markup=False, emoji=False)
    for table in tables:
        console.print(table)
    sys.stdout.flush()


def notice(message: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def report_error(error: BaseException, *, as_json: bool) -> None:
    """Writes an error to stderr and, with --json, as an object to stdout."""
    message = describe_error(error)
    notice(f"error: {message}")
    if as_json:
        try:
            print_json({"error": {"type": type(error).__name__, "message": message}})
        except OSError:
            discard_stdout()


def describe_error(error: BaseException) -> str:
    """The error's own words; of the system's: what it refused, where, and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    place = "the system refused" if error.filename is None else str(error.filename)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room, or choose a folder elsewhere"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "choose a place that you may read and write"
    else:
        advice = "check the path, and that its disk is there"
    return f"{place}: {error.strerror or error}; {advice}"


class TimeLeft:
    """Says how long a stage will still take, if the rest of it goes as what was done of it so far.

    What was done before the stage was first heard of counts for nothing: a training that goes on
    from its checkpoint begins in the middle.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the clock, in seconds."""
        self._clock = clock
        self._stage: str | None = None
        self._began, self._done_before, self._done = 0.0, 0, 0

    def text(self, stage: str, done: int, total: int) -> str:
        """As "1:02:03 left"; empty where nothing can be said yet."""
        now = self._clock()
        if stage != self._stage or done < self._done:
            self._stage, self._began, self._done_before = stage, now, done
        self._done = done
        steps, seconds = done - self._done_before, now - self._began
        if not steps or seconds < LEAST_ESTIMATED_S or done >= total:
            return ""
        left = timedelta(seconds=math.ceil(seconds / steps * (total - done)))
        return f"{left} left"


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, total) that drives one progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    reached, time_left = "", TimeLeft()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None, left="")

        def update(what: str, done: int, total: int) -> None:
            nonlocal reached
            reached = f"during {description}: {what}, {done} of {total} done"
            progress.update(
                task,
                description=f"{description}: {what}",
                completed=done,
                total=total,
                left=time_left.text(what, done, total),
            )

        try:
            yield update
        except Interrupted as stop:
            stop.during = stop.during or reached
            raise
