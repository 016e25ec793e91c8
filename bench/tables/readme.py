"""Writes the README's tables from the rows in bench/results: no figure is typed by hand.

mmad-fast bench --method cfm-s --data DIR --results bench/results/bench.jsonl
python bench/tables/readme.py            # rewrites README.md
python bench/tables/readme.py --check    # exit code 1 if README.md would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmad_fast.measure.configuration import describe_method
from mmad_fast.measure.generated_pages import with_section, write_pages

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results" / "bench.jsonl"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

SPEED_COLUMNS = {
    "latency_ms_p50": ("p50 ms", 0),
    "latency_ms_p95": ("p95 ms", 0),
    "fps": ("fps", 2),
    "weights_mib": ("weights MiB", 1),
    "peak_working_mib": ("working MiB", 0),
    "process_peak_mib": ("process peak MiB", 0),
}
ACCURACY_COLUMNS = {
    "i_auroc": ("I-AUROC", 3),
    "p_auroc": ("P-AUROC", 3),
    "aupro_30": ("AUPRO@30%", 3),
    "aupro_10": ("AUPRO@10%", 3),
    "aupro_5": ("AUPRO@5%", 3),
    "aupro_1": ("AUPRO@1%", 3),
}
_IDENTITY = (
    *("method", "configuration", "shots", "data", "category", "protocol"),
    *("engine", "device", "threads", "weights"),
)


def latest_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The last row of each detector, data, protocol, engine and weights, in order of the file."""
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        key = json.dumps([row.get(name) for name in _IDENTITY], sort_keys=True)
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


def render(rows: list[dict[str, Any]]) -> str:
    """The tables in Markdown."""
    timed = [row for row in rows if row["latency_ms_p50"] is not None]
    judged = [row for row in rows if row["i_auroc"] is not None and not _all_random(row["weights"])]
    parts = []
    if timed:
        parts += ["**Speed and memory**", "", *_table(timed, SPEED_COLUMNS, with_run=True), ""]
        parts += [*_machine_lines(timed), ""]
    if judged:
        parts += ["**Accuracy**", "", *_table(judged, ACCURACY_COLUMNS, with_run=False), ""]
    return "\n".join(parts)


def _all_random(weights: str) -> bool:
    backbones = [part for part in weights.split(", ") if part.startswith(("rgb:", "point:"))]
    return all(part.endswith("random") for part in backbones)


def _table(
    rows: list[dict[str, Any]], columns: dict[str, tuple[str, int]], *, with_run: bool
) -> list[str]:
    run = ["protocol", "engine"] if with_run else ["weights"]
    machines = _machines(rows) if with_run else []
    if len(machines) > 1:
        run.append("machine")
        rows = [{**row, "machine": str(1 + machines.index(_machine(row)))} for row in rows]
    head = ["method", "data", "category", *run, *(title for title, _ in columns.values())]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [describe_method(row["method"], row.get("configuration"), row.get("shots"))]
        cells += [row.get("data") or "–", row["category"], *(row[name] for name in run)]
        cells += [_cell(row[name], digits) for name, (_, digits) in columns.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _machines(rows: list[dict[str, Any]]) -> list[str]:
    """Each machine, software and day that rows were measured on, once."""
    return list(dict.fromkeys(_machine(row) for row in rows))


def _machine(row: dict[str, Any]) -> str:
    machine = row["environment"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("onnxruntime", "torch", "numpy")
        if machine["versions"].get(name)
    )
    # Rows of an earlier state of the code are told apart; a row from an installed wheel has none.
    commit = f"commit {machine['commit'][:10]}, " if machine.get("commit") else ""
    return (
        f"{machine['cpu']}, {row['threads']} threads, batch 1, {versions}, mmad-fast "
        f"{machine['mmad_fast']}, {commit}{machine['date'][:10]}."
    )


def _machine_lines(rows: list[dict[str, Any]]) -> list[str]:
    machines = _machines(rows)
    if len(machines) == 1:
        return machines
    return [f"{number}. {machine}" for number, machine in enumerate(machines, start=1)]


def render_pages() -> dict[Path, str]:
    """The README with its tables, by its file."""
    rows = latest_rows(RESULTS.read_text(encoding="utf-8").splitlines())
    readme = README.read_text(encoding="utf-8")
    return {README: with_section(readme, BEGIN, END, render(rows))}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
