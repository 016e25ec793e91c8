"""The page of the ops on the CPU beside every library that does the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rendering.tables import Page, Row, machines, rows_of

from mmad_fast.measure.generated_pages import table_header, table_line

OURS = "mmad-fast"


def render(page: Page) -> str:
    """The page in Markdown."""
    return render_cases(latest_cases(rows_of(page)), page)


def latest_cases(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each case, of the last run where it was measured several times."""
    cases: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        key = json.dumps([row["what"], row["data"], row["shapes"], row["threads"]])
        cases.setdefault(key, {}).setdefault(row["case"], []).append(row)
    return [runs[max(runs)] for runs in cases.values()]


def render_cases(cases: Sequence[Sequence[Row]], page: Page) -> str:
    parts = [page["title"]]
    if not cases:
        parts.append("No rows yet: `make peers` measures them.\n")
    for section in page["sections"]:
        own = [rows for rows in cases if rows[0]["what"] == section["what"]]
        if own:
            parts.append(_section(section, sorted(own, key=lambda rows: _order(section, rows))))
    if cases:
        lines = machines([rows[0] for rows in cases], page["machine"])
        parts.append("\n".join(["## Machine", "", *lines, ""]))
    return "\n".join(parts)


def _order(section: Page, rows: Sequence[Row]) -> tuple[Any, ...]:
    return (rows[0]["data"], *(rows[0]["shapes"][letter] for letter in section["sizes"]))


def _section(section: Page, cases: Sequence[Sequence[Row]]) -> str:
    main = [rows for rows in cases if _is_main(section, rows[0])]
    names = list(dict.fromkeys(row["backend"] for rows in main for row in rows))
    kinds = {row["backend"]: row for rows in main for row in rows}
    ours = [name for name in names if kinds[name]["is_ours"]]
    titles = [f"*{name}*" if kinds[name]["part"] else name for name in names]
    ratios = ["ratio" if name == OURS else f"ratio,{name.partition(',')[2]}" for name in ours]
    lines = [
        f"## {section['title']}",
        "",
        *table_header("data", *section["sizes"], *titles, *ratios, "target"),
    ]
    for rows in main:
        fastest = fastest_peer(rows)
        by_name = {row["backend"]: row for row in rows}
        cells = [rows[0]["data"], *(f"{rows[0]['shapes'][letter]}" for letter in section["sizes"])]
        cells += [_time_cell(by_name.get(name), fastest) for name in names]
        cells += [_ratio_cell(by_name.get(name), fastest) for name in ours]
        cells.append(_target_cell(section, rows))
        lines.append(table_line(*cells))
    lines += ["", *_notes(names, main)]
    for letter in section.get("growth", []):
        lines += _growth(section, letter, cases)
    return "\n".join(lines)


def _is_main(section: Page, row: Row) -> bool:
    wanted = section.get("main", {})
    return all(row["shapes"][letter] in sizes for letter, sizes in wanted.items())


def fastest_peer(rows: Sequence[Row]) -> Row | None:
    """The fastest that does the whole job and is not ours."""
    peers = [r for r in rows if r["p50_ms"] and not r["is_ours"] and not r["part"]]
    return min(peers, key=lambda row: row["p50_ms"], default=None)


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _time_cell(row: Row | None, fastest: Row | None) -> str:
    if row is None or row["p50_ms"] is None:
        return "–"
    text = _milliseconds(row["p50_ms"])
    if row["parameter"]:
        text += f" ({row['parameter']})"
    return f"**{text}**" if row is fastest else text


def _ratio_cell(ours: Row | None, fastest: Row | None) -> str:
    if ours is None or fastest is None or ours["p50_ms"] is None:
        return "–"
    return f"{fastest['p50_ms'] / ours['p50_ms']:.2f}x"


def applies(target: Page, row: Row) -> bool:
    """Whether a target holds for this case."""
    facts = {**row["shapes"], "data": row["data"].split()[0]}
    return all(facts.get(name) in allowed for name, allowed in target.get("only", {}).items())


def _target_cell(section: Page, rows: Sequence[Row]) -> str:
    by_name = {row["backend"]: row for row in rows}
    ours = by_name[OURS]
    for target in section.get("targets", []):
        name = target.get("against")
        other = by_name.get(name) if name else fastest_peer(rows)
        if not applies(target, ours) or other is None or other["p50_ms"] is None:
            continue
        is_limit = target.get("is_limit", False)
        ratio = other["p50_ms"] / ours["p50_ms"]
        reached = 1 / ratio if is_limit else ratio
        is_met = reached <= target["ratio"] if is_limit else reached >= target["ratio"]
        sign, times = ("≤", " of") if is_limit else ("≥", "")
        against = f"{times} {name}" if name else ""
        verdict = "met" if is_met else "missed"
        return f"{sign} {target['ratio']:g}x{against}: {reached:.2f}x, {verdict}"
    return "–"


def _notes(names: Sequence[str], cases: Sequence[Sequence[Row]]) -> list[str]:
    """One line per contender: how its result agrees, what it leaves out, why it was not timed."""
    lines = []
    for name in names:
        rows = [row for case in cases for row in case if row["backend"] == name]
        notes = {row["note"] for row in rows}
        refusals = {row["refusal"]: row["detail"] for row in reversed(rows) if row["refusal"]}
        found = [
            *(row["part"] for row in rows),
            *(row["agreement"] for row in rows if not row["is_ours"]),
            *(notes if len(notes) == 1 else ()),
            *(
                f"not timed: {refusal} ({detail})" if detail else f"not timed: {refusal}"
                for refusal, detail in refusals.items()
            ),
        ]
        said = [text for text in dict.fromkeys(found) if text]
        if said:
            lines.append(f"- {name}: {'; '.join(said)}.")
    return [*lines, ""] if lines else []


def slope(sizes: Sequence[float], times_ms: Sequence[float]) -> float:
    """The exponent e of time ~ size^e: the slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times_ms), 1)[0])


def _growth(section: Page, letter: str, cases: Sequence[Sequence[Row]]) -> list[str]:
    """Time against one size, the others fixed; ours and the fastest peer, three sizes or more."""
    series: dict[tuple[str, ...], dict[int, Sequence[Row]]] = {}
    for rows in cases:
        others = (
            f"{other}={rows[0]['shapes'][other]}" for other in section["sizes"] if other != letter
        )
        key = (rows[0]["data"], ", ".join(others))
        series.setdefault(key, {})[rows[0]["shapes"][letter]] = rows
    series = {key: by_size for key, by_size in series.items() if len(by_size) >= 3}
    if not series:
        return []
    sizes = sorted({size for by_size in series.values() for size in by_size})
    columns = (f"{letter}={size}" for size in sizes)
    lines = [
        f"Growth with {letter}, ms:",
        "",
        *table_header("data", "fixed", "who", *columns, "slope"),
    ]
    for (data, fixed), by_size in series.items():
        for name in _growing(by_size):
            times = {
                size: row["p50_ms"]
                for size, rows in by_size.items()
                for row in rows
                if row["backend"] == name and row["p50_ms"]
            }
            cells = [_milliseconds(times[size]) if size in times else "–" for size in sizes]
            exponent = f"{slope(list(times), list(times.values())):.2f}" if len(times) > 2 else "–"
            lines.append(table_line(data, fixed or "–", name, *cells, exponent))
    return [*lines, ""]


def _growing(by_size: Mapping[int, Sequence[Row]]) -> list[str]:
    """Ours, and the fastest peer at the largest size."""
    rows = by_size[max(by_size)]
    fastest = fastest_peer(rows)
    ours = [row["backend"] for row in rows if row["is_ours"]]
    return ours + ([fastest["backend"]] if fastest else [])
