"""A short soak, and what its judge calls a leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from robustness import soak
from robustness.attack import ANSWER, LEAK, LOST_ROW, faults

SECONDS = 8


@pytest.mark.own_process
def test_nothing_grows_and_the_answers_stay() -> None:
    outcomes = list(soak.run(SECONDS, seed=0))
    assert faults(outcomes) == []
    figures = outcomes[-1].figures
    assert figures is not None
    assert figures["blocks"] == len(outcomes) - 1 >= 4
    assert figures["descriptors_end"] == figures["descriptors_start"] > 3
    assert figures["threads_end"] == figures["threads_start"] > 1


def judged(tmp_path: Path, *, line: str = "{}", **grown: Any) -> tuple[str, str]:
    """(kind, what) of 400 blocks in which these values rise by so much a block, from 100."""
    (tmp_path / "results.jsonl").write_text(line + "\n")
    judge = soak._Line.__new__(soak._Line)
    judge._results = tmp_path
    names = ("cpu_ms", "resident_mib", "descriptors", "threads")
    judge._blocks = [
        {name: 100 + block * grown.get(name, 0) for name in names} for block in range(400)
    ]
    outcome = judge.judge()
    return outcome.kind, outcome.what.split(":")[0]


def test_the_judge_of_a_soak(tmp_path: Path) -> None:
    assert judged(tmp_path) == (ANSWER, "")
    assert judged(tmp_path, resident_mib=0.05, cpu_ms=0.1) == (ANSWER, "")
    assert judged(tmp_path, resident_mib=0.1) == (LEAK, "resident memory")
    assert judged(tmp_path, descriptors=0.01) == (LEAK, "descriptors")
    assert judged(tmp_path, threads=0.01) == (LEAK, "threads")
    assert judged(tmp_path, cpu_ms=0.4) == (LEAK, "processor time")
    assert judged(tmp_path, line='{"scan": "a", ') == (LOST_ROW, "results.jsonl")
