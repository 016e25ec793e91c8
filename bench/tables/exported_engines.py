"""Writes docs/benchmarks/engines.md from the rows in bench/results: no figure is typed by hand.

python bench/tables/exported_engines.py            # rewrites the page
python bench/tables/exported_engines.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmad_fast.measure.generated_pages import read_rows, write_pages
from mmad_fast.measure.tables import ACCURACY_COLUMNS, NOT_MEASURED
from mmad_fast.methods.variants import VARIANTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "engines.md"
RESULTS = ROOT / "bench" / "results" / "exported_engines.jsonl"

KEY = ("what", "variant", "target", "engine", "precision", "sm")
TARGETS = ("artifact", "onnx", "openvino", "tensorrt-rtx", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
GRAPHS = ("rgb", "points")
SHOWN_SM = 89
"""Compute capability whose TensorRT-RTX engine stands in the matrix."""
EQUAL = 1e-4
"""Largest difference of map and score to the published pipeline that counts as equal."""
MAX_CHANGE = 0.005
"""Largest change of a metric with which a precision is recommended."""
STAND_INS = (("tensorrt-rtx", "onnxruntime"), ("tensorrt-rtx", "openvino"))
"""(target, engine) of the rows that ran the graph of a TensorRT engine in its place: the first that
there is."""
MIB = 2**20

TITLE = """\
# Exported engines: what builds, what runs, what it costs

Made by `bench/tables/exported_engines.py` from `bench/results/exported_engines.jsonl`, rows of
`bench/exported_engines.py`.
"""
NOT_YET = "Not measured yet: run `bench/exported_engines.py` (its `--help` has the command).\n"
COST_NOTE = """\
Both graphs of each variant as ONNX files; multiply-adds of one scan, attention included. What a
variant does not use is not in its graphs.
"""
MATRIX_NOTE = """\
A line per variant, target and precision; sizes and times are of both graphs together. *Builds*,
*MiB*, *build s* and *p50 ms* are those of the published variant (DINO ViT-B/8, random weights:
neither depends on them), build s from the graph in its precision to the file. *p50 ms*: batch 1,
all in turns; behind it how many times as fast as the graphs that the fit wrote, in the same run.
*Equal*: of a detector with as many layers of DINOv2 ViT-S/14 and its real weights. fp32: the
largest difference to the published pipeline in torch, relative to the map's maximum or the score,
on {num_compared} scans; at most {equal:g} is equal. Other precisions: the largest change of any
metric below against the detector's own graphs; above {change:g} it is **not recommended**.

No TensorRT engine ran: there was no GPU. *Equal* is then said of the very same graph (the same
Q/DQ, the same casts), run by the CPU engine in brackets; what TensorRT's kernels round otherwise is
not in it. TensorRT-RTX is shown for sm_{sm}.
"""
ACCURACY_NOTE = """\
Difference to the detector with the graphs that its fit wrote, on all {num_scans} test scans of
{data} {category}: {backbone}, Point-MAE with random weights, published evaluation. With
{num_pairs} pairs of a good and an anomalous scan, one pair that changes places moves I-AUROC by
{step:.3f}.
"""
ATTENTION_NOTE = """\
Fused attention regions of the attentions in both graphs, by TensorRT-RTX's own list of the engine's
layers; then kernels of both graphs, and of these the ones that only move or cast. A fused region
holds both products and the softmax. In fp32 TensorRT-RTX has no fused kernel for attention: the
softmax is one of its own.
"""


class Rows:
    """The last row of each key."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.by_key = {tuple(row.get(name) for name in KEY): row for row in rows}
        self.variants = [name for name in VARIANTS if any(key[1] == name for key in self.by_key)]

    def get(self, *key: Any) -> Mapping[str, Any] | None:
        """The row of (what, variant, target, engine, precision[, sm]); None without one."""
        return self.by_key.get((*key, *[None] * (len(KEY) - len(key))))

    def of(self, what: str) -> list[Mapping[str, Any]]:
        """All rows of one kind."""
        return [row for key, row in self.by_key.items() if key[0] == what]


def render(rows: Rows) -> str:
    """The page in Markdown."""
    if not rows.by_key:
        return f"{TITLE}\n{NOT_YET}"
    footnotes: dict[str, int] = {}
    lines = [TITLE, *cost_table(rows), *matrix_tables(rows, footnotes), *accuracy_table(rows)]
    lines += [*attention_table(rows), *machine(rows)]
    return "\n".join(lines)


def cost_table(rows: Rows) -> list[str]:
    """Parameters, multiply-adds and file sizes of each variant's graphs."""
    lines = [
        "## What the variants cost",
        "",
        COST_NOTE,
        "| variant | graph | attentions | parameters, M | multiply-adds, G | "
        + " | ".join(f"{precision}, MiB" for precision in PRECISIONS)
        + " |",
        "|---|---|" + "---:|" * (3 + len(PRECISIONS)),
    ]
    for variant in rows.variants:
        for graph in GRAPHS:
            built = {
                precision: (rows.get("engine", variant, "onnx", "onnxruntime", precision) or {})
                .get("graphs", {})
                .get(graph)
                for precision in PRECISIONS
            }
            plain = built["fp32"] or {}
            cells = [
                str(num_attentions(variant)[graph]),
                number(plain.get("parameters"), 1e6, 1),
                number(plain.get("multiply_adds"), 1e9, 1),
                *(number((built[name] or {}).get("size_bytes"), MIB, 1) for name in PRECISIONS),
            ]
            lines.append(f"| {variant} | {graph} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def num_attentions(variant: str) -> dict[str, int]:
    """Blocks by graph: each has one attention."""
    spec = VARIANTS[variant]
    return {"rgb": spec.rgb_layers, "points": max(spec.point_layers) + 1}


def matrix_tables(rows: Rows, footnotes: dict[str, int]) -> list[str]:
    """One table per variant, and the reasons of what did not build or run."""
    compared = [row["num_scans"] for row in rows.of("equality") if row["refusal"] is None]
    note = MATRIX_NOTE.format(
        num_compared=max(compared, default=0), equal=EQUAL, change=MAX_CHANGE, sm=SHOWN_SM
    )
    lines = ["## The matrix", "", note]
    for variant in rows.variants:
        lines += [
            f"### {variant}",
            "",
            "| target | precision | builds | MiB | build s | runs here, p50 ms | equal |",
            "|---|---|---|---:|---:|---:|---|",
        ]
        for target in TARGETS:
            for precision in PRECISIONS:
                lines += matrix_line(rows, variant, target, precision, footnotes)
        lines.append("")
    lines += [f"{index}. {text}" for text, index in footnotes.items()]
    return [*lines, ""]


def matrix_line(
    rows: Rows, variant: str, target: str, precision: str, footnotes: dict[str, int]
) -> list[str]:
    """The line of one cell; none where it was not tried."""
    engine = {"artifact": "onnxruntime", "onnx": "onnxruntime"}.get(target, target)
    sm = SHOWN_SM if target == "tensorrt-rtx" else None
    row = rows.get("engine", variant, target, engine, precision, sm)
    if row is None:
        return []
    if row["refusal"] is not None:
        cells = [f"no {footnote(row['refusal'], footnotes)}", *[NOT_MEASURED] * 3]
    else:
        graphs = row["graphs"].values()
        times = [graph.get("build_s") for graph in graphs]
        cells = [
            "yes" if row["library"] else "by the fit",
            number(sum(graph["size_bytes"] for graph in graphs), MIB, 1),
            number(None if None in times else sum(times), 1, 1),
            latency(row, footnotes),
        ]
    name = f"{target} ({engine})" if engine != target else target
    cells = [name, precision, *cells, verdict(rows, variant, target, engine, precision)]
    return ["| " + " | ".join(cells) + " |"]


def footnote(text: str, footnotes: dict[str, int]) -> str:
    """The number of a note, a new one where the text has none yet."""
    return f"({footnotes.setdefault(text, len(footnotes) + 1)})"


def latency(row: Mapping[str, Any], footnotes: dict[str, int]) -> str:
    """The time on the CPU, or why there is none."""
    if row["run_refusal"] is not None:
        return f"no {footnote(row['run_refusal'], footnotes)}"
    time_ms, own_ms = (sum(row[name].values()) for name in ("p50_ms", "own_p50_ms"))
    ratio = "" if row["target"] == "artifact" else f" ({own_ms / time_ms:.2f}x)"
    return f"{time_ms:.0f}{ratio}"


def verdict(rows: Rows, variant: str, target: str, engine: str, precision: str) -> str:
    """Whether the answers are equal; of a TensorRT engine, those of its graph."""
    what = "equality" if precision == "fp32" else "accuracy"
    settings = STAND_INS if target.startswith("tensorrt") else ((target, engine),)
    found = [rows.get(what, variant, *setting, precision) for setting in settings]
    row = next((row for row in found if row and row["refusal"] is None), None)
    if row is None:
        return NOT_MEASURED
    stand_in = f" [{row['engine']}]" if settings is STAND_INS else ""
    if what == "equality":
        largest = max(row["map_difference"], row["score_difference"])
        return f"{'yes' if largest <= EQUAL else '**no**'}, {largest:.1e}{stand_in}"
    own = rows.get("accuracy", variant, "artifact", "onnxruntime", "fp32")
    if own is None:
        return NOT_MEASURED
    metric, change = largest_change(row, own)
    shown = f"{ACCURACY_COLUMNS[metric]} {change:+.4f}{stand_in}"
    return shown if is_recommended(change) else f"**not recommended**: {shown}"


def largest_change(row: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, float]:
    """(metric, change) of the metric that changes most."""
    changes = {name: row[name] - own[name] for name in ACCURACY_COLUMNS}
    return max(changes.items(), key=lambda item: abs(item[1]))


def is_recommended(change: float) -> bool:
    return abs(change) <= MAX_CHANGE + 1e-9  # 0.755 - 0.75 is a little more than 0.005


def accuracy_table(rows: Rows) -> list[str]:
    """The change of every metric, for every setting that ran."""
    measured = [row for row in rows.of("accuracy") if row["refusal"] is None]
    if not measured:
        return []
    first = measured[0]
    note = ACCURACY_NOTE.format(
        num_scans=first["num_scans"],
        data=first["data"],
        category=first["category"],
        backbone=first["rgb_backbone"],
        num_pairs=first["num_good"] * (first["num_scans"] - first["num_good"]),
        step=1 / (first["num_good"] * (first["num_scans"] - first["num_good"])),
    )
    lines = [
        "## What the precisions cost in accuracy",
        "",
        note,
        "| variant | graph | precision | run by | " + " | ".join(ACCURACY_COLUMNS.values()) + " |",
        "|---|---|---|---|" + "---:|" * len(ACCURACY_COLUMNS),
    ]
    for variant in rows.variants:
        own = rows.get("accuracy", variant, "artifact", "onnxruntime", "fp32")
        for row in measured:
            if row["variant"] != variant or own is None:
                continue
            form = "{:.4f}" if row is own else "{:+.4f}"
            values = [row[name] - (0 if row is own else own[name]) for name in ACCURACY_COLUMNS]
            names = [variant, row["target"], row["precision"], row["engine"]]
            if row is own:
                names[2] += ", absolute"
            lines.append("| " + " | ".join([*names, *(form.format(v) for v in values)]) + " |")
    return [*lines, ""]


def attention_table(rows: Rows) -> list[str]:
    """What TensorRT-RTX made of the attentions, for every compute capability."""
    engines = [row for row in rows.of("engine") if row["target"] == "tensorrt-rtx"]
    if not engines:
        return []
    sms = sorted({row["sm"] for row in engines})
    lines = [
        "## Fused attention in TensorRT-RTX engines",
        "",
        ATTENTION_NOTE,
        "| variant | precision | " + " | ".join(f"sm_{sm}" for sm in sms) + " |",
        "|---|---|" + "---|" * len(sms),
    ]
    for variant in rows.variants:
        for precision in PRECISIONS:
            found = [
                rows.get("engine", variant, "tensorrt-rtx", "tensorrt-rtx", precision, sm)
                for sm in sms
            ]
            if any(found):
                cells = [attention_cell(row) for row in found]
                lines.append(f"| {variant} | {precision} | " + " | ".join(cells) + " |")
    refusals = dict.fromkeys(row["refusal"] for row in engines if row["refusal"])
    return [*lines, "", *(f"- {text}." for text in refusals), ""]


def attention_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_MEASURED
    if row["refusal"] is not None:
        return "refused"
    layers = [graph["layers"] for graph in row["graphs"].values()]
    fused, kernels, moves = (
        sum(summary[name] for summary in layers)
        for name in ("fused_attention", "kernels", "reformats")
    )
    total = sum(num_attentions(row["variant"]).values())
    return f"{fused} of {total}; {kernels}, {moves}"


def machine(rows: Rows) -> list[str]:
    """What it was measured with."""
    facts = next(iter(rows.by_key.values()))
    place = facts["environment"]
    libraries = sorted({row["library"] for row in rows.of("engine") if row.get("library")})
    names = [*libraries, f"onnxruntime {place['versions'].get('onnxruntime')}"]
    return [
        f"{place['cpu']}, {facts['threads']} threads; {', '.join(names)}; mmad-fast "
        f"{place['mmad_fast']} at {str(place['commit'])[:10]}, {place['date'][:10]}.",
        "",
    ]


def number(value: float | None, unit: float, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value / unit:.{digits}f}"


def render_pages() -> dict[Path, str]:
    """The page by its file."""
    return {PAGE: render(Rows(read_rows(RESULTS)))}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
