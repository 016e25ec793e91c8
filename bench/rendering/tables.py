"""Tables of rows. A column is "title | how | field": `how` is a format of Python (".1f"), "sN" (N
significant digits), "share" (per cent), "text", or a function that is given the row; `field` may
lead into records, with dots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from settings import RESULTS

from mmad_fast.measure.generated_pages import latest, read_rows, table_header, table_line
from mmad_fast.measure.tables import ACCURACY_COLUMNS, NOT_MEASURED

Row = Mapping[str, Any]
Page = Mapping[str, Any]
Functions = Mapping[str, Callable[[Row], str]]


def rows_of(spec: Page) -> list[dict[str, Any]]:
    """The rows of the file that a page or section names: the last of each key, or all."""
    rows = read_rows(Path(RESULTS / spec["rows"]))
    return latest(rows, *spec["key"]) if "key" in spec else rows


def value_at(row: Row, path: str) -> Any:
    """What the path leads to; None where there is nothing."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def significant(value: Any, digits: int = 3) -> str:
    """Significant digits; "–" for none."""
    if isinstance(value, int | float) and abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return number(value, f".{digits}g")


def cell(row: Row, column: str, functions: Functions) -> str:
    _, how, *path = (part.strip() for part in column.split("|"))
    if how in functions:
        return functions[how](row)
    value = value_at(row, *path)
    if how == "text":
        return NOT_MEASURED if value is None or value == "" else str(value)
    if how == "share":
        return NOT_MEASURED if value is None else f"{100 * value:.0f} %"
    if how.startswith("s"):
        return significant(value, int(how[1:]))
    return number(value, how)


def titles(columns: Sequence[str]) -> list[str]:
    return [column.partition("|")[0].strip() for column in columns]


def cells(row: Row, columns: Sequence[str], functions: Functions | None = None) -> list[str]:
    return [cell(row, column, functions or {}) for column in columns]


def table(
    rows: Sequence[Row], columns: Sequence[str], functions: Functions | None = None
) -> list[str]:
    """The lines of a Markdown table with a line per row."""
    lines = (table_line(*cells(row, columns, functions)) for row in rows)
    return [*table_header(*titles(columns)), *lines]


def machines(rows: Sequence[Row], form: str, *packages: str) -> list[str]:
    """On what and with what rows were measured, each once.

    Args:
        rows: Each with its environment.
        form: Names fields of a row and of its environment. Of these "versions" are those of the
            packages, or all; "commit" is short, "revision" says it or nothing, "changed" whether
            files were; "date" is the day, "os" has no version.
        packages: Names.
    """
    lines = []
    for row in rows:
        facts = row.get("environment", row)
        commit, known = facts.get("commit"), facts.get("versions") or {}
        names = (name for name in packages or known if known.get(name))
        short = {
            "versions": ", ".join(f"{name} {known[name]}" for name in names),
            "commit": (commit or "unknown")[:10],
            "revision": f", commit {commit[:10]}" if commit else "",
            "changed": " with changes" if facts.get("commit_is_clean") is False else "",
            "date": str(facts.get("date"))[:10],
            "os": facts.get("os", "").partition(" ")[0],
        }
        lines.append(form.format(**{**row, **facts, **short}))
    return list(dict.fromkeys(lines))


def grouped(rows: Sequence[Row], *names: str) -> list[list[Row]]:
    """The rows that have the same of these fields together, in order of the file."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(repr([row.get(name) for name in names]), []).append(row)
    return list(found.values())


def changes(rows: Sequence[Row], base: Sequence[Row]) -> list[str]:
    """Per metric the mean of the changes to the row of the same place in `base`, and in brackets
    the smallest and the largest; of one row the change alone."""
    texts = []
    for metric in ACCURACY_COLUMNS:
        found = [row[metric] - own[metric] for row, own in zip(rows, base, strict=True)]
        spread = f" ({min(found):+.3f}, {max(found):+.3f})" if len(found) > 1 else ""
        texts.append(f"{statistics.mean(found):+.4f}{spread}")
    return texts


def switch_tables(
    settings: Mapping[str, Sequence[tuple[Row, Row]]],
    single: Page,
    *,
    counted: str,
    first: Sequence[str] = (),
) -> list[str]:
    """Changes by setting, each from (row, the row that it is compared with). Means where there are
    enough fits; fewer are shown one by one in a table of their own.

    Args:
        settings: By name.
        single: The settings of that table, and how many fits are enough.
        counted: Title of the column with the number of fits.
        first: Lines at the top of the first table.
    """
    metrics = ACCURACY_COLUMNS.values()
    enough = {name: pairs for name, pairs in settings.items() if len(pairs) >= single["minimum"]}
    lines: list[str] = []
    if enough or first:
        lines += [*table_header("setting", counted, *metrics), *first]
        for name, pairs in enough.items():
            rows, base = zip(*pairs, strict=True)
            lines.append(table_line(name, str(len(pairs)), *changes(rows, base)))
        lines.append("")
    few = {name: pairs for name, pairs in settings.items() if name not in enough and pairs}
    if few:
        lines += single["title"].format(**single).splitlines()
        lines += ["", *table_header("setting", "category", "seed", *metrics)]
        for name, pairs in few.items():
            for row, own in pairs:
                lines.append(
                    table_line(name, row["category"], str(row["seed"]), *changes([row], [own]))
                )
        lines.append("")
    return lines


def summaries(name: str, rows: Sequence[Row], minimum: int) -> list[tuple[str, Sequence[Row]]]:
    """(label, rows whose mean is shown): all of them where there are enough fits, else each fit by
    itself."""
    if len(rows) >= minimum:
        return [(name, rows)]
    return [(f"{name}, {row['category']} alone", [row]) for row in rows]
