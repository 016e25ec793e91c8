"""Hostile calls of the ops: each is answered or refused, and none ends the process."""

from __future__ import annotations

from collections import Counter

import pytest
from robustness import hostile_ops
from robustness.attack import ANSWER, REFUSAL, faults

COUNT = 400


@pytest.mark.own_process
def test_hostile_calls_are_answered_or_refused() -> None:
    outcomes = list(hostile_ops.run(COUNT, seed=0))
    assert faults(outcomes) == []
    kinds = Counter(one.kind for one in outcomes)
    assert min(kinds[ANSWER], kinds[REFUSAL]) > COUNT / 10, kinds
