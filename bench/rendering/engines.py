"""The page of exported engines: what builds, what runs, whether the answer is the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rendering.tables import Page, Row, machines, rows_of
from settings import BENCH, read_toml

from mmad_fast.measure.generated_pages import table_line
from mmad_fast.measure.tables import ACCURACY_COLUMNS, NOT_MEASURED

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
VARIANTS: dict[str, dict[str, Any]] = read_toml(BENCH / "sweeps" / "engines.toml")["variants"]


class Rows:
    """The last row of each key."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.by_key = {tuple(row.get(name) for name in KEY): row for row in rows}
        self.variants = [name for name in VARIANTS if any(key[1] == name for key in self.by_key)]

    def get(self, *key: Any) -> Row | None:
        """The row of (what, variant, target, engine, precision[, sm]); None without one."""
        return self.by_key.get((*key, *[None] * (len(KEY) - len(key))))

    def of(self, what: str) -> list[Row]:
        """All rows of one kind."""
        return [row for key, row in self.by_key.items() if key[0] == what]


def render(page: Page) -> str:
    """The page in Markdown."""
    return render_rows(Rows(rows_of(page)), page)


def render_rows(rows: Rows, page: Page) -> str:
    if not rows.by_key:
        return f"{page['title']}\n{page['nothing']}"
    lines = [page["title"], *cost_table(rows, page), *matrix_tables(rows, page)]
    lines += [
        *accuracy_table(rows, page),
        *attention_table(rows, page),
        *machine(rows, page["machine"]),
    ]
    return "\n".join(lines)


def cost_table(rows: Rows, page: Page) -> list[str]:
    """Parameters, multiply-adds and file sizes of each variant's graphs."""
    lines = [
        "## What the variants cost",
        "",
        page["cost_note"],
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
            lines.append(table_line(variant, graph, *cells))
    return [*lines, ""]


def num_attentions(variant: str) -> dict[str, int]:
    """Blocks by graph: each has one attention."""
    spec = VARIANTS[variant]
    return {"rgb": spec["rgb_layers"], "points": max(spec["point_layers"]) + 1}


def matrix_tables(rows: Rows, page: Page) -> list[str]:
    """One table per variant, and the reasons of what did not build or run."""
    compared = [row["num_scans"] for row in rows.of("equality") if row["refusal"] is None]
    note = page["matrix_note"].format(
        num_compared=max(compared, default=0), equal=EQUAL, change=MAX_CHANGE, sm=SHOWN_SM
    )
    footnotes: dict[str, int] = {}
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
    return [table_line(*cells)]


def footnote(text: str, footnotes: dict[str, int]) -> str:
    """The number of a note, a new one where the text has none yet."""
    return f"({footnotes.setdefault(text, len(footnotes) + 1)})"


def latency(row: Row, footnotes: dict[str, int]) -> str:
    """The time on the CPU, or why there is none."""
    if row["run_refusal"] is not None:
        return f"no {footnote(row['run_refusal'], footnotes)}"
    if not row["p50_ms"]:
        return NOT_MEASURED
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
    is_recommended = abs(change) <= MAX_CHANGE + 1e-9  # 0.755 - 0.75 is a little more than 0.005
    return shown if is_recommended else f"**not recommended**: {shown}"


def largest_change(row: Row, own: Row) -> tuple[str, float]:
    """(metric, change) of the metric that changes most."""
    changes = {name: row[name] - own[name] for name in ACCURACY_COLUMNS}
    return max(changes.items(), key=lambda item: abs(item[1]))


def accuracy_table(rows: Rows, page: Page) -> list[str]:
    """The change of every metric, for every setting that ran."""
    measured = [row for row in rows.of("accuracy") if row["refusal"] is None]
    if not measured:
        return []
    first = measured[0]
    note = page["accuracy_note"].format(
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
            lines.append(table_line(*names, *(form.format(v) for v in values)))
    return [*lines, ""]


def attention_table(rows: Rows, page: Page) -> list[str]:
    """What TensorRT-RTX made of the attentions, for every compute capability."""
    engines = [row for row in rows.of("engine") if row["target"] == "tensorrt-rtx"]
    if not engines:
        return []
    sms = sorted({row["sm"] for row in engines})
    lines = [
        "## Fused attention in TensorRT-RTX engines",
        "",
        page["attention_note"],
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
                lines.append(table_line(variant, precision, *cells))
    refusals = dict.fromkeys(row["refusal"] for row in engines if row["refusal"])
    return [*lines, "", *(f"- {text}." for text in refusals), ""]


def attention_cell(row: Row | None) -> str:
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


def machine(rows: Rows, form: str) -> list[str]:
    """What it was measured with."""
    libraries = sorted({row["library"] for row in rows.of("engine") if row.get("library")})
    first = {**next(iter(rows.by_key.values())), "libraries": "".join(f"{n}, " for n in libraries)}
    return [*machines([first], form, "onnxruntime"), ""]


def number(value: float | None, unit: float, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value / unit:.{digits}f}"
