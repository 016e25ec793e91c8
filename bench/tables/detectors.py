"""Writes docs/benchmarks/detectors.md from the rows in bench/results: no figure is typed by hand.

python bench/tables/detectors.py            # rewrites the page
python bench/tables/detectors.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmad_fast.measure.generated_pages import latest, read_rows, write_pages
from mmad_fast.measure.tables import ACCURACY_COLUMNS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "detectors.md"
RESULTS = ROOT / "bench" / "results"

TITLE = """# Detectors on a CPU: speed, memory, and what the approximations cost

Made by `bench/tables/detectors.py` from `bench/results/{end_to_end,approximations}.jsonl`.
"""
SPEED_NOTE = """\
The published pipeline is `methods/cfm/reference.py`: the published operations in torch, dense, on
the same weights. Prepared arrays to score, batch 1; detectors run in torch-free processes of their
own, all in turns. "Exact" gives the published answer (largest difference of the map below); the
other settings are switches that approximate, "fast" is what `--speed fast` bundles, "before" is the
version without compiled point embedding, rotated mapping and shared point index.
"""
PRICE_NOTE = """\
Difference to the exact detector fitted with the same seed, mean over the categories and seeds, and
in brackets the smallest and the largest of them.
"""


def speed_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Latency and memory of every setting, and the stages of the exact detector."""
    lines = ["## Speed and memory", "", SPEED_NOTE]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        first = of_method[0]
        lines += [
            f"### {method}, {first['data']} {first['category']}",
            "",
            "| setting | p50 ms | min ms | runs | times faster than published | map difference | "
            "weights MiB | working MiB | process peak MiB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in of_method:
            difference = row.get("map_difference")
            cells = [
                f"{row['setting']} ({row['engine']})",
                f"{row['p50_ms']:.0f}",
                f"{row['min_ms']:.0f}",
                str(row["runs"]),
                _number(row.get("ratio_to_published"), 1),
                "–" if difference is None else f"{difference:.1e}",
                *(
                    _number(row.get(name), 0)
                    for name in ("weights_mib", "peak_working_mib", "process_peak_mib")
                ),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *_stage_table(of_method), ""]
    machine = rows[0]["environment"]
    lines += [
        f"{machine['cpu']}, {rows[0]['threads']} threads, {machine['date'][:10]}, mmad-fast "
        f"{machine['mmad_fast']}, commit {machine['commit'][:10]}.",
        "",
    ]
    return lines


def _stage_table(rows: list[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row["stage_ms"]))
    columns = ["preprocess", *(name for name in names if name != "preprocess")]
    lines = [
        "Stages, ms (median):",
        "",
        "| setting | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = [_number(row["stage_ms"].get(name), 1) for name in columns]
        lines.append(f"| {row['setting']} | " + " | ".join(cells) + " |")
    return lines


def price_tables(rows: list[dict[str, Any]]) -> list[str]:
    """What each setting costs against the exact detector."""
    settings: dict[tuple[str, int], dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        settings[row["fit"], row["pixel_stride"]][row["category"], row["seed"]] = row
    exact = settings["exact", 1]
    seeds = sorted({seed for _, seed in exact})
    categories = sorted({category for category, _ in exact})
    lines = [
        "## What the approximations cost in accuracy",
        "",
        f"{rows[0]['data']}: {', '.join(categories)}; seeds {', '.join(map(str, seeds))}. "
        + _describe(rows[0]["parameters"]),
        PRICE_NOTE,
        "| setting | runs | " + " | ".join(ACCURACY_COLUMNS.values()) + " |",
        "|---" * (2 + len(ACCURACY_COLUMNS)) + "|",
    ]
    absolute = [_mean(exact.values(), metric) for metric in ACCURACY_COLUMNS]
    lines.append(f"| exact, absolute | {len(exact)} | " + " | ".join(absolute) + " |")
    for (fit, stride), of_setting in settings.items():
        if (fit, stride) == ("exact", 1):
            continue
        name = fit if stride == 1 else f"pixel_stride={stride}" if fit == "exact" else fit
        keys = [key for key in of_setting if key in exact]
        cells = []
        for metric in ACCURACY_COLUMNS:
            changes = [of_setting[key][metric] - exact[key][metric] for key in keys]
            cells.append(
                f"{statistics.mean(changes):+.4f} ({min(changes):+.3f}, {max(changes):+.3f})"
            )
        lines.append(f"| {name} | {len(keys)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _describe(parameters: dict[str, Any]) -> str:
    blocks = ", ".join(map(str, parameters["point_layers"]))
    return (
        f"{parameters['rgb_backbone']}, {parameters['rgb_layers']} layers, Point-MAE blocks "
        f"{blocks} with random weights."
    )


def _mean(rows: Any, metric: str) -> str:
    return f"{statistics.mean(row[metric] for row in rows):.4f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def render_pages() -> dict[Path, str]:
    """The page by its file."""
    speed = latest(
        read_rows(RESULTS / "end_to_end.jsonl"), "method", "data", "category", "setting", "engine"
    )
    price = latest(
        read_rows(RESULTS / "approximations.jsonl"), "category", "fit", "pixel_stride", "seed"
    )
    return {PAGE: "\n".join([TITLE, *speed_tables(speed), *price_tables(price)])}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
