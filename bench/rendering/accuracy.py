"""Accuracy of methods over seeds and categories with its range, by category and by defect type, and
their speed beside the published pipelines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rendering.configurations import published, published_name
from rendering.detectors import fit_tables, speed_tables
from rendering.tables import Page, Row, grouped, rows_of

from mmad_fast.measure.configuration import configuration_of
from mmad_fast.measure.configuration import published_name as configured_name
from mmad_fast.measure.generated_pages import measured_on, table_header, table_line
from mmad_fast.measure.published import published_for
from mmad_fast.measure.tables import ACCURACY_COLUMNS, NOT_MEASURED
from mmad_fast.methods.family import get_method


def render(page: Page) -> str:
    """The sections of a page; one whose rows are not there is left out."""
    lines, shown = [page["title"]], []
    for section in page["sections"]:
        rows = rows_of(section)
        if not rows:
            continue
        shown += rows
        lines += _TABLES[section.get("kind", "accuracy")](rows, section)
        if "published_note" in section:
            lines += [section["published_note"], *published_speeds(rows), ""]
    return "\n".join([*lines, *measured_on(shown), ""])


def accuracy_tables(rows: Sequence[Row], section: Page) -> list[str]:
    """Means over categories and seeds with their range, then each category and defect type."""
    settings = grouped(rows, "setting", "shots", "weights", *section.get("usual", {}))
    lines = [section["title"]]
    header = ("setting", "weights", "categories x seeds", *ACCURACY_COLUMNS.values())
    lines += table_header(*header, "published I-AUROC, AUPRO@30%, P-AUROC")
    for group in settings:
        number = len({row["category"] for row in group})
        # A seed that lacks a category has the mean of others.
        by_seed = [fits for fits in grouped(group, "seed") if len(fits) == number]
        fits = f"{number} x {len(by_seed)}"
        figures = [spread([mean(fits_, name) for fits_ in by_seed]) for name in ACCURACY_COLUMNS]
        figures.append(published_figures(group[0], section))
        lines.append(table_line(label(group[0], section), weights(group[0]), fits, *figures))
    lines += ["", section["category_note"]]
    categories = sorted({row["category"] for row in rows})
    lines += table_header("setting", "weights", *categories)
    for group in settings:
        figures = [pair([row for row in group if row["category"] == one]) for one in categories]
        lines.append(table_line(label(group[0], section), weights(group[0]), *figures))
    lines += ["", section["defect_note"]]
    defects = sorted({defect for row in rows for defect in row["defects"]})
    lines += table_header("setting", "weights", *defects)
    for group in settings:
        figures = [
            pair([{**row, **row["defects"][one]} for row in group if one in row["defects"]])
            for one in defects
        ]
        lines.append(table_line(label(group[0], section), weights(group[0]), *figures))
    return [*lines, ""]


def published_speeds(rows: Sequence[Row]) -> list[str]:
    """A table of the papers' frames per second of each method that has some."""
    lines = table_header("method", "fps", "GPU", "source")
    for method in dict.fromkeys(row["method"] for row in rows):
        name = get_method(method)[1].published
        for figure in published_for(name) if name else ():
            if figure.metric == "fps":
                cells = (method, f"{figure.value:g}", figure.gpu, figure.source)
                lines.append(table_line(*cells))
    return lines


def published_figures(row: Row, section: Page) -> str:
    """What the papers print of the setting: by its name, or where the section does not say how the
    papers call it, by what the detector consists of."""
    if "published" in section:
        return published(published_name(label(row, section), section))
    configuration = configuration_of(row["parameters"])
    name = configured_name(row["setting"].partition(" ")[0], configuration, row["shots"])
    return published(name or "", dataset=section["published_dataset"])


def label(row: Row, section: Page) -> str:
    """The setting with what is not usual in its columns, and on how few scans it was fitted."""
    usual = section.get("usual", {})
    changed = [f"{name}={row[name]}" for name, value in usual.items() if row[name] != value]
    scans = [f"({row['shots']} scans)"] if row["shots"] else []
    return " ".join([str(row["setting"]), *changed, *scans])


_TABLES = {"accuracy": accuracy_tables, "speed": speed_tables, "fit": fit_tables}


def weights(row: Row) -> str:
    """Where the weights of each branch came from."""
    return ", ".join(f"{role}: {kind}" for role, kind in row["weights"].items()) or "none needed"


def mean(rows: Sequence[Row], metric: str) -> float | None:
    values = [row[metric] for row in rows]
    return None if None in values else statistics.mean(values)


def spread(values: Sequence[float | None]) -> str:
    """The mean over the seeds, and where there are several the smallest and largest."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return NOT_MEASURED
    text = f"{statistics.mean(found):.3f}"
    return f"{text} ({min(found):.3f}–{max(found):.3f})" if len(found) > 1 else text


def pair(rows: Sequence[Row]) -> str:
    """Mean I-AUROC over fits, with its range, and mean AUPRO."""
    if not rows:
        return NOT_MEASURED
    aupro = mean(rows, "aupro_30")
    aupro_text = NOT_MEASURED if aupro is None else f"{aupro:.3f}"
    return f"{spread([row['i_auroc'] for row in rows])} / {aupro_text}"
