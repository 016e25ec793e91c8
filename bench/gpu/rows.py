"""Rows of on_gpu.py: one JSON line each, written as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ops.case import Work
from settings import BENCH, append_rows, read_toml

SETTINGS = read_toml(BENCH / "sweeps" / "gpu.toml")
OK, FAILED, NOT_RUN = "ok", "failed", "not run"
"""A row's status: measured or passed; wrong or broken; cannot run here, for the row's reason."""


@dataclass
class RowFile:
    """The rows of one run.

    Attributes:
        path: The file they are appended to; None keeps them in memory only.
        facts: Fields of every row: run, device, environment.
        rows: What was written so far.
    """

    path: Path | None
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(
        self, step: str, what: str, *, status: str = OK, reason: str = "", **more: Any
    ) -> None:
        """Appends a row.

        Args:
            step: The step of on_gpu.py.
            what: What was measured or tried.
            status: OK, FAILED or NOT_RUN.
            reason: Why, where it is not OK.
            more: The row's other fields.
        """
        row = {"step": step, "what": what, "status": status, "reason": reason, **more, **self.facts}
        self.rows.append(row)
        if self.path is not None:
            append_rows(self.path, [row])
        note = f": {reason}" if reason else ""
        figures = [f"{key} {more[key]:.4g}" for key in ("p50_ms", "error") if more.get(key)]
        label = " ".join(str(more[key]) for key in ("backend", "config") if more.get(key))
        print(f"[{step}] {what} {label} {status}{note} {' '.join(figures)}".rstrip(), flush=True)

    @contextmanager
    def guarded(self, step: str, what: str, **facts: Any) -> Iterator[Callable[..., None]]:
        """Turns whatever goes wrong inside into a FAILED row: one broken part must not cost the
        others' results, and a run on hardware may meet errors of any kind. Gives `write` for rows
        with these facts."""
        write = partial(self.write, step, what, **facts)
        try:
            yield write
        except Exception as error:
            write(status=FAILED, reason=one_line(error))

    def failures(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] == FAILED]


def one_line(error: BaseException, *, limit: int = 400) -> str:
    """The error's class and text without line breaks."""
    text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:limit]


def rate_fields(
    work: Work, p50_ms: float, ceilings: Mapping[str, float], dtype: str
) -> dict[str, Any]:
    """Achieved rates and their share of the ceilings of the same run.

    Args:
        work: What a call does.
        p50_ms: How long it takes.
        ceilings: "copy" in GB/s, and GFLOP/s by "float32", "tf32", "float16", "bfloat16", as
            measured; may lack some.
        dtype: Of the operands of the products.

    Returns:
        gflops and gbs; flop_share and bandwidth_share, None without a ceiling.
    """
    gflops = 1e-6 * work.flop / p50_ms
    gbs = 1e-6 * work.device_bytes / p50_ms
    flop_ceiling = ceilings.get(dtype if work.matrix_flop else "float32")
    copy = ceilings.get("copy")
    return {
        "gflops": gflops,
        "gbs": gbs,
        "flop_share": None if not flop_ceiling else gflops / flop_ceiling,
        "bandwidth_share": None if not copy else gbs / copy,
    }
