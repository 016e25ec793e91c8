"""An artifact that is replaced while it is read: every answer is that of one detector."""

from __future__ import annotations

from pathlib import Path

import pytest
from robustness import replacement
from robustness.attack import ANSWER, MIXTURE, REFUSAL, WRONG_EXCEPTION, faults
from robustness.replacement import REPLACED, outcome_of

from mmad_fast.errors import ArtifactError

COUNT = 60


@pytest.mark.own_process
def test_every_answer_is_that_of_one_artifact() -> None:
    outcomes = list(replacement.run(COUNT, seed=0))
    assert faults(outcomes) == []
    answers = {one.case for one in outcomes if one.kind == ANSWER}
    assert {case[-1] for case in answers} == {"0", "1"}  # both were there to be mixed


def test_the_judge_of_a_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(error: Exception | None) -> tuple:
        if error is not None:
            raise error
        return (1.0, 20.0)

    def judged(
        error: Exception | None, expected: tuple[tuple, tuple], *, late: bool = False
    ) -> str:
        def reader(path: Path) -> tuple:
            return reading(error)

        if late:
            monkeypatch.setattr(replacement, "replayed", reader)
        return outcome_of(reader, tmp_path, expected).kind

    pair, mixed = ((1.0, 20.0), (2.0, 10.0)), ((1.0, 10.0), (2.0, 20.0))
    assert judged(None, pair) == ANSWER
    assert judged(None, mixed) == MIXTURE
    assert judged(ArtifactError("damaged"), pair) == WRONG_EXCEPTION
    assert judged(KeyError("rgb"), pair) == WRONG_EXCEPTION
    gone = ArtifactError(f"the artifact {REPLACED} loaded")
    assert judged(gone, pair) == WRONG_EXCEPTION
    assert judged(gone, pair, late=True) == REFUSAL
