"""Pages of whole detectors: speed beside the published pipeline, fits, what approximations cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from rendering.tables import (
    Page,
    Row,
    cells,
    grouped,
    machines,
    number,
    rows_of,
    switch_tables,
    titles,
)

from mmad_fast.measure.generated_pages import measured_on, table_header, table_line
from mmad_fast.measure.tables import ACCURACY_COLUMNS


def render(page: Page) -> str:
    """Speed, and what each setting costs against the exact detector."""
    lines = [page["title"], *speed_tables(rows_of(page["speed"]), page["speed"])]
    return "\n".join([*lines, *price_tables(rows_of(page["price"]), page)])


def render_with_banks(page: Page) -> str:
    """Speed with memory banks, and fits."""
    inference, fits = rows_of(page["speed"]), rows_of(page["fit"])
    lines = [page["title"]]
    lines += speed_tables(inference, page["speed"]) if inference else []
    lines += fit_tables(fits, page["fit"]) if fits else []
    return "\n".join([*lines, *measured_on([*inference, *fits]), ""])


def speed_tables(rows: Sequence[Row], spec: Page) -> list[str]:
    """Latency and memory of every setting beside the published pipeline, and the stages."""
    lines = [spec["title"]]
    for group in runs_of(rows, spec["run_key"]) if "run_key" in spec else grouped(rows, "method"):
        lines += [
            spec["heading"].format(**group[0], **bank_facts(group[0])),
            *table_header("setting", *titles(spec["columns"])),
        ]
        for row in group:
            form = spec["label"] if row["setting"] != "published" else "{setting} ({engine})"
            lines.append(table_line(form.format(**row), *cells(row, spec["columns"])))
        names = [name for row in group for name in row["stage_ms"]]
        left_out = spec.get("left_out_stages", [])
        stages = dict.fromkeys((*spec.get("first_stages", []), *names))
        shown = [name for name in stages if name not in left_out]
        lines += ["", "Stages, ms (median):", "", *table_header("setting", *shown)]
        for row in group:
            times = (number(row["stage_ms"].get(name), ".1f") for name in shown)
            lines.append(table_line(row["setting"], *times))
        lines.append("")
    return lines + ([*machines(rows[:1], spec["machine"]), ""] if "machine" in spec else [])


def runs_of(rows: Sequence[Row], key: Sequence[str]) -> list[list[Row]]:
    """The last run of each key and engine: a row of the published pipeline, and the settings after
    it."""
    runs: list[list[Row]] = []
    for row in rows:
        if row["setting"] == "published":
            runs.append([])
        runs[-1].append(row)
    last = {json.dumps([*(run[0][name] for name in key), run[-1]["engine"]]): run for run in runs}
    return list(last.values())


def bank_facts(row: Row) -> dict[str, str]:
    """How large the memory banks are, and how many of their rows are repeated."""
    banks = row.get("banks", {})
    return {
        "sizes": ", ".join(
            f"{name} {bank['shape'][0]} x {bank['shape'][1]}" for name, bank in banks.items()
        ),
        "repeated": ", ".join(f"{name} {bank['repeated']}" for name, bank in banks.items()),
    }


def price_tables(rows: Sequence[Row], page: Page) -> list[str]:
    """What each setting costs against the exact detector of the same category and seed."""
    fits = {(row["fit"], row["pixel_stride"], row["category"], row["seed"]): row for row in rows}
    exact = {key[2:]: row for key, row in fits.items() if key[:2] == ("exact", 1)}
    parameters = rows[0]["parameters"]
    note = page["price"]["note"].format(
        **rows[0],
        **parameters,
        categories=", ".join(sorted({category for category, _ in exact})),
        seeds=", ".join(map(str, sorted({seed for _, seed in exact}))),
        blocks=", ".join(map(str, parameters["point_layers"])),
    )
    settings: dict[str, list[tuple[Row, Row]]] = {}
    for (fit, stride, *place), row in fits.items():
        name = f"pixel_stride={stride}" if fit == "exact" else fit
        if (fit, stride) != ("exact", 1) and tuple(place) in exact:
            settings.setdefault(name, []).append((row, exact[place[0], place[1]]))
    absolute = (
        f"{statistics.mean(row[metric] for row in exact.values()):.4f}"
        for metric in ACCURACY_COLUMNS
    )
    first = [table_line("exact, absolute", str(len(exact)), *absolute)]
    tables = switch_tables(settings, page["single_fits"], counted="runs", first=first)
    return [page["price"]["title"], note, *tables]


def fit_tables(rows: Sequence[Row], spec: Page) -> list[str]:
    """Whole fits: stages, memory, and coresets beside plain torch where they were measured."""
    lines = [spec["title"]]
    for row in rows:
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in row["stage_s"].items())
        lines.append(spec["line"].format(**row, stages=stages))
        if "plain_coreset" in row:
            found = "; ".join(spec["coreset"].format(**call) for call in row["coresets"])
            plain = "; ".join(
                spec["plain_coreset"].format(name=name.replace("_", " "), **part)
                for name, part in row["plain_coreset"].items()
            )
            lines.append(spec["coresets"].format(**row, found=found, plain=plain))
    return lines
