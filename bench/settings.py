"""Where things lie, and settings as data: TOML files, for Python 3.11 or the package tomli."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmad_fast.measure.timing import Timing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
RESULTS = BENCH / "results"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def version_of(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def timing_fields(latencies_ms: Sequence[float]) -> dict[str, Any]:
    """The timing fields of a row; None and 0 runs of no latencies."""
    names = ("p50_ms", "p95_ms", "p99_ms", "runs")
    if not latencies_ms:
        return {**dict.fromkeys(names), "runs": 0}
    timing = Timing.from_latencies(latencies_ms)
    return {name: getattr(timing, name) for name in names}


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to a results file, one JSON line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
