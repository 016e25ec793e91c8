"""Pages of Markdown made from benchmark rows, so that no figure in them is typed by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_pages(description: str, render: Callable[[], Mapping[Path, str]]) -> int:
    """The exit code of a script that writes pages, or with --check only compares them: 1 where one
    would change, and its name is printed.

    Args:
        description: The script's docstring.
        render: The whole text of each page by file; called once.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, report a difference")
    options = parser.parse_args()
    changed = write_changed(render(), check=options.check)
    for file in changed:
        if options.check:
            print(f"{file.name} is out of date; write it with: python {parser.prog}")
    return int(options.check and bool(changed))


def write_changed(texts: Mapping[Path, str], *, check: bool) -> list[Path]:
    """The files whose text is another one by now. They are written, unless `check`.

    Args:
        texts: The whole text of each file.
        check: Change nothing.
    """
    changed = [
        file
        for file, text in texts.items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    for file in () if check else changed:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(texts[file], encoding="utf-8")
    return changed


def with_section(page: str, begin: str, end: str, section: str) -> str:
    """The page with what stands between the lines `begin` and `end` replaced by the section."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{section}{end}{after}"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file, one JSON object per line; none where there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def latest(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The last row of each combination of these columns, in order of the file."""
    by_key: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = json.dumps([row.get(name) for name in names], sort_keys=True)
        by_key.pop(key, None)
        by_key[key] = row
    return list(by_key.values())


def table_header(*titles: str) -> list[str]:
    """The two lines above the rows of a Markdown table."""
    return [table_line(*titles), "|" + "---|" * len(titles)]


def table_line(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def measured_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per machine, version and day on which the rows were measured."""
    return list(
        dict.fromkeys(
            f"{facts['cpu']}, {facts['cores']} cores, torch {facts['versions'].get('torch')}, "
            f"mmad-fast {facts['mmad_fast']}, commit {(facts['commit'] or 'unknown')[:10]}, "
            f"{facts['date'][:10]}."
            for facts in (row["environment"] for row in rows)
        )
    )
