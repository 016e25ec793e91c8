"""The processor at hand."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str | None:
    """The processor's name, None if it cannot be known; nothing is started for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware"):
            return value.strip()
    return platform.processor() or None
