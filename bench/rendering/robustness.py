"""The page of what was tried to break mmad-fast, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rendering.tables import Page, Row, machines, rows_of, table
from settings import BENCH, read_toml

from mmad_fast.measure.generated_pages import table_header, table_line
from mmad_fast.measure.tables import NOT_MEASURED


def render(page: Page) -> str:
    """What each attack does, its counts, the faults one by one, and what else was measured."""
    attacks = read_toml(BENCH / page["settings"])
    latest = {row["attack"]: row for row in rows_of(page)}
    rows = [latest[name] for name in attacks if name in latest]
    lines = [page["title"]]
    for spec in attacks.values():
        lines.append(f"- **{spec['title']}**: {' '.join(spec['what'].split())}")
    lines += ["", *counts_table(rows, page, attacks), "", *fault_list(rows)]
    for row in rows:
        if row["figures"]:
            lines += [page["figures"].format(**row), *figures_table(row), ""]
    return "\n".join([*lines, *machines(rows, page["machine"]), ""])


def counts_table(rows: Sequence[Row], page: Page, attacks: Page) -> list[str]:
    """A line per attack, a column per fault."""
    fault_columns = [f"{title} | {kind}" for kind, title in page["faults"].items()]
    columns = [*page["columns"], *fault_columns, *page["cost"]]
    functions = {kind: _count_of(kind, attacks) for kind in page["faults"]}
    return table(rows, columns, {**functions, "cases": _cases, "minutes": _minutes})


def fault_list(rows: Sequence[Row]) -> list[str]:
    """The faults that the rows describe, and attacks that did not end."""
    lines = []
    for row in rows:
        if row["failure"]:
            lines.append(f"- {row['title']}: {row['failure']}")
        lines += [f"- {row['title']}: {kind_and_what}" for kind_and_what in _examples(row)]
        hidden = row["faults"] - len(row["examples"])
        lines += [f"- {row['title']}: {hidden} more"] if hidden > 0 else []
    return ["## Faults", "", *lines, ""] if lines else []


def figures_table(row: Row) -> list[str]:
    """What was measured beside the outcomes, with a unit in each name."""
    lines = (
        table_line(name.replace("_", " "), f"{value:.4g}") for name, value in row["figures"].items()
    )
    return [*table_header("figure", "value"), *lines]


def _count_of(kind: str, attacks: Page) -> Callable[[Row], str]:
    """The number of faults of a kind; "–" where the attack cannot find it."""

    def count(row: Row) -> str:
        number = row["outcomes"].get(kind, 0)
        is_sought = kind in attacks[row["attack"]]["looks_for"]
        return f"{number:,}" if number or is_sought else NOT_MEASURED

    return count


def _cases(row: Row) -> str:
    number = f"{row['count']:,}"
    if row["unit"] != "cases":
        number += f" in {row['wanted']:,} {row['unit']}"
    return number if row["is_complete"] else f"{number}, not complete"


def _minutes(row: Row) -> str:
    return f"{row['seconds'] / 60:.1f}"


def _examples(row: Row) -> list[str]:
    return [
        f"{one['kind']}, case {one['case']}: {' '.join(one['what'].split())}".replace("|", "\\|")
        for one in row["examples"]
    ]
