"""What the progress bar says of the time left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmad_fast.cli.output import TimeLeft


def told(steps: list[tuple[float, str, int, int]]) -> list[str]:
    """What is said at these moments, (seconds, stage, done, total)."""
    moments: Iterator[float] = iter([step[0] for step in steps])
    left = TimeLeft(lambda: next(moments))
    return [left.text(*step[1:]) for step in steps]


def test_the_rest_is_taken_to_go_as_what_was_done() -> None:
    steps = [(0.0, "train", 0, 100), (10.0, "train", 1, 100), (40.0, "train", 4, 100)]
    assert told(steps) == ["", "0:16:30 left", "0:16:00 left"]
    assert told([(0.0, "train", 0, 9000), (30.0, "train", 1, 9000)])[1] == "3 days, 2:59:30 left"


def test_a_training_that_goes_on_is_not_credited_with_what_was_done_before() -> None:
    assert told([(0.0, "train", 90, 100), (5.0, "train", 91, 100)])[1] == "0:00:45 left"


@pytest.mark.parametrize(
    "last", [(0.5, "train", 1, 100), (9.0, "train", 100, 100), (9.0, "threshold", 1, 8)]
)
def test_nothing_is_said_too_early_at_the_end_and_of_a_new_stage(
    last: tuple[float, str, int, int],
) -> None:
    assert told([(0.0, "train", 0, 100), last])[1] == ""


def test_the_same_stage_again_begins_anew() -> None:
    steps = [(0.0, "fit", 0, 4), (8.0, "fit", 4, 4), (9.0, "fit", 0, 4), (12.0, "fit", 1, 4)]
    assert told(steps)[3] == "0:00:09 left"
