"""Hostile calls of the ops: each is answered or refused, and none ends the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = int(os.environ.get("MMAD_FAST_HOSTILE_OPS", "4000"))
SEED = int(os.environ.get("MMAD_FAST_HOSTILE_SEED", "0"))


@pytest.mark.own_process
def test_hostile_calls_are_answered_or_refused() -> None:
    """In a process of its own, so that a crash is a result. MMAD_FAST_HOSTILE_OPS calls."""
    script = Path(__file__).with_name("hostile_ops.py")
    process = subprocess.run(
        [sys.executable, script, "--count", str(COUNT), "--seed", str(SEED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, f"crashed: {process.returncode}\n{process.stderr[-3000:]}"
    counts = json.loads(process.stdout)
    assert sorted(counts) == ["answered", "refused"], f"{counts}\n{process.stderr[-3000:]}"
    assert min(counts.values()) > COUNT / 10, counts
