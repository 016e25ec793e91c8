"""Writes docs/benchmarks/m3dm_speed.md from the rows in bench/results: no figure is typed by hand.

python bench/tables/m3dm_speed.py            # rewrites the page
python bench/tables/m3dm_speed.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmad_fast.measure.generated_pages import (
    latest,
    measured_on,
    read_rows,
    table_header,
    table_line,
    write_pages,
)
from mmad_fast.measure.tables import NOT_MEASURED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "m3dm_speed.md"
RESULTS = ROOT / "bench" / "results"

Row = dict[str, Any]

TITLE = """# M3DM: time and memory of inference, coreset and fit

Made by `bench/tables/m3dm_speed.py` from
`bench/results/{m3dm_inference,k_center_greedy,m3dm_fit}.jsonl`.
"""
INFERENCE_NOTE = """\
Prepared arrays to score, batch 1, {threads} threads, {data}; {backbone}, weights: {weights}. Banks:
{sizes} (of which repeated rows with noise: {repeated}). The published pipeline is
`methods/m3dm/reference.py`: the published operations in torch, dense, on the same weights and
banks. Both take turns; detectors run in torch-free processes. Working memory is what a call takes
above weights and banks; banks are mapped from disk, and the process peak counts their pages.
"""
CORESET_NOTE = """\
`k_center_greedy` beside plain float32 steps (distance to the last selected row, minimum, argmax) of
torch and NumPy in the same run, {threads} threads. Of *pairs* of a row and a selected one, the
share that was bounded by a matrix product, and that which was measured exactly. A plain step may
take another row where two distances agree in float32; from there on its rows differ.
"""
FIT_NOTE = """\
`bench/m3dm_fit.py`: the process may not allocate more than the limit.
"""


def inference_tables(rows: Sequence[Row]) -> list[str]:
    """The detector beside the published pipeline at bagel's size: time, memory, stages."""
    lines = ["## Inference at bagel's size", ""]
    for run in _runs(rows):
        published, *settings = run
        sizes = ", ".join(
            f"{name} {bank['shape'][0]} x {bank['shape'][1]}"
            for name, bank in published["banks"].items()
        )
        repeated = ", ".join(
            f"{name} {bank['repeated']}" for name, bank in published["banks"].items()
        )
        weights = published["weights"]
        lines += [
            INFERENCE_NOTE.format(
                sizes=sizes,
                repeated=repeated,
                backbone=published["rgb_backbone"],
                weights=f"RGB {weights['rgb']}, points {weights['point']}",
                data=f"{published['data']} {published['category']}",
                threads=published["threads"],
            ),
            *table_header(
                *("setting", "p50 ms", "min ms", "runs", "times faster", "score difference"),
                *("map difference", "weights and banks MiB", "working MiB", "process peak MiB"),
            ),
        ]
        for row in (published, *settings):
            difference = row.get("difference")
            lines.append(
                table_line(
                    f"published ({row['engine']})"
                    if row is published
                    else f"{row['setting']} banks ({row['engine']})",
                    f"{row['p50_ms']:.0f}",
                    f"{row['min_ms']:.0f}",
                    str(row["runs"]),
                    _number(row.get("ratio_to_published"), 1),
                    NOT_MEASURED if difference is None else f"{difference['score']:.1e}",
                    NOT_MEASURED if difference is None else f"{difference['map']:.1e}",
                    *(
                        _number(row.get(name), 0)
                        for name in ("weights_mib", "peak_working_mib", "process_peak_mib")
                    ),
                )
            )
        stages = list(dict.fromkeys(name for row in run for name in row["stage_ms"]))
        stages = [name for name in stages if name != "preprocess"]  # no part of the times above
        lines += ["", "Stages, ms (median):", "", *table_header("setting", *stages)]
        for row in run:
            lines.append(
                table_line(
                    row["setting"], *(_number(row["stage_ms"].get(name), 1) for name in stages)
                )
            )
        lines.append("")
    return lines


def _runs(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each run: one of the published pipeline, and the settings after it."""
    runs: list[list[Row]] = []
    for row in rows:
        if row["setting"] == "published":
            runs.append([])
        runs[-1].append(row)
    last = {
        json.dumps([run[0]["rgb_backbone"], run[0]["category"], run[-1]["engine"]]): run
        for run in runs
    }
    return list(last.values())


def coreset_table(rows: Sequence[Row]) -> list[str]:
    """Greedy k-centre selection beside plain steps."""
    threads = rows[0]["threads"]
    lines = ["## Coreset", "", CORESET_NOTE.format(threads=threads)]
    lines += table_header(
        *("rows", "N x D", "selected", "who", "seconds", "times mmad-fast", "same indices"),
        *("working MiB", "pairs bounded, measured"),
    )
    names = {"cpu": "mmad-fast", "numpy": "NumPy", "torch": "torch"}
    for row in rows:
        shapes = row["shapes"]
        seconds = f"{row['seconds']:.1f}"
        if row["is_extrapolated"]:
            seconds = f"{row['seconds']:.0f}, extrapolated from {row['measured_steps']} steps"
        shares = NOT_MEASURED
        if "bounded_share" in row:
            shares = f"{row['bounded_share']:.1%}, {row['measured_share']:.1%}"
        lines.append(
            table_line(
                shapes["data"],
                f"{shapes['N']} x {shapes['D']}",
                str(shapes["n"]),
                names[row["backend"]],
                seconds,
                f"{row['times_cpu']:.1f}",
                f"{row['equal_indices']:.1%}",
                _number(row["peak_working_mib"], 0),
                shares,
            )
        )
    return [*lines, ""]


def fit_table(rows: Sequence[Row]) -> list[str]:
    """A whole fit: stages, memory, and its coreset beside plain torch."""
    lines = ["## Fit", "", FIT_NOTE]
    for row in rows:
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in row["stage_s"].items())
        coresets = "; ".join(
            f"{call['samples']} of {call['distinct_rows']} distinct rows of {call['width']} "
            f"values in {call['seconds']:.0f} s"
            for call in row["coresets"]
        )
        plain = row["plain_coreset"]
        lines += [
            f"{row['num_scans']} scans ({row['data']}), {row['num_threads']} threads: "
            f"{row['seconds']:.0f} s in all, peak memory of the process "
            f"**{row['process_peak_mib']:.0f} MiB** (limit {row['memory_limit_mib']:.0f}), tensors "
            f"{row['bank_mib']:.0f} MiB.",
            "",
            f"Seconds by stage: {stages}.",
            "",
            f"Coresets: {coresets}.",
            "",
            "Plain torch on the point bank's rows: "
            + "; ".join(
                f"{name.replace('_', ' ')} {part['seconds']:.0f} s"
                + (
                    f" (extrapolated from {part['measured_steps']} steps)"
                    if part["is_extrapolated"]
                    else ""
                )
                for name, part in plain.items()
            )
            + f": {row['coreset_ratio']:.0f} and {row['coreset_ratio_to_published']:.0f} times "
            "as long.",
            "",
        ]
    return lines


def _number(value: float | None, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def render_pages() -> dict[Path, str]:
    """The page by its file."""
    inference = read_rows(RESULTS / "m3dm_inference.jsonl")
    coreset = latest(read_rows(RESULTS / "k_center_greedy.jsonl"), "shapes", "backend")
    fits = latest(read_rows(RESULTS / "m3dm_fit.jsonl"), "data", "num_scans")
    lines = [TITLE]
    for render, rows in (
        (inference_tables, inference),
        (coreset_table, coreset),
        (fit_table, fits),
    ):
        lines += render(rows) if rows else []
    return {PAGE: "\n".join([*lines, *measured_on([*inference, *coreset, *fits]), ""])}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
