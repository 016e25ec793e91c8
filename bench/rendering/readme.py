"""README's tables of detectors and of install sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rendering.tables import Page, Row, cells, rows_of, titles

from mmad_fast.measure.configuration import describe_method
from mmad_fast.measure.generated_pages import latest, table_header, table_line
from mmad_fast.measure.tables import ACCURACY_COLUMNS

IDENTITY = (
    *("method", "configuration", "shots", "data", "category", "protocol"),
    *("engine", "device", "threads", "weights"),
)
SHOWN_PACKAGES = 5
INSTALL_COLUMNS = (
    *("installed", "download MB", "disk MB", "target MB", "largest packages, MB"),
    *("`import mmad_fast`", "and `load` and the engine's library"),
)


def render(page: Page) -> str:
    return render_rows(latest(rows_of(page), *IDENTITY), page)


def render_rows(rows: Sequence[Row], page: Page) -> str:
    """The tables in Markdown."""
    timed = [row for row in rows if row["latency_ms_p50"] is not None]
    judged = [row for row in rows if row["i_auroc"] is not None and not _all_random(row["weights"])]
    parts = []
    if timed:
        parts += ["**Speed and memory**", "", *_table(timed, page["speed"], with_run=True), ""]
        parts += [*_machine_lines(timed), ""]
    if judged:
        columns = [f"{title} | .3f | {name}" for name, title in ACCURACY_COLUMNS.items()]
        parts += ["**Accuracy**", "", *_table(judged, columns, with_run=False), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row], columns: Sequence[str], *, with_run: bool) -> list[str]:
    run = ["protocol", "engine"] if with_run else ["weights"]
    machines = _machines(rows) if with_run else []
    if len(machines) > 1:
        run.append("machine")
        rows = [{**row, "machine": str(1 + machines.index(_machine(row)))} for row in rows]
    lines = table_header("method", "data", "category", *run, *titles(columns))
    for row in rows:
        method = describe_method(row["method"], row.get("configuration"), row.get("shots"))
        place = [row.get("data") or "–", row["category"], *(row[name] for name in run)]
        lines.append(table_line(method, *place, *cells(row, columns)))
    return lines


def _all_random(weights: str) -> bool:
    backbones = [part for part in weights.split(", ") if part.startswith(("rgb:", "point:"))]
    return all(part.endswith("random") for part in backbones)


def _machines(rows: Sequence[Row]) -> list[str]:
    """Each machine, software and day that rows were measured on, once."""
    return list(dict.fromkeys(_machine(row) for row in rows))


def _machine(row: Row) -> str:
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


def _machine_lines(rows: Sequence[Row]) -> list[str]:
    machines = _machines(rows)
    if len(machines) == 1:
        return machines
    return [f"{number}. {machine}" for number, machine in enumerate(machines, start=1)]


def render_install_size(page: Page) -> str:
    rows = {row["variant"]: row for row in rows_of(page)}
    return render_sizes(list(rows.values()), page["targets_mb"])


def render_sizes(rows: Sequence[Row], targets_mb: Mapping[str, int]) -> str:
    """The table in Markdown, with what it was measured on."""
    lines = table_header(*INSTALL_COLUMNS)
    for row in rows:
        packages = sorted(row["packages_mb"].items(), key=lambda item: -item[1])
        shown = [f"{name} {size:.0f}" for name, size in packages[:SHOWN_PACKAGES]]
        rest = sum(size for _, size in packages[SHOWN_PACKAGES:])
        lines.append(
            table_line(
                row["variant"],
                f"{row['download_mb']:.0f}",
                f"{row['disk_mb']:.0f}",
                _target(row, targets_mb.get(row["variant"])),
                f"{', '.join(shown)}, others {rest:.0f}",
                f"{row['import_ms']:.0f} ms, {row['import_mib']:.0f} MiB",
                f"{row['engine_import_ms']:.0f} ms, {row['engine_import_mib']:.0f} MiB",
            )
        )
    return "\n".join([*lines, "", *dict.fromkeys(map(_measured_on, rows)), ""])


def _target(row: Row, target_mb: int | None) -> str:
    if target_mb is None:
        return "–"
    return f"< {target_mb}: {'met' if row['disk_mb'] < target_mb else 'missed'}"


def _measured_on(row: Row) -> str:
    facts = row["environment"]
    return (
        f"{facts['cpu']}, {facts['os'].split()[0]} {facts['machine']}, Python {facts['python']}, "
        f"commit {(facts['commit'] or 'unknown')[:10]}, {facts['date'][:10]}."
    )
