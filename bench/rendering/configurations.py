"""Accuracy of a method's configurations and switches beside the published figures, few-shot, and
what is trained once for all categories."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rendering.tables import Page, Row, grouped, rows_of, summaries, switch_tables, table

from mmad_fast.measure.generated_pages import measured_on, table_header, table_line
from mmad_fast.measure.published import MVTEC_3D_AD, published_for
from mmad_fast.measure.tables import ACCURACY_COLUMNS, NOT_MEASURED
from mmad_fast.methods.family import get_method

PUBLISHED_COLUMNS = "published I-AUROC, AUPRO@30%, P-AUROC"
PUBLISHED_METRICS = ("i_auroc", "aupro_30", "p_auroc")


def render(page: Page) -> str:
    rows, shared = rows_of(page), rows_of(page["shared"])
    lines = [page["title"]]
    if rows:
        lines += configuration_tables(rows, page)
    if shared:
        lines += shared_tables(shared, page["shared"])
    if rows:
        lines += [*point_table(rows, page), *switches(rows, page), *few_shot_table(rows, page)]
    return "\n".join([*lines, *measured_on(rows), ""])


def configuration_tables(rows: Sequence[Row], page: Page) -> list[str]:
    """The configurations: means beside the published ones, then by category and defect type."""
    settings = by_setting(rows)
    shown = [name for name in settings if is_configuration(name, page)]
    categories = list(dict.fromkeys(row["category"] for row in rows))
    facts = {"categories": ", ".join(categories), "backbones": backbones(rows)}
    lines = [page["note"].format(**{**rows[0], **facts})]
    lines += table_header("configuration", "fits", *ACCURACY_COLUMNS.values(), PUBLISHED_COLUMNS)
    for name in shown:
        for label, of_name in summaries(name, settings[name], page["single_fits"]["minimum"]):
            figures = published(published_name(name, page))
            lines.append(table_line(label, *summary(of_name, ACCURACY_COLUMNS), figures))
    lines += ["", page["category_note"]]
    for category in categories:
        lines += [f"#### {category}", "", *category_table(settings, shown, category), ""]
    return lines


def is_configuration(name: str, page: Page) -> bool:
    """A setting is one of the methods, and nothing but what a configuration may have differs."""
    method, *options = name.split(" ")
    return method in page["methods"] and options in ([], page["options"])


def category_table(
    settings: Mapping[str, Sequence[Row]], names: Sequence[str], category: str
) -> list[str]:
    rows = {name: row for name in names for row in settings[name] if row["category"] == category}
    defects = list(dict.fromkeys(defect for row in rows.values() for defect in row["defects"]))
    lines = table_header("configuration", "all", *defects)
    for name, row in rows.items():
        pairs = (pair(row["defects"].get(defect)) for defect in defects)
        lines.append(table_line(name, pair(row), *pairs))
    return lines


def point_table(rows: Sequence[Row], page: Page) -> list[str]:
    """Settings of the method that has point features alone."""
    settings = by_setting(row for row in rows if row["setting"].split(" ")[0] == page["points"])
    if not settings:
        return []
    lines = [page["point_note"]]
    lines += table_header("setting", "fits", "I-AUROC", "AUPRO@30%", "P-AUROC", PUBLISHED_COLUMNS)
    for name, of_name in settings.items():
        options = dict(part.split("=") for part in name.split(" ")[1:])
        size, count = options.get("group_size", "128"), options.get("num_groups", "1024")
        patches = options.get("point_patches", "56x56")
        sampling = "point groups" if patches == "groups" else f"{patches} patches"
        title = f"{size}/{count}, {sampling}"
        names = {"size": size, "number": count, "sampling": sampling}
        figures = published(page["published_points"].format(**names))
        for label, chosen in summaries(title, of_name, page["single_fits"]["minimum"]):
            lines.append(table_line(label, *summary(chosen, PUBLISHED_METRICS), figures))
    return [*lines, ""]


def switches(rows: Sequence[Row], page: Page) -> list[str]:
    """What the switches change against the method's own setting."""
    settings, own_name = by_setting(rows), page["own"]
    own = {row["category"]: row for row in settings.get(own_name, [])}
    names = [name for name in settings if name.startswith(f"{own_name} ")]
    pairs = {
        name.removeprefix(f"{own_name} "): [
            (row, own[row["category"]]) for row in settings[name] if row["category"] in own
        ]
        for name in names
        if not is_configuration(name, page)
    }
    if not own or not pairs:
        return []
    return [page["switch_note"], *switch_tables(pairs, page["single_fits"], counted="fits")]


def few_shot_table(rows: Sequence[Row], page: Page) -> list[str]:
    """Accuracy by number of training scans."""
    methods = dict.fromkeys(row["setting"] for row in rows if row["shots"] is not None)
    if not methods:
        return []
    most = max(row["num_train_scans"] for row in rows)
    lines = [page["few_shot_note"].format(num_train=most)]
    lines += table_header("method", "scans", "fits", *ACCURACY_COLUMNS.values(), PUBLISHED_COLUMNS)
    for method in methods:
        of_method = [row for row in rows if row["setting"] == method]
        for scans in sorted({row["num_train_scans"] for row in of_method}):
            chosen = [row for row in of_method if row["num_train_scans"] == scans]
            shots = chosen[0]["shots"]
            name = published_name(method, page) + ("" if shots is None else f" ({shots}-shot)")
            for label, fits in summaries(method, chosen, page["single_fits"]["minimum"]):
                figures = summary(fits, ACCURACY_COLUMNS)
                lines.append(table_line(label, str(scans), *figures, published(name)))
    return [*lines, ""]


def shared_tables(rows: Sequence[Row], spec: Page) -> list[str]:
    """What the training does to the alignment, and what it costs."""
    alignments = [row for row in rows if row["what"] == "uff_alignment"]
    lines = [spec["title"], *table(alignments, spec["columns"]), ""]
    for row in rows:
        if row["what"] == "uff_memory" and row["blocks"] is not None:
            updates = {
                name: spec["update"].format(**row[name]) if row[name] else spec["too_large"]
                for name in ("blocks", "plain")
            }
            lines.append(spec["memory"].format(**{**row, **updates}))
    return lines


def by_setting(rows: Sequence[Row] | Iterator[Row]) -> dict[str, list[Row]]:
    """The rows of each setting on all training scans, in order of the file."""
    groups = grouped([row for row in rows if row["shots"] is None], "setting")
    return {group[0]["setting"]: group for group in groups}


def summary(rows: Sequence[Row], metrics: Sequence[str] | Mapping[str, str]) -> list[str]:
    """How many fits, and the means of the metrics."""
    means = []
    for metric in metrics:
        values = [row[metric] for row in rows]
        means.append(NOT_MEASURED if None in values else f"{statistics.mean(values):.3f}")
    return [str(len(rows)), *means]


def pair(row: Row | None) -> str:
    if row is None or row["i_auroc"] is None or row["aupro_30"] is None:
        return NOT_MEASURED
    return f"{row['i_auroc']:.3f} / {row['aupro_30']:.3f}"


def published_name(setting: str, page: Page) -> str:
    """What the papers call it; nothing where they have no such setting."""
    if setting in page["published"]:
        return str(page["published"][setting])
    method, *options = setting.split(" ")
    return "" if options else get_method(method)[1].published or ""


def published(name: str, *, dataset: str = MVTEC_3D_AD) -> str:
    """Mean I-AUROC, AUPRO@30%, P-AUROC on the data set, by paper where papers differ."""
    values: dict[str, dict[str, float]] = {}
    for row in published_for(name, dataset=dataset) if name else ():
        values.setdefault(row.paper, {})[row.metric] = row.value
    texts = dict.fromkeys(
        ", ".join(
            f"{of_paper[metric]:.3f}" if metric in of_paper else NOT_MEASURED
            for metric in PUBLISHED_METRICS
        )
        for of_paper in values.values()
        if "i_auroc" in of_paper
    )
    return "; ".join(texts) or NOT_MEASURED


def backbones(rows: Sequence[Row]) -> str:
    names: dict[str, Any] = {}
    weights: dict[str, str] = {}
    for row in rows:  # a method of one modality names that alone
        names.update(row["backbones"])
        weights.update(row["weights"])
    blocks = ", ".join(map(str, names["point_layers"]))
    return (
        f"{names['rgb_backbone']}, {names['rgb_layers']} layers (weights: {weights['rgb']}), "
        f"Point-MAE block {blocks} (weights: {weights['point']})"
    )
