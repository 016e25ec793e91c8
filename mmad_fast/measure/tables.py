"""Benchmark rows, their JSON, and the tables shown to people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmad_fast.errors import InvalidInputError
from mmad_fast.measure.configuration import describe_method
from mmad_fast.measure.published import PublishedRow, load_published, published_for
from mmad_fast.threshold import CONFIDENCE, Rate

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "BenchRow",
    "PublishedRow",
    "append_jsonl",
    "load_published",
    "mean_row",
    "published_for",
    "render_rows",
    "rows_to_json",
]

Protocol = Literal["paper", "end-to-end"]
PROTOCOLS = ("paper", "end-to-end")
ACCURACY_COLUMNS = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "aupro_30": "AUPRO@30%",
    "aupro_10": "AUPRO@10%",
    "aupro_5": "AUPRO@5%",
    "aupro_1": "AUPRO@1%",
}
NOT_MEASURED = "–"
PUBLISHED_STYLE = "dim italic"


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One measured line of a benchmark. None means not measured and is null in JSON.

    Attributes:
        method: Variant, e.g. "cfm-s".
        category: Category of the data set, or "mean".
        protocol: "paper" (prepared scan to smoothed map, parameters only as memory) or
            "end-to-end" (raw arrays to score, peak memory).
        device: e.g. "cpu".
        engine: e.g. "onnxruntime", or "reference" for the dense published pipeline.
        threads: Threads used.
        weights: Where the backbones' weights came from; "random" makes accuracy meaningless.
        latency_ms_p50, latency_ms_p95, latency_ms_p99, fps: See `timing.Timing`; p95 is None below
            20 runs, p99 below 100.
        weights_mib, peak_working_mib, process_peak_mib: See `memory`.
        stage_ms: Median milliseconds per stage.
        i_auroc, p_auroc, aupro_30, aupro_10, aupro_5, aupro_1: See `metrics`.
        aupro_mode: "published" or "exact".
        published: What the papers print of this method; never a measurement of ours. None where
            backbone or layers are not the method's own.
        runs: Number of measured inferences.
        defects: Accuracy columns per defect type.
        decisions: What the threshold decided of the scans, see `evaluation.Decisions`.
        data: Name of the data set's folder.
        configuration: What the detector consists of: see `configuration.configuration_of`.
        map_difference: Of a reference row: largest difference of the detector's anomaly maps to the
            reference's, relative to their maximum.
        score_difference: Likewise of the image scores, relative to the reference's.
        shots: Training scans per category where they are a chosen few; None: all there are.
        notes: What could not be measured, or on fewer scans only, and why.
    """

    method: str
    category: str
    protocol: Protocol
    device: str
    engine: str
    threads: int | None
    weights: str | None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_ms_p99: float | None = None
    fps: float | None = None
    weights_mib: float | None = None
    peak_working_mib: float | None = None
    process_peak_mib: float | None = None
    stage_ms: Mapping[str, float] | None = None
    i_auroc: float | None = None
    p_auroc: float | None = None
    aupro_30: float | None = None
    aupro_10: float | None = None
    aupro_5: float | None = None
    aupro_1: float | None = None
    aupro_mode: Literal["published", "exact"] | None = None
    published: tuple[PublishedRow, ...] | None = None
    runs: int | None = None
    defects: Mapping[str, Mapping[str, float | None]] | None = None
    decisions: Mapping[str, Any] | None = None
    data: str | None = None
    configuration: Mapping[str, Any] | None = None
    map_difference: float | None = None
    score_difference: float | None = None
    shots: int | None = None
    notes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raises InvalidInputError on an unknown protocol or a number that is NaN or infinite."""
        if self.protocol not in PROTOCOLS:
            raise InvalidInputError(
                f"protocol is {self.protocol!r}; it must be one of {', '.join(PROTOCOLS)}"
            )
        for name, value in _numbers(self.to_dict()):
            if not math.isfinite(value):
                raise InvalidInputError(
                    f"bench row {self.method}, {self.category}: {name} is {value}; leave a value "
                    "that was not measured as None"
                )

    def to_dict(self) -> dict[str, Any]:
        """The row in JSON types, one key per field; what was not measured is None."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        row["stage_ms"] = None if self.stage_ms is None else dict(self.stage_ms)
        row["configuration"] = None if self.configuration is None else dict(self.configuration)
        row["published"] = None
        row["notes"] = list(self.notes) if self.notes else None
        if self.published:
            row["published"] = [asdict(entry) for entry in self.published]
        if self.defects is not None:
            row["defects"] = {name: dict(columns) for name, columns in self.defects.items()}
        row["decisions"] = None if self.decisions is None else dict(self.decisions)
        return row


def rows_to_json(rows: Sequence[BenchRow], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The object that `--json` prints, in JSON types: {"rows": [...], "environment": {...}}."""
    return {"rows": [row.to_dict() for row in rows], "environment": dict(environment)}


def check_results_file(path: Path | str) -> None:
    """Makes the results file and its folder if they are not there.

    Raises:
        InvalidInputError: it cannot be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
    except OSError as error:
        raise InvalidInputError(
            f"the results file {file} cannot be written ({error.strerror}); name a file in a "
            "folder that you may write to"
        ) from error


def append_jsonl(path: Path | str, row: BenchRow, environment: Mapping[str, Any]) -> None:
    """Adds one JSON line, the row with its environment, to a results file; makes its folder.

    The line is written at once, so rows of several processes do not mix.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = row.to_dict() | {"environment": dict(environment)}
    line = json.dumps(content, allow_nan=False) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def mean_row(rows: Sequence[BenchRow]) -> BenchRow:
    """The plain average over categories of each accuracy column; None if one category has none.

    Speed and memory are left out: they are not properties of a category. Published values are those
    that the papers print as their mean.

    Args:
        rows: Rows of one detector configuration, data set, protocol, device and engine, one per
            category.

    Raises:
        InvalidInputError: no rows, or rows of different methods, protocols or engines.

    Source: method facts, section 10 (class means are plain averages of per-class values).
    """
    kinds = {
        (
            describe_method(row.method, row.configuration, row.shots),
            row.data,
            row.protocol,
            row.device,
            row.engine,
            row.aupro_mode,
        )
        for row in rows
    }
    if len(kinds) != 1:
        raise InvalidInputError(
            f"a mean was asked of {len(rows)} rows of {len(kinds)} kinds {sorted(map(str, kinds))};"
            " all must have the same method, configuration, shots, data set, protocol, device, "
            "engine and AUPRO mode"
        )
    first = rows[0]
    means: dict[str, float | None] = {}
    for name in ACCURACY_COLUMNS:
        values = [getattr(row, name) for row in rows]
        means[name] = None if None in values else sum(values) / len(values)
    return BenchRow(
        method=first.method,
        category="mean",
        protocol=first.protocol,
        device=first.device,
        engine=first.engine,
        threads=first.threads,
        weights=first.weights,
        aupro_mode=first.aupro_mode,
        published=_published_mean(first.published),
        data=first.data,
        configuration=first.configuration,
        shots=first.shots,
        **means,  # type: ignore[arg-type]  # only accuracy columns, all float or None
    )


def _published_mean(
    published: tuple[PublishedRow, ...] | None,
) -> tuple[PublishedRow, ...] | None:
    """The mean rows of the method and data set that the rows of a category are about."""
    if not published:
        return None
    # Speed is printed with one data set, and stands beside others, too.
    judged = [row for row in published if row.metric in ACCURACY_COLUMNS]
    (method, dataset), *_ = ((row.method, row.dataset) for row in (*judged, *published))
    return published_for(method, dataset=dataset, category="mean")


def render_rows(rows: Sequence[BenchRow]) -> tuple[Table, ...]:
    """The rich tables of a benchmark: speed per protocol, stages, accuracy, accuracy per defect,
    decisions.

    A table without a measured value is left out. Published numbers stand below a line at the end of
    the speed and accuracy tables and are labelled with their GPU and paper.
    """
    tables = [
        _speed_table([row for row in rows if row.protocol == protocol], protocol)
        for protocol in PROTOCOLS
    ]
    tables += [_stage_table(rows), _accuracy_table(rows), _defect_table(rows)]
    tables.append(_decision_table(rows))
    return tuple(table for table in tables if table is not None)


def _speed_table(rows: Sequence[BenchRow], protocol: str) -> Table | None:
    timed = [row for row in rows if row.latency_ms_p50 is not None]
    if not timed:
        return None
    meaning = {
        "paper": "prepared scan to smoothed map, parameters only as memory",
        "end-to-end": "raw arrays to score",
    }
    table = _table(f"Speed and memory, protocol {protocol}: {meaning[protocol]}")
    for name in ("p50 ms", "p95 ms", "p99 ms", "fps", "weights MiB", "working MiB", "process MiB"):
        table.add_column(name, justify="right")
    for row in timed:
        latencies = (row.latency_ms_p50, row.latency_ms_p95, row.latency_ms_p99)
        memory = (row.weights_mib, row.peak_working_mib, row.process_peak_mib)
        table.add_row(
            *_identity(row),
            *(_number(value, 1) for value in latencies),
            _number(row.fps, 2),
            *(_number(value, 1) for value in memory),
        )
    table.add_section()
    for label, values in _published_lines(timed, ("fps", "memory_mb")):
        blank = [NOT_MEASURED] * 3
        memory_mb = f"{values['memory_mb']} MB" if "memory_mb" in values else NOT_MEASURED
        cells = [*blank, values.get("fps", NOT_MEASURED), memory_mb, NOT_MEASURED, NOT_MEASURED]
        table.add_row(*label, *cells, style=PUBLISHED_STYLE)
    return table


def _stage_table(rows: Sequence[BenchRow]) -> Table | None:
    timed = [row for row in rows if row.stage_ms]
    if not timed:
        return None
    stages = list(dict.fromkeys(stage for row in timed for stage in row.stage_ms or {}))
    if len(stages) <= len(timed):
        table = _table("Median milliseconds per stage")
        for stage in stages:
            table.add_column(stage, justify="right")
        for row in timed:
            stage_ms = row.stage_ms or {}
            table.add_row(*_identity(row), *(_number(stage_ms.get(stage), 2) for stage in stages))
        return table
    # A family may have more stages than a terminal has room for columns.
    from rich.table import Table

    table = Table("stage", title="Median milliseconds per stage", title_justify="left")
    for row in timed:
        table.add_column("\n".join(_identity(row)), justify="right", overflow="fold")
    for stage in stages:
        table.add_row(stage, *(_number((row.stage_ms or {}).get(stage), 2) for row in timed))
    return table


def _accuracy_table(rows: Sequence[BenchRow]) -> Table | None:
    judged = [row for row in rows if _has_accuracy(row)]
    if not judged:
        return None
    modes = ", ".join(sorted({str(row.aupro_mode) for row in judged if row.aupro_mode}))
    table = _table(f"Accuracy (AUPRO mode: {modes or 'not measured'})")
    for title in ACCURACY_COLUMNS.values():
        table.add_column(title, justify="right")
    for row in judged:
        table.add_row(
            *_identity(row), *(_number(getattr(row, name), 3) for name in ACCURACY_COLUMNS)
        )
    random = dict.fromkeys(row.method for row in judged if row.weights and "random" in row.weights)
    if random and all(row.method in random for row in judged):
        table.caption = "Random weights: the accuracy means nothing."
    elif random:
        table.caption = f"Random weights ({', '.join(random)}): that accuracy means nothing."
    table.add_section()
    for label, values in _published_lines(judged, tuple(ACCURACY_COLUMNS)):
        cells = [values.get(name, NOT_MEASURED) for name in ACCURACY_COLUMNS]
        table.add_row(*label, *cells, style=PUBLISHED_STYLE)
    return table


def _defect_table(rows: Sequence[BenchRow]) -> Table | None:
    judged = [row for row in rows if row.defects]
    if not judged:
        return None
    table = _table("Accuracy per defect type, against the good scans")
    table.add_column("defect")
    for title in ACCURACY_COLUMNS.values():
        table.add_column(title, justify="right")
    for row in judged:
        for defect, columns in (row.defects or {}).items():
            values = (_number(columns.get(name), 3) for name in ACCURACY_COLUMNS)
            table.add_row(*_identity(row), defect, *values)
    return table


def _decision_table(rows: Sequence[BenchRow]) -> Table | None:
    decided = [row for row in rows if row.decisions]
    if not decided:
        return None
    table = _table(f"Decisions, with {100 * CONFIDENCE:g} % intervals")
    for name in ("threshold from", "good scans rejected, promised", "measured", "anomalous missed"):
        table.add_column(name, overflow="fold")
    for row in decided:
        content = row.decisions or {}
        record = content["threshold"]
        table.add_row(
            *_identity(row),
            f"{record['num_scans']} scans, {record['source']}" if record else NOT_MEASURED,
            _rate(record and record["false_reject_rate"]),
            *(_rate(content[name]) for name in ("false_rejects", "misses")),
        )
    return table


def _rate(content: Mapping[str, Any] | None) -> str:
    """A rate with its interval, and its counts where it was measured."""
    if content is None:
        return NOT_MEASURED
    counts = f"{content['count']} of {content['num_scans']}, " if "count" in content else ""
    return counts + str(Rate(*(content[one.name] for one in fields(Rate))))


def _table(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("method", "category", "device, engine"):
        table.add_column(name, overflow="fold")
    return table


def _identity(row: BenchRow) -> tuple[str, str, str]:
    threads = "" if row.threads is None else f", {row.threads} threads"
    method = describe_method(row.method, row.configuration, row.shots)
    category = row.category if row.data is None else f"{row.category}, {row.data}"
    return method, category, f"{row.device}, {row.engine}{threads}"


def _published_lines(
    rows: Sequence[BenchRow], metrics: tuple[str, ...]
) -> list[tuple[tuple[str, str, str], dict[str, str]]]:
    """Per paper and method the label cells and the printed values; where sources differ "a / b"."""
    lines: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for entry in dict.fromkeys(entry for row in rows for entry in row.published or ()):
        if entry.metric not in metrics:
            continue
        label = (
            f"{entry.method}, {entry.paper}",
            f"{entry.dataset}, {entry.category}",
            f"published (GPU: {entry.gpu})",
        )
        cells = lines.setdefault(label, {}).setdefault(entry.metric, [])
        text = f"{entry.value:g}" if entry.metric in ("fps", "memory_mb") else f"{entry.value:.3f}"
        if text not in cells:
            cells.append(text)
    return [
        (label, {metric: " / ".join(texts) for metric, texts in values.items()})
        for label, values in lines.items()
    ]


def _has_accuracy(row: BenchRow) -> bool:
    return any(getattr(row, name) is not None for name in ACCURACY_COLUMNS)


def _number(value: float | None, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def _numbers(content: Any, name: str = "") -> list[tuple[str, float]]:
    """All floats in nested dictionaries and lists, with dotted names."""
    if isinstance(content, float):
        return [(name, content)]
    if isinstance(content, Mapping):
        items = [(f"{name}.{key}".lstrip("."), value) for key, value in content.items()]
    elif isinstance(content, list):
        items = [(f"{name}[{index}]", value) for index, value in enumerate(content)]
    else:
        return []
    return [number for key, value in items for number in _numbers(value, key)]
