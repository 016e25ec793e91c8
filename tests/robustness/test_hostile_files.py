"""Damaged picture files: each is read or refused by name, and none ends the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = int(os.environ.get("MMAD_FAST_HOSTILE_FILES", "2000"))
SEED = int(os.environ.get("MMAD_FAST_HOSTILE_SEED", "0"))


@pytest.mark.own_process
def test_damaged_files_are_read_or_refused() -> None:
    """In a process of its own, so that a crash is a result. MMAD_FAST_HOSTILE_FILES files."""
    script = Path(__file__).with_name("hostile_files.py")
    process = subprocess.run(
        [sys.executable, script, "--count", str(COUNT), "--seed", str(SEED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, f"crashed: {process.returncode}\n{process.stderr[-3000:]}"
    counts = json.loads(process.stdout)["counts"]
    assert sorted(counts) == ["read", "refused"], f"{counts}\n{process.stderr[-3000:]}"
    assert min(counts.values()) > COUNT / 50, counts
