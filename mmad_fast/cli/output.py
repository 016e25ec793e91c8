"""What the commands print: one JSON object or tables on stdout, progress and notices on stderr."""

from __future__ import annotations

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
    """Writes rich renderables to stdout, at full width where it is not a terminal."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=200)
    for table in tables:
        console.print(table)


def notice(message: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def report_error(error: Exception, *, as_json: bool) -> None:
    """Writes an error to stderr and, with --json, as an object to stdout."""
    notice(f"error: {error}")
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": str(error)}})


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, total) that drives one progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)

        def update(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{description}: {what}", completed=done, total=total)

        yield update
