"""Writes README's table of install sizes from the rows of bench/install_size.py: no figure is typed
by hand.

python bench/tables/install_size.py            # rewrites README.md
python bench/tables/install_size.py --check    # exit code 1 if README.md would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmad_fast.measure.generated_pages import with_section, write_pages

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results" / "install_size.jsonl"
BEGIN, END = "<!-- install size: begin -->", "<!-- install size: end -->"

Row = Mapping[str, Any]
TARGETS_MB = {"run half": 250, "with TensorRT-RTX": 600}
SHOWN_PACKAGES = 5
COLUMNS = (
    "installed",
    "download MB",
    "disk MB",
    "target MB",
    "largest packages, MB",
    "`import mmad_fast`",
    "and `load` and the engine's library",
)


def latest_rows(lines: Iterable[str]) -> list[Row]:
    """The last row of each variant, in order of its first."""
    rows: dict[str, Row] = {}
    for line in lines:
        row = json.loads(line)
        rows[row["variant"]] = row
    return list(rows.values())


def render(rows: Sequence[Row]) -> str:
    """The table in Markdown, with what it was measured on."""
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    for row in rows:
        packages = sorted(row["packages_mb"].items(), key=lambda item: -item[1])
        shown = [f"{name} {size:.0f}" for name, size in packages[:SHOWN_PACKAGES]]
        rest = sum(size for _, size in packages[SHOWN_PACKAGES:])
        lines.append(
            _line(
                (
                    row["variant"],
                    f"{row['download_mb']:.0f}",
                    f"{row['disk_mb']:.0f}",
                    _target(row),
                    f"{', '.join(shown)}, others {rest:.0f}",
                    f"{row['import_ms']:.0f} ms, {row['import_mib']:.0f} MiB",
                    f"{row['engine_import_ms']:.0f} ms, {row['engine_import_mib']:.0f} MiB",
                )
            )
        )
    return "\n".join([*lines, "", *dict.fromkeys(map(_measured_on, rows)), ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _target(row: Row) -> str:
    target = TARGETS_MB.get(row["variant"])
    if target is None:
        return "–"
    return f"< {target}: {'met' if row['disk_mb'] < target else 'missed'}"


def _measured_on(row: Row) -> str:
    facts = row["environment"]
    return (
        f"{facts['cpu']}, {facts['os'].split()[0]} {facts['machine']}, Python {facts['python']}, "
        f"commit {(facts['commit'] or 'unknown')[:10]}, {facts['date'][:10]}."
    )


def render_pages() -> dict[Path, str]:
    """The README with its tables, by its file."""
    rows = latest_rows(RESULTS.read_text(encoding="utf-8").splitlines())
    readme = README.read_text(encoding="utf-8")
    return {README: with_section(readme, BEGIN, END, render(rows))}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
