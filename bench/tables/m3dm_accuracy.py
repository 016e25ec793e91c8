"""Writes docs/benchmarks/m3dm_accuracy.md from the rows in bench/results: no figure is typed by
hand.

python bench/tables/m3dm_accuracy.py            # rewrites the page
python bench/tables/m3dm_accuracy.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
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
from mmad_fast.measure.published import published_for
from mmad_fast.measure.tables import ACCURACY_COLUMNS, NOT_MEASURED
from mmad_fast.methods.variants import VARIANTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "m3dm_accuracy.md"
RESULTS = ROOT / "bench" / "results"

Row = dict[str, Any]

TITLE = """# M3DM: accuracy of its configurations and switches

Made by `bench/tables/m3dm_accuracy.py` from `bench/results/m3dm_{configurations,uff}.jsonl`.
"""
PUBLISHED_COLUMNS = "published I-AUROC, AUPRO@30%, P-AUROC"
CONFIGURATION_NOTE = """\
Mean over the fits, one per category of {data} ({categories}); {backbones}.
The published figures beside them are of MVTec 3D-AD with trained backbones: another set, other
weights.
"""
CATEGORY_NOTE = """\
I-AUROC / AUPRO@30%: overall, and of each defect type against the good scans.
"""
POINT_NOTE = """\
`m3dm-3d`: points per group / number of groups, and what a patch is: a point group, or a cell of the
28 x 28 or 56 x 56 grid.
"""
SWITCH_NOTE = """\
Difference to `m3dm` with the same UFF, mean over the fits, one per category, and in brackets the
smallest and the largest.
"""
FEW_SHOT_NOTE = """\
A seeded choice of the training scans of each category; M3DM's UFF is trained on the same few scans
of all categories. There are {num_train} training scans per category, so 50 shots cannot be shown on
this set.
"""
UFF_NOTE = """\
Share of the validation scans' foreground patches whose RGB token finds, among all point patches of
its scan, one of its own (before and after training), or one of its own or a neighbouring token.
"""


def configuration_tables(rows: Sequence[Row]) -> list[str]:
    """The configurations: means beside the published ones, then by category and defect type."""
    of_setting = by_setting(row for row in rows if row["shots"] is None)
    shown = [name for name in of_setting if is_configuration(name)]
    first = rows[0]
    categories = list(dict.fromkeys(row["category"] for row in rows))
    lines = [
        "## Configurations",
        "",
        CONFIGURATION_NOTE.format(
            data=first["data"], categories=", ".join(categories), backbones=_backbones(rows)
        ),
        *table_header("configuration", "fits", *ACCURACY_COLUMNS.values(), PUBLISHED_COLUMNS),
    ]
    for name in shown:
        means = [_mean(of_setting[name], column) for column in ACCURACY_COLUMNS]
        fits = str(len(of_setting[name]))
        lines.append(table_line(name, fits, *means, _published(_published_name(name))))
    lines += ["", "### By category and defect type", "", CATEGORY_NOTE]
    for category in categories:
        lines += [f"#### {category}", "", *_category_table(of_setting, shown, category), ""]
    return lines


def is_configuration(name: str) -> bool:
    """A setting is one of M3DM's methods, with or without UFF, and nothing else differs."""
    method, *options = name.split(" ")
    return VARIANTS[method].family == "m3dm" and options in ([], ["uff=none"])


def _category_table(
    of_setting: dict[str, list[Row]], names: Sequence[str], category: str
) -> list[str]:
    rows = {name: row for name in names for row in of_setting[name] if row["category"] == category}
    defects = list(dict.fromkeys(defect for row in rows.values() for defect in row["defects"]))
    lines = table_header("configuration", "all", *defects)
    for name, row in rows.items():
        cells = (_pair(row["defects"].get(defect)) for defect in defects)
        lines.append(table_line(name, _pair(row), *cells))
    return lines


def point_table(rows: Sequence[Row]) -> list[str]:
    """The paper's Table 5: point settings of the bank of point features alone."""
    of_setting = by_setting(row for row in rows if row["setting"].split(" ")[0] == "m3dm-3d")
    if not of_setting:
        return []
    lines = ["## Point settings", "", POINT_NOTE]
    lines += table_header("setting", "fits", "I-AUROC", "AUPRO@30%", "P-AUROC", PUBLISHED_COLUMNS)
    for name, of_name in of_setting.items():
        options = dict(part.split("=") for part in name.split(" ")[1:])
        size, number = options.get("group_size", "128"), options.get("num_groups", "1024")
        patches = options.get("point_patches", "56x56")
        sampling = "point groups" if patches == "groups" else f"{patches} patches"
        published = f"M3DM (3D only, {size} points/{number} groups, {sampling})"
        means = (_mean(of_name, column) for column in ("i_auroc", "aupro_30", "p_auroc"))
        fits = str(len(of_name))
        lines.append(
            table_line(f"{size}/{number}, {sampling}", fits, *means, _published(published))
        )
    return [*lines, ""]


def switch_table(rows: Sequence[Row]) -> list[str]:
    """What the switches change against the method's own setting."""
    of_setting = by_setting(row for row in rows if row["shots"] is None)
    own = {row["category"]: row for row in of_setting.get("m3dm", [])}
    names = [name for name in of_setting if name.startswith("m3dm ") and not is_configuration(name)]
    if not own or not names:
        return []
    lines = ["## Switches", "", SWITCH_NOTE]
    lines += table_header("setting", "fits", *ACCURACY_COLUMNS.values())
    for name in names:
        cells = []
        for column in ACCURACY_COLUMNS:
            changes = [
                row[column] - own[row["category"]][column]
                for row in of_setting[name]
                if row["category"] in own
            ]
            cells.append(
                f"{statistics.mean(changes):+.4f} ({min(changes):+.3f}, {max(changes):+.3f})"
            )
        lines.append(table_line(name.removeprefix("m3dm "), str(len(changes)), *cells))
    return [*lines, ""]


def few_shot_table(rows: Sequence[Row]) -> list[str]:
    """Accuracy by number of training scans."""
    methods = dict.fromkeys(row["setting"] for row in rows if row["shots"] is not None)
    if not methods:
        return []
    num_train = max(row["num_train_scans"] for row in rows)
    lines = ["## Few-shot", "", FEW_SHOT_NOTE.format(num_train=num_train)]
    lines += table_header("method", "scans", "fits", *ACCURACY_COLUMNS.values(), PUBLISHED_COLUMNS)
    for method in methods:
        of_method = [row for row in rows if row["setting"] == method]
        numbers = sorted({row["num_train_scans"] for row in of_method})
        for number in numbers:
            of_number = [row for row in of_method if row["num_train_scans"] == number]
            means = (_mean(of_number, column) for column in ACCURACY_COLUMNS)
            shots = of_number[0]["shots"]
            published = (
                VARIANTS[method].published
                if shots is None
                else f"{VARIANTS[method].published} ({shots}-shot)"
            )
            counts = str(number), str(len(of_number))
            lines.append(table_line(method, *counts, *means, _published(published)))
    return [*lines, ""]


def uff_tables(rows: Sequence[Row]) -> list[str]:
    """What training the feature fusion does to the alignment, and what it costs."""
    lines = ["## Feature fusion (UFF)", "", UFF_NOTE]
    lines += table_header(
        *("schedule", "pairing", "updates", "s per update", "before", "after"),
        *("within one token, before", "after", "chance"),
    )
    for row in rows:
        if row["what"] != "uff_alignment":
            continue
        before, after = row["before"], row["after"]
        lines.append(
            table_line(
                row["schedule"],
                row["pairing"],
                str(row["updates"]),
                f"{row['wall_s_per_update']:.2f}",
                f"{before['same_token']:.4f}",
                f"{after['same_token']:.4f}",
                f"{before['within_one']:.4f}",
                f"{after['within_one']:.4f}",
                f"{after['chance']:.4f}",
            )
        )
    lines.append("")
    for row in rows:
        if row["what"] == "uff_memory" and row["blocks"] is not None:
            plain = row["plain"]
            plain_text = (
                "did not end: out of memory"
                if plain is None
                else f"{plain['peak_working_mib']:.0f} MiB, {plain['seconds']:.1f} s, loss "
                f"{plain['loss']:.6g}"
            )
            lines += [
                f"One update on {row['num_patches']} patches of {row['channels'][0]} + "
                f"{row['channels'][1]} channels: in blocks {row['blocks']['peak_working_mib']:.0f} "
                f"MiB, {row['blocks']['seconds']:.1f} s, loss {row['blocks']['loss']:.6g}; plain "
                f"logits {plain_text}.",
                "",
            ]
    return lines


def by_setting(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each setting, in order of the file."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row)
    return found


def _published_name(setting: str) -> str:
    if setting == "m3dm-fusion uff=none":
        return "M3DM (one fused bank, without UFF)"
    method, *options = setting.split(" ")
    return "" if options else VARIANTS[method].published


def _published(name: str) -> str:
    """Mean I-AUROC, AUPRO@30%, P-AUROC on MVTec 3D-AD, by paper where papers differ."""
    values: dict[str, dict[str, float]] = {}
    for row in published_for(name, category="mean") if name else ():
        values.setdefault(row.paper, {})[row.metric] = row.value
    texts = dict.fromkeys(
        ", ".join(
            f"{of_paper[metric]:.3f}" if metric in of_paper else NOT_MEASURED
            for metric in ("i_auroc", "aupro_30", "p_auroc")
        )
        for of_paper in values.values()
        if "i_auroc" in of_paper
    )
    return "; ".join(texts) or NOT_MEASURED


def _backbones(rows: Sequence[Row]) -> str:
    names: Row = {}
    weights: dict[str, str] = {}
    for row in rows:  # a method of one modality names that alone
        names.update(row["backbones"])
        weights.update(row["weights"])
    blocks = ", ".join(map(str, names["point_layers"]))
    return (
        f"{names['rgb_backbone']}, {names['rgb_layers']} layers (weights: {weights['rgb']}), "
        f"Point-MAE block {blocks} (weights: {weights['point']})"
    )


def _mean(rows: Sequence[Row], column: str) -> str:
    values = [row[column] for row in rows]
    return NOT_MEASURED if None in values else f"{statistics.mean(values):.3f}"


def _pair(columns: Row | None) -> str:
    if columns is None or columns["i_auroc"] is None or columns["aupro_30"] is None:
        return NOT_MEASURED
    return f"{columns['i_auroc']:.3f} / {columns['aupro_30']:.3f}"


def render_pages() -> dict[Path, str]:
    """The page by its file."""
    found = read_rows(RESULTS / "m3dm_configurations.jsonl")
    accuracy = latest(found, "setting", "shots", "category", "seed")
    parts = [
        (configuration_tables, accuracy),
        (uff_tables, latest(read_rows(RESULTS / "m3dm_uff.jsonl"), "what", "schedule", "pairing")),
        (point_table, accuracy),
        (switch_table, accuracy),
        (few_shot_table, accuracy),
    ]
    lines = [TITLE]
    for render, rows in parts:
        lines += render(rows) if rows else []
    return {PAGE: "\n".join([*lines, *measured_on(found), ""])}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
