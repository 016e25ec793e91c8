"""Runs of `infer` that are ended lose no decision; what the attack calls a lost one."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from robustness import killed_infer
from robustness.attack import ANSWER, LOST_ROW, WRONG_ANSWER, WRONG_EXCEPTION, faults
from robustness.killed_infer import Ended, judge

COUNT = 5


@pytest.mark.own_process
def test_every_decision_has_its_row() -> None:
    outcomes = list(killed_infer.run(COUNT, seed=0))
    assert faults(outcomes) == []
    assert len(outcomes) == COUNT


def line(name: str, score: float = 0.5) -> str:
    return json.dumps({"scan": name, "image_score": score}) + "\n"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, ANSWER),
        ({"number": signal.SIGKILL, "exit_code": -9}, ANSWER),
        ({"lines": [line("a")]}, LOST_ROW),
        ({"lines": [line("a"), line("a"), line("b")]}, LOST_ROW),
        ({"lines": [line("a"), line("b")[:-9]]}, LOST_ROW),
        ({"number": signal.SIGKILL, "exit_code": -9, "lines": [line("a")]}, ANSWER),
        ({"number": signal.SIGKILL, "exit_code": -9, "lines": []}, LOST_ROW),
        ({"number": signal.SIGKILL, "exit_code": -9, "lines": [line("b")]}, LOST_ROW),
        ({"lines": [line("a"), line("b", 0.6)]}, WRONG_ANSWER),
        ({"exit_code": -15}, WRONG_ANSWER),
        ({"exit_code": 0}, WRONG_ANSWER),
        ({"lines": None, "decided": [], "exit_code": -15}, ANSWER),
        ({"stderr": "Traceback (most recent call last)"}, WRONG_EXCEPTION),
        ({"stdout": '{"scans": []}'}, LOST_ROW),
        ({"stdout": '{{"scans": [{}, {}]}}'.format(line("a"), line("b"))}, ANSWER),
    ],
)
def test_the_judge_of_a_killed_run(changes: dict[str, Any], kind: str) -> None:
    ended = Ended(
        number=signal.SIGTERM,
        exit_code=143,
        decided=[("a", 0.5), ("b", 0.5)],
        lines=[line("a"), line("b")],
        stdout="",
        stderr="interrupted by SIGTERM",
    )
    assert judge(ended._replace(**changes)).kind == kind
