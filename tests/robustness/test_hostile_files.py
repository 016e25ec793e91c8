"""Damaged picture files: each is read or refused by name, and none ends the process."""

from __future__ import annotations

from collections import Counter

import pytest
from robustness import hostile_files
from robustness.attack import ANSWER, REFUSAL, faults

COUNT = 1000


@pytest.mark.own_process
def test_damaged_files_are_read_or_refused() -> None:
    outcomes = list(hostile_files.run(COUNT, seed=0))
    assert faults(outcomes) == []
    kinds = Counter(one.kind for one in outcomes)
    assert min(kinds[ANSWER], kinds[REFUSAL]) > COUNT / 50, kinds
