"""README's tables of detectors and of install sizes."""

from __future__ import annotations

from collections.abc import Sequence

from rendering.tables import Page, Row, machines, rows_of, table

from mmad_fast.measure.configuration import describe_method
from mmad_fast.measure.generated_pages import latest
from mmad_fast.measure.tables import ACCURACY_COLUMNS

IDENTITY = (
    *("method", "configuration", "shots", "data", "category", "protocol"),
    *("engine", "device", "threads", "weights"),
)
PACKAGES = ("onnxruntime", "torch", "numpy")
SHOWN_PACKAGES = 5


def render(page: Page) -> str:
    return render_rows(latest(rows_of(page), *IDENTITY), page)


def render_rows(rows: Sequence[Row], page: Page) -> str:
    """The tables in Markdown. Of several machines each has a number, and every row has its
    machine's."""
    timed = [row for row in rows if row["latency_ms_p50"] is not None]
    judged = [row for row in rows if row["i_auroc"] is not None and not _all_random(row["weights"])]
    lines = machines(timed, page["machine"], *PACKAGES)
    functions = {
        "method": lambda row: describe_method(
            row["method"], row.get("configuration"), row.get("shots")
        ),
        "machine": lambda row: str(1 + lines.index(machines([row], page["machine"], *PACKAGES)[0])),
    }
    parts = []
    if timed:
        columns = [*page["place"], *page["speed"]]
        if len(lines) == 1:
            columns.remove("machine | machine")
        numbered = [f"{number}. {line}" for number, line in enumerate(lines, start=1)]
        parts += ["**Speed and memory**", "", *table(timed, columns, functions), ""]
        parts += [*(numbered if len(lines) > 1 else lines), ""]
    if judged:
        metrics = [f"{title} | .3f | {name}" for name, title in ACCURACY_COLUMNS.items()]
        columns = [*page["place"], *page["accuracy"], *metrics]
        parts += ["**Accuracy**", "", *table(judged, columns, functions), ""]
    return "\n".join(parts)


def _all_random(weights: str) -> bool:
    backbones = [part for part in weights.split(", ") if part.startswith(("rgb:", "point:"))]
    return all(part.endswith("random") for part in backbones)


def render_install_size(page: Page) -> str:
    rows = {row["variant"]: row for row in rows_of(page)}
    return render_sizes(list(rows.values()), page)


def render_sizes(rows: Sequence[Row], page: Page) -> str:
    """The table in Markdown, with what it was measured on."""
    functions = {
        "target": lambda row: _target(row, page["targets_mb"].get(row["variant"])),
        "packages": _packages,
        "import": lambda row: "{import_ms:.0f} ms, {import_mib:.0f} MiB".format(**row),
        "engine": lambda row: "{engine_import_ms:.0f} ms, {engine_import_mib:.0f} MiB".format(
            **row
        ),
    }
    lines = table(rows, page["columns"], functions)
    return "\n".join([*lines, "", *machines(rows, page["machine"]), ""])


def _packages(row: Row) -> str:
    """The largest packages and the rest, in MB."""
    packages = sorted(row["packages_mb"].items(), key=lambda item: -item[1])
    shown = [f"{name} {size:.0f}" for name, size in packages[:SHOWN_PACKAGES]]
    rest = sum(size for _, size in packages[SHOWN_PACKAGES:])
    return f"{', '.join(shown)}, others {rest:.0f}"


def _target(row: Row, target_mb: int | None) -> str:
    if target_mb is None:
        return "–"
    return f"< {target_mb}: {'met' if row['disk_mb'] < target_mb else 'missed'}"
