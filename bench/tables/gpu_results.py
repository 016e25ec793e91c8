"""Writes docs/benchmarks/gpu.md and the README's GPU section from bench/results/gpu.jsonl: no
figure is typed by hand.

python bench/on_gpu.py                # measures, on a machine with a GPU
python bench/tables/gpu_results.py            # rewrites the page and the section
python bench/tables/gpu_results.py --check    # exit code 1 if one of them would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmad_fast.measure.generated_pages import with_section, write_pages

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks" / "gpu.md"
RESULTS = ROOT / "bench" / "results" / "gpu.jsonl"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
LONGEST_CELL = 100
"""Longer texts, reasons why something did not run, stand once below their table."""

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

TITLE = """# On GPUs

Made by `bench/tables/gpu_results.py` from `bench/results/gpu.jsonl`, which `bench/on_gpu.py` writes
on a machine with a GPU (`make gpu`). What kernels should reach is modelled in
`../gpu_cost_model.md`.
"""
NOTHING = """\
**No GPU has been measured yet.** The kernels are checked without one: interpreted, emulated, and
compiled for every architecture.
"""
README_NOTHING = """\
Not measured yet: `make gpu` measures on a machine with an NVIDIA GPU and fills this in. Until then
`docs/gpu_cost_model.md` has a model, and the kernels are tested interpreted and emulated.
"""
KERNEL_NOTE = """\
Milliseconds on the device, second level cache overwritten before each call ("warm": not). Shares
are of the ceilings below, of the same run. The error is the distance from the float64 reference; a
backend beyond its bound is not timed. In italics: torch, for comparison. Times below about 0.2 ms
also hold what the host took to launch, and vary with it.
"""
TORCH_NOTE = """\
Our fastest backend beside the fastest of what one would write in torch with the same operands, both
of the table "Kernels". **Bold**: torch is faster. Of the pixel mapping torch is given the dense
features of the scored pixels, which our kernel makes itself.
"""
README_TORCH_NOTE = """\
Ops alone, beside the fastest of what one would write in torch; **bold**: torch is faster. Every row
and what was compared: [docs/benchmarks/gpu.md](docs/benchmarks/gpu.md).
"""
NO_DETECTOR = """\
A detector as a whole has not been timed on this GPU: {reasons}.
"""
CFM_NOTE = """\
`paper`: prepared scan to smoothed map and score. `end-to-end`: raw arrays to score. Procedural
scans, random weights. "cuda": backbones and ops on the GPU; "cpu": the same detector on this
machine's CPU; in italics the published dense pipeline in torch on the same GPU. Map difference: to
its map, relative to the maximum. Device MiB: peak of torch's allocator in a call; all on the
device: everything that the detector added there, graphs included; working: of the host.
"""


def number(value: Any, digits: int = 3) -> str:
    """Significant digits; "–" for none."""
    if value is None:
        return "–"
    if isinstance(value, (int, float)) and abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def field(name: str, digits: int = 3) -> Callable[[Row], str]:
    return lambda row: number(row.get(name), digits)


def text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row.get(name) or "–")


def share(name: str) -> Callable[[Row], str]:
    def percent(row: Row) -> str:
        value = row.get(name)
        return "–" if value is None else f"{100 * value:.0f} %"

    return percent


def backend(row: Row) -> str:
    name = str(row.get("backend") or "–")
    return f"*{name}*" if row.get("is_baseline") else name


def shapes(row: Row) -> str:
    return ", ".join(f"{name}={value}" for name, value in (row.get("shapes") or {}).items()) or "–"


def median(row: Row) -> str:
    """The time, or why there is none."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    return number(row.get("p50_ms"))


KERNEL_COLUMNS: Sequence[Column] = (
    ("op", text("what")),
    ("shapes", shapes),
    ("type", text("dtype")),
    ("backend", backend),
    ("p50 ms", median),
    ("p95", field("p95_ms")),
    ("p99", field("p99_ms")),
    ("warm p50", field("warm_p50_ms")),
    ("GFLOP/s", field("gflops")),
    ("of peak", share("flop_share")),
    ("GB/s", field("gbs")),
    ("of copy", share("bandwidth_share")),
    ("MiB", field("memory_mib")),
    ("error", field("error", 2)),
)
CONFIG_COLUMNS: Sequence[Column] = (
    ("op", lambda row: row["what"].removesuffix(": fastest")),
    ("kernel", text("kernel")),
    ("shapes", shapes),
    ("type", text("dtype")),
    ("fastest", text("config")),
    ("p50 ms", median),
    ("p50 ms of the default", field("default_p50_ms")),
    ("is the default", lambda row: "yes" if row.get("is_default") else "no"),
)
TORCH_COLUMNS: Sequence[Column] = (
    ("op", text("what")),
    ("shapes", shapes),
    ("type", text("dtype")),
    ("ours", text("backend")),
    ("p50 ms", field("p50_ms")),
    ("p50 ms of torch", field("torch_p50_ms")),
    ("torch: how", text("torch")),
    ("torch / ours", lambda row: torch_ratio(row)),
)
CUBIN_COLUMNS: Sequence[Column] = (
    ("op", text("what")),
    ("shapes", shapes),
    ("type", text("dtype")),
    ("p50 ms", median),
    ("error", field("error", 2)),
    ("difference to the compiled-when-called", field("difference_to_jit", 2)),
    ("seconds", field("seconds")),
)
CFM_COLUMNS: Sequence[Column] = (
    ("method", text("what")),
    ("backend", backend),
    ("p50 ms", median),
    ("p95", field("p95_ms")),
    ("p99", field("p99_ms")),
    ("fps", lambda row: number(1e3 / row["p50_ms"]) if row.get("p50_ms") else "–"),
    ("times faster than published", field("ratio_to_published")),
    ("map difference", field("error", 2)),
    ("weights MiB", field("weights_mib")),
    ("device MiB", field("device_memory_mib")),
    ("all on the device MiB", field("device_used_mib")),
    ("working MiB", field("peak_working_mib")),
)
GRAPH_COLUMNS: Sequence[Column] = (
    ("ops of a scan", shapes),
    ("type", text("dtype")),
    ("launched", backend),
    ("p50 ms", median),
    ("p95", field("p95_ms")),
    ("p99", field("p99_ms")),
    ("eager / graph", field("ratio_to_eager")),
)
CEILING_COLUMNS: Sequence[Column] = (
    ("what", text("what")),
    ("type", text("dtype")),
    ("p50 ms", median),
    ("GB/s", field("gbs")),
    ("GFLOP/s", field("gflops")),
)
TEST_COLUMNS: Sequence[Column] = (
    ("what", text("what")),
    ("status", text("status")),
    ("passed", field("passed", 6)),
    ("skipped", field("skipped", 6)),
    ("failed", field("failed", 6)),
    ("of GPU backends", field("gpu_tests", 6)),
    ("seconds", field("seconds")),
    ("reason", text("reason")),
)
PLAIN_COLUMNS: Sequence[Column] = (
    ("what", text("what")),
    ("status", text("status")),
    ("seconds", field("seconds")),
    ("reason", text("reason")),
)


def latest_rows(lines: Iterable[str]) -> dict[str, list[Row]]:
    """By device: the rows of the last run of each step, in order of the file."""
    rows = [json.loads(line) for line in lines]
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


def table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """A Markdown table, its notes and an empty line; columns in which no row has a value are left
    out."""
    notes: list[str] = []
    cells = [[short(cell(row).replace("|", "/"), notes) for _, cell in columns] for row in rows]
    used = [at for at in range(len(columns)) if at == 0 or any(row[at] != "–" for row in cells)]
    return [
        "| " + " | ".join(columns[at][0] for at in used) + " |",
        "|" + "---|" * len(used),
        *("| " + " | ".join(row[at] for at in used) + " |" for row in cells),
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
    return number(ratio) if ratio >= 1 else f"**{number(ratio)}**"


def against_torch(rows: Sequence[Row]) -> list[Row]:
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


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows of CFM with their ratio to the published pipeline of the same run and method: to the
    one that samples in a kernel, as the published code does, where it was timed."""
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


def device_lines(rows: Sequence[Row]) -> list[str]:
    """What the GPU is, and with what it was measured."""
    reports = [row for row in rows if row["step"] == "report"]
    any_row = next((row for row in reversed(rows) if row.get("versions")), rows[-1])
    versions = any_row.get("versions") or {}
    names = ("torch", "triton", "cuda", "onnxruntime", "numpy")
    parts = [f"{name} {versions[name]}" for name in names if versions.get(name)]
    commit = any_row.get("commit")
    lines = []
    if reports:
        report = reports[-1]
        smi = ", ".join(f"{k} {v}" for k, v in (report.get("nvidia_smi") or {}).items())
        lines += [
            f"sm_{report.get('compute_capability')}, "
            f"{report.get('multiprocessors')} multiprocessors, "
            f"{number(report.get('memory_mib'))} MiB, L2 {number(report.get('l2_mib'))} MiB; "
            f"{report.get('nvcc') or 'no nvcc'}.",
            "",
            *([f"nvidia-smi: {smi}.", ""] if smi else []),
        ]
    clean = "" if any_row.get("commit_is_clean") in (True, None) else " with changes"
    lines += [
        f"{', '.join(parts)}; mmad-fast {any_row.get('mmad_fast')}, commit "
        f"{commit[:10] if commit else 'unknown'}{clean}, {str(any_row.get('date'))[:10]}.",
        "",
    ]
    return lines


def cfm_tables(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for protocol in ("paper", "end-to-end"):
        of_protocol = [row for row in with_ratios(rows) if row.get("protocol") == protocol]
        if of_protocol:
            lines += [f"**{protocol}**", "", *table(CFM_COLUMNS, of_protocol)]
    broken = [row for row in rows if row.get("protocol") is None]
    return lines + (table(PLAIN_COLUMNS, broken) if broken else [])


SECTIONS: tuple[tuple[str, str, str, Sequence[Column]], ...] = (
    ("Kernels", "kernels", KERNEL_NOTE, KERNEL_COLUMNS),
    (
        "Scan as a CUDA graph",
        "graph",
        "Wall clock from the first launch to the last result.\n",
        GRAPH_COLUMNS,
    ),
    ("Ceilings", "ceilings", "A copy counts read and written bytes.\n", CEILING_COLUMNS),
    (
        "Compiled ahead of time",
        "cubins",
        "The cubins of `mmad-fast kernels build`, started by `mmad_fast.gpu.launcher`.\n",
        CUBIN_COLUMNS,
    ),
    ("Tests", "tests", "A skipped test of a GPU backend counts as failed.\n", TEST_COLUMNS),
    ("Sanitizer", "sanitizer", "The CUDA kernels' tests under compute-sanitizer.\n", PLAIN_COLUMNS),
    ("Build", "build", "", PLAIN_COLUMNS),
)


def device_page(device: str, rows: Sequence[Row]) -> list[str]:
    lines = [f"## {device}", "", *device_lines(rows)]
    cfm = [row for row in rows if row["step"] == "cfm"]
    if cfm:
        lines += ["### CFM", CFM_NOTE, *cfm_tables(cfm)]
    compared = against_torch(rows)
    if compared:
        lines += ["### Beside torch", TORCH_NOTE, *table(TORCH_COLUMNS, compared)]
    for title, step, note, columns in SECTIONS:
        of_step = [row for row in rows if row["step"] == step]
        if of_step:
            lines += [f"### {title}", *([note] if note else []), *table(columns, of_step)]
        if step == "kernels":
            lines += config_lines(rows)
    return lines


def config_lines(rows: Sequence[Row]) -> list[str]:
    """The fastest configuration of each kernel, and those that failed."""
    of_step = [row for row in rows if row["step"] == "configurations"]
    shown = [row for row in of_step if row["what"].endswith(": fastest") or row["status"] != "ok"]
    if not shown:
        return []
    return ["### Configurations of the Triton kernels", *table(CONFIG_COLUMNS, shown)]


def render(by_device: dict[str, list[Row]]) -> str:
    """The page."""
    if not by_device:
        return f"{TITLE}\n{NOTHING}"
    parts = [line for device, rows in by_device.items() for line in device_page(device, rows)]
    return "\n".join([TITLE, *parts]).rstrip("\n") + "\n"


def render_section(by_device: dict[str, list[Row]]) -> str:
    """The README's section, per device: CFM in both protocols, or why not, and the ops."""
    lines: list[str] = []
    for device, rows in by_device.items():
        cfm = [row for row in rows if row["step"] == "cfm"]
        is_timed = any(row.get("p50_ms") and row.get("backend") == "cuda" for row in cfm)
        compared = against_torch(rows)
        if not is_timed and not compared:
            continue
        lines += [f"**{device}**", ""]
        if is_timed:
            lines += cfm_tables(cfm)
        else:
            missing = [row for row in cfm if row.get("backend") == "cuda" and row.get("reason")]
            reasons = sorted({row["reason"].partition(";")[0] for row in missing})
            lines += [NO_DETECTOR.format(reasons="; ".join(reasons) or "not asked for")]
        if compared:
            lines += [README_TORCH_NOTE, *table(TORCH_COLUMNS, compared)]
        lines += device_lines(rows)[-2:]
    return "\n".join(lines) if lines else README_NOTHING


def render_pages() -> dict[Path, str]:
    """The page and the README, by file."""
    content = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    by_device = latest_rows(content.splitlines())
    readme = README.read_text(encoding="utf-8")
    section = render_section(by_device)
    return {PAGE: render(by_device), README: with_section(readme, BEGIN, END, section)}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
