"""Processes that are killed while they write: the target is whole, and nothing stays for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from robustness import kills
from robustness.attack import ANSWER, LEFTOVER, MIXTURE, WRONG_EXCEPTION, faults
from robustness.killing import WRITERS

COUNT = 35


@pytest.mark.own_process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_leaves_what_was_or_what_will_be() -> None:
    outcomes = list(kills.run(COUNT, seed=0))
    assert faults(outcomes) == []
    assert len(outcomes) == COUNT
    assert {one.case.split(",")[0] for one in outcomes} == set(WRITERS)


@pytest.mark.parametrize(
    ("left", "kind"),
    [
        ({}, ANSWER),
        ({"target": b"new"}, ANSWER),
        ({"target": b"ne"}, MIXTURE),
        ({"target": b"new", "other": b""}, MIXTURE),
        ({".target.partial": b"ne"}, LEFTOVER),
        (None, WRONG_EXCEPTION),
    ],
)
def test_the_judge_of_a_kill(left: dict[str, bytes] | None, kind: str, tmp_path: Path) -> None:
    def kill(_writer: str, folder: Path, at: int) -> int:
        """A writer of one file; its kill leaves these files, which it does not sweep."""
        files = {"target": b"new"} if at == 0 else left
        for name, text in (files or {}).items():
            (folder / name).write_bytes(text)
        return -1 if files is None else at or 5

    attempt = kills.Attempt("file", kill, tmp_path, tmp_path)
    assert attempt.num_changes == 5
    assert attempt.kill_at(3).kind == kind


@pytest.mark.parametrize("count", [1, 7, 10, 23])
def test_kills_are_spread_over_all_changes(count: int) -> None:
    for seed in range(5):
        chosen = kills.spread(10, count, seed)
        assert len(chosen) == count
        assert set(chosen) <= set(range(1, 11))
    assert count < 10 or set(kills.spread(10, count, 0)) == set(range(1, 11))
