"""What the commands print: one JSON object or tables on stdout, progress and notices on stderr."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def print_json(content: dict[str, Any]) -> None:
    """Writes one JSON object to stdout; a value that was not measured is null, never NaN."""
    json.dump(content, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


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


def notice(message: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def report_error(error: Exception, *, as_json: bool) -> None:
    """Writes an error to stderr and, with --json, as an object to stdout."""
    message = _describe_os_error(error) if isinstance(error, OSError) else str(error)
    notice(f"error: {message}")
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})


def _describe_os_error(error: OSError) -> str:
    """What the system refused, where, and what to do."""
    place = "the system refused" if error.filename is None else str(error.filename)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room, or choose a folder elsewhere"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "choose a place that you may read and write"
    else:
        advice = "check the path, and that its disk is there"
    return f"{place}: {error.strerror or error}; {advice}"


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
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)

        def update(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{description}: {what}", completed=done, total=total)

        yield update
