"""The page of GPUs and README's section of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rendering.tables import Page, Row, cells, machines, rows_of, significant, titles
from settings import BENCH, read_toml

from mmad_fast.measure.generated_pages import table_header, table_line

LONGEST_CELL = 100
"""Longer texts, reasons why something did not run, stand once below their table."""


def render(page: Page) -> str:
    """The page."""
    return render_devices(latest_rows(rows_of(page)), page)


def render_section(page: Page) -> str:
    """README's section; its tables have the columns of the page."""
    tables = read_toml(BENCH / "pages.toml")["gpu"]
    return render_readme(latest_rows(rows_of(page)), {**tables, **page})


def backend(row: Row) -> str:
    name = str(row.get("backend") or "–")
    return f"*{name}*" if row.get("is_baseline") else name


def shapes(row: Row) -> str:
    return ", ".join(f"{name}={value}" for name, value in (row.get("shapes") or {}).items()) or "–"


def median(row: Row) -> str:
    """The time, or why there is none."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    return significant(row.get("p50_ms"))


def latest_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By device: the rows of the last run of each step, in order of the file."""
    last: dict[tuple[str, str], str] = {}
    for row in rows:
        key = str(row.get("device")), step_of(row)
        last[key] = max(last.get(key, ""), row["run"])
    found: dict[str, list[Row]] = {}
    for row in rows:
        device = str(row.get("device"))
        if row["run"] == last[device, step_of(row)]:
            found.setdefault(device, []).append(row)
    return found


def step_of(row: Row) -> str:
    """Ceilings and configurations are measured in the step "kernels"."""
    return "kernels" if row["step"] in ("ceilings", "configurations") else str(row["step"])


FUNCTIONS = {
    "backend": backend,
    "shapes": shapes,
    "median": median,
    "fps": lambda row: significant(1e3 / row["p50_ms"]) if row.get("p50_ms") else "–",
    "op": lambda row: str(row["what"]).removesuffix(": fastest"),
    "is_default": lambda row: "yes" if row.get("is_default") else "no",
    "torch_ratio": lambda row: torch_ratio(row),
}


def table(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """A Markdown table, its notes and an empty line; columns in which no row has a value are left
    out."""
    notes: list[str] = []
    lines = [
        [short(text.replace("|", "/"), notes) for text in cells(row, columns, FUNCTIONS)]
        for row in rows
    ]
    used = [at for at in range(len(columns)) if at == 0 or any(line[at] != "–" for line in lines)]
    return [
        *table_header(*(titles(columns)[at] for at in used)),
        *(table_line(*(line[at] for at in used)) for line in lines),
        "",
        *(line for at, note in enumerate(notes, start=1) for line in (f"[{at}] {note}", "")),
    ]


def short(cell: str, notes: list[str]) -> str:
    """The cell, or what leads to the note below the table that says it: "not run [1]"."""
    if len(cell) <= LONGEST_CELL:
        return cell
    status, reason = cell.split(": ", 1) if ": " in cell else ("", cell)
    if reason not in notes:
        notes.append(reason)
    return f"{status} [{notes.index(reason) + 1}]"


def torch_ratio(row: Row) -> str:
    ratio = row["torch_p50_ms"] / row["p50_ms"]
    return significant(ratio) if ratio >= 1 else f"**{significant(ratio)}**"


def against_torch(rows: Sequence[Row]) -> Sequence[Row]:
    """A row per op, shapes and type that both sides have times of: the fastest of each."""
    groups: dict[tuple[str, str, str], tuple[list[Row], list[Row]]] = {}
    for row in rows:
        if row["step"] == "kernels" and row.get("p50_ms"):
            key = str(row["what"]), json.dumps(row.get("shapes")), str(row.get("dtype"))
            sides = groups.setdefault(key, ([], []))
            sides[bool(row.get("is_baseline"))].append(row)
    found = []
    for ours, baselines in groups.values():
        if ours and baselines:
            best, torch = (min(side, key=lambda row: row["p50_ms"]) for side in (ours, baselines))
            how = str(torch.get("backend")).removeprefix("torch, ")
            found.append({**best, "torch": how, "torch_p50_ms": torch["p50_ms"]})
    return found


def with_ratios(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of detectors with their ratio to the published pipeline of the same run and method:
    to the one that samples in a kernel, as the published code does, where it was timed."""
    published: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.get("is_baseline") and row.get("p50_ms"):
            published[row["run"], row["what"]] = row["p50_ms"]  # the last of them
    found = []
    for row in rows:
        base = published.get((row["run"], row["what"]))
        is_comparable = base and row.get("p50_ms") and row.get("protocol") == "paper"
        found.append({**row, "ratio_to_published": base / row["p50_ms"] if is_comparable else None})
    return found


def device_lines(rows: Sequence[Row], form: str) -> list[str]:
    """What the GPU is, and with what it was measured."""
    reports = [row for row in rows if row["step"] == "report"]
    any_row = next((row for row in reversed(rows) if row.get("versions")), rows[-1])
    packages = ("torch", "triton", "cuda", "onnxruntime", "numpy")
    lines = []
    if reports:
        report = reports[-1]
        smi = ", ".join(f"{k} {v}" for k, v in (report.get("nvidia_smi") or {}).items())
        lines += [
            f"sm_{report.get('compute_capability')}, "
            f"{report.get('multiprocessors')} multiprocessors, "
            f"{significant(report.get('memory_mib'))} MiB, "
            f"L2 {significant(report.get('l2_mib'))} MiB; {report.get('nvcc') or 'no nvcc'}.",
            "",
            *([f"nvidia-smi: {smi}.", ""] if smi else []),
        ]
    return [*lines, *machines([{"mmad_fast": None, **any_row}], form, *packages), ""]


def detector_tables(rows: Sequence[Row], page: Page) -> list[str]:
    lines: list[str] = []
    for protocol in ("paper", "end-to-end"):
        of_protocol = [row for row in with_ratios(rows) if row.get("protocol") == protocol]
        if of_protocol:
            lines += [f"**{protocol}**", "", *table(page["detectors"], of_protocol)]
    broken = [row for row in rows if row.get("protocol") is None]
    return lines + (table(page["plain"], broken) if broken else [])


def device_page(device: str, rows: Sequence[Row], page: Page) -> list[str]:
    lines = [f"## {device}", "", *device_lines(rows, page["machine"])]
    detectors = [row for row in rows if row["step"] in page["detector_steps"]]
    if detectors:
        lines += [f"### {page['detector_title']}", page["detector_note"]]
        lines += detector_tables(detectors, page)
    compared = against_torch(rows)
    if compared:
        lines += ["### Beside torch", page["torch_note"], *table(page["torch"], compared)]
    for section in page["sections"]:
        of_step = [row for row in rows if row["step"] == section["step"]]
        if of_step:
            note = [section["note"]] if "note" in section else []
            columns = section.get("columns", page["plain"])
            lines += [f"### {section['title']}", *note, *table(columns, of_step)]
        if section["step"] == "kernels":
            lines += config_lines(rows, page)
    return lines


def config_lines(rows: Sequence[Row], page: Page) -> list[str]:
    """The fastest configuration of each kernel, and those that failed."""
    of_step = [row for row in rows if row["step"] == "configurations"]
    shown = [row for row in of_step if row["what"].endswith(": fastest") or row["status"] != "ok"]
    if not shown:
        return []
    return ["### Configurations of the Triton kernels", *table(page["configurations"], shown)]


def render_devices(by_device: dict[str, list[Row]], page: Page) -> str:
    if not by_device:
        return f"{page['title']}\n{page['nothing']}"
    parts = [line for device, rows in by_device.items() for line in device_page(device, rows, page)]
    return "\n".join([page["title"], *parts]).rstrip("\n") + "\n"


def render_readme(by_device: dict[str, list[Row]], page: Page) -> str:
    """Per device: detectors in both protocols, or why not, and the ops."""
    lines: list[str] = []
    for device, rows in by_device.items():
        detectors = [row for row in rows if row["step"] in page["detector_steps"]]
        is_timed = any(row.get("p50_ms") and row.get("backend") == "cuda" for row in detectors)
        compared = against_torch(rows)
        if not is_timed and not compared:
            continue
        lines += [f"**{device}**", ""]
        if is_timed:
            lines += detector_tables(detectors, page)
        else:
            missing = [r for r in detectors if r.get("backend") == "cuda" and r.get("reason")]
            reasons = sorted({row["reason"].partition(";")[0] for row in missing})
            said = "; ".join(reasons) or "not asked for"
            lines += [page["no_detector"].format(reasons=said)]
        if compared:
            lines += [page["torch_note"], *table(page["torch"], compared)]
        lines += device_lines(rows, page["machine"])[-2:]
    return "\n".join(lines) if lines else str(page["nothing"])
