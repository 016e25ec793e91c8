"""The decision threshold: what it promises, what it says, and that a damaged one is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from test_artifact import rewrite_manifest

from mmad_fast.artifact import read_artifact
from mmad_fast.detector import Detector, load
from mmad_fast.errors import ArtifactError, InvalidInputError, MmadFastError
from mmad_fast.threshold import (
    OWN_LEFT_OUT,
    SET_ASIDE,
    UNKNOWN,
    VALIDATION,
    Threshold,
    describe_threshold,
    promised_rate,
    scans_to_promise,
)

RECORD = Threshold.of_scores([1.0, 2.0, 3.0, 4.0], 0.99, VALIDATION).to_dict()
RATE = RECORD["false_reject_rate"]
OLD_RECORD = {"value": 1.5, "quantile": 0.99, "num_scans": 4}

NO_NUMBERS = (math.nan, math.inf, -math.inf, "1.5", "nan", True, None, [1.5], {}, 10**400)
BAD_RECORDS: list[tuple[str, Any]] = [
    *(("threshold.value", {**RECORD, "value": value}) for value in NO_NUMBERS),
    *(("threshold.value", {**OLD_RECORD, "value": value}) for value in NO_NUMBERS),
    *(("threshold.quantile", {**RECORD, "quantile": q}) for q in (*NO_NUMBERS, -0.01, 1.01)),
    *(
        ("threshold.num_scans", {**RECORD, "num_scans": count})
        for count in (*NO_NUMBERS, -4, 0, 4.0, 10**12)
    ),
    *(("threshold.source", {**RECORD, "source": s}) for s in ("guess", "", None, 3, ["training"])),
    *(
        ("false_reject_rate", {**RECORD, "false_reject_rate": rate})
        for rate in (0.2, "0.2", [], {}, {**RATE, "more": 1})
    ),
    *(
        (f"false_reject_rate.{name}", {**RECORD, "false_reject_rate": {**RATE, name: value}})
        for name in RATE
        for value in (math.nan, math.inf, "0.2", True, None, -0.1, 1.5)
    ),
    *(
        ("inside of its interval", {**RECORD, "false_reject_rate": {**RATE, **change}})
        for change in (
            {"low": 0.9},
            {"high": 0.1},
            {"low": 0, "value": 0},
            {"low": 0, "value": 1e-320},  # of which 1 in infinity would be told
        )
    ),
    *(
        ("threshold is", {key: value for key, value in RECORD.items() if key != missing})
        for missing in RECORD
    ),
    *(("threshold is", record) for record in (1.5, "1.5", [], {}, True, {**RECORD, "more": 1})),
]


@pytest.mark.parametrize(("words", "record"), BAD_RECORDS)
def test_a_damaged_threshold_is_refused_when_it_is_loaded(
    tiny_artifact: Path, tmp_path: Path, words: str, record: Any
) -> None:
    (tmp_path / "artifact").mkdir()
    for file in tiny_artifact.iterdir():  # linked but for the manifest, which is small
        if file.name != "manifest.json":
            (tmp_path / "artifact" / file.name).hardlink_to(file)
    shutil.copy(tiny_artifact / "manifest.json", tmp_path / "artifact")
    rewrite_manifest(tmp_path / "artifact", lambda content: content.update(threshold=record))
    # What no JSON may hold, such as NaN, is refused before the field is looked at.
    with pytest.raises(ArtifactError, match=f"{words}|not a readable manifest") as caught:
        read_artifact(tmp_path / "artifact", verify=False)
    assert "copy the artifact again" in str(caught.value)


def test_good_records_come_back_as_they_were(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    old = Threshold(1.5, 0.99, 4, UNKNOWN, None)
    for record, expected in (
        (RECORD, Threshold.of_scores([1, 2, 3, 4], 0.99, VALIDATION)),
        (OLD_RECORD, old),
        (old.to_dict(), old),
        ({**OLD_RECORD, "value": 2}, Threshold(2.0, 0.99, 4)),
        (None, None),
    ):
        rewrite_manifest(folder, lambda content, record=record: content.update(threshold=record))
        assert read_artifact(folder).manifest.threshold == expected
        detector = load(folder)
        assert detector.threshold == (None if expected is None else expected.value)
    assert json.loads(json.dumps(RECORD)) == RECORD


@pytest.fixture
def detector(tiny_artifact: Path) -> Detector:
    return load(tiny_artifact)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1.5", True, np.bool_(1), [1.0]])
def test_a_threshold_that_is_set_must_be_a_finite_number(detector: Detector, value: Any) -> None:
    before = detector.threshold
    with pytest.raises(InvalidInputError, match="threshold is .*must be a finite number, or None"):
        detector.threshold = value
    assert detector.threshold == before


def test_a_score_equal_to_the_threshold_is_good(detector: Detector, scan_arrays) -> None:
    score = detector.infer(*scan_arrays).image_score
    for threshold, expected in (
        (score, False),
        (math.nextafter(score, -math.inf), True),
        (math.nextafter(score, math.inf), False),
        (np.float32(0), True),
        (None, None),
    ):
        detector.threshold = threshold
        result = detector.infer(*scan_arrays)
        assert result.is_anomalous is expected
        assert result.threshold == threshold


def test_the_threshold_is_a_quantile_rounded_up_to_a_score() -> None:
    scores = [3.0, 1.0, 2.0, 4.0]
    for quantile, value, rank in ((0.5, 3.0, 3), (0.99, 4.0, 4), (1, 4.0, 4), (0, 1.0, 1)):
        threshold = Threshold.of_scores(scores, quantile, VALIDATION)
        assert (threshold.value, threshold.rank) == (value, rank)
        assert threshold.value == np.quantile(scores, quantile, method="higher")
        assert threshold.false_reject_rate == promised_rate(4, rank)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_not_finite_give_no_threshold(score: float) -> None:
    with pytest.raises(MmadFastError, match="score is not finite, so there is no threshold"):
        Threshold.of_scores([1.0, score, 2.0], 0.99, VALIDATION)


@pytest.mark.parametrize(
    ("num_scans", "rank"), [(1, 1), (4, 4), (4, 1), (24, 24), (24, 20), (299, 299), (1000, 991)]
)
def test_the_promised_rate_is_that_of_the_order_statistic(num_scans: int, rank: int) -> None:
    """The rank-th of n scores has a share of at most p of all good parts above it where at least
    n - rank + 1 of n parts are in the topmost p: the tails of a binomial distribution."""
    rate, above = promised_rate(num_scans, rank), num_scans - rank + 1
    assert rate.value == pytest.approx(above / (num_scans + 1))
    assert binom.sf(above - 1, num_scans, rate.low) == pytest.approx(0.025)
    assert binom.sf(above - 1, num_scans, rate.high) == pytest.approx(0.975)


def test_the_promised_rate_holds_for_drawn_scores() -> None:
    """Of 20,000 thresholds, each the 9th of 10 uniform scores: mean 2 / 11, and 95 % inside."""
    scores = np.sort(np.random.default_rng(0).uniform(size=(20_000, 10)), axis=1)
    rejected, rate = 1 - scores[:, 8], promised_rate(10, 9)
    assert rejected.mean() == pytest.approx(rate.value, abs=0.003)
    is_inside = (rejected >= rate.low) & (rejected <= rate.high)
    assert is_inside.mean() == pytest.approx(0.95, abs=0.006)


def test_how_many_scans_promise_a_rate() -> None:
    assert scans_to_promise(0.01) == 299
    assert 0.99**299 <= 0.05 < 0.99**298
    assert scans_to_promise(0.05) == 59


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (
            Threshold.of_scores([1, 2, 3, 4.56789], 0.99, VALIDATION),
            "threshold 4.568 = the largest of 4 scores (validation scans): about 1 in 5 good parts "
            "will be rejected (95 % interval 0.63 % to 60 %); the largest of 299 would promise at "
            "most 1 %",
        ),
        (
            Threshold.of_scores(range(24), 0.9, OWN_LEFT_OUT),
            "threshold 21 = the 3rd largest of 24 scores (training scans, each scored without its "
            "own rows in the memory banks): about 1 in 8 good parts will be rejected (95 % "
            "interval 2.7 % to 27 %); the largest of 29 would promise at most 10 %",
        ),
        (
            Threshold.of_scores(range(400), 1, SET_ASIDE),
            "threshold 399 = the largest of 400 scores (training scans that were set aside and not "
            "fitted on): about 1 in 401 good parts will be rejected (95 % interval 0.0063 % to "
            "0.92 %)",
        ),
        (
            Threshold.of_scores([1, 2, 3], 0, VALIDATION),
            "threshold 1 = the 3rd largest of 3 scores (validation scans): most good parts will be "
            "rejected (95 % interval 29 % to 99 %)",
        ),
        (
            Threshold.of_scores([2], 0.99, VALIDATION),
            "threshold 2 = the only score (validation scans): about 1 in 2 good parts will be "
            "rejected (95 % interval 2.5 % to 98 %); the largest of 299 would promise at most 1 %",
        ),
        (
            Threshold(1.5, 0.99, 4),
            "threshold 1.5 = the largest of 4 scores (scans that this artifact does not name): how "
            "many good parts it rejects is unknown; fit the detector again",
        ),
        (
            None,
            "no threshold: scans are scored, not decided; put good scans that are not fitted on "
            "into validation/good, the more the better, and fit again",
        ),
    ],
)
def test_it_is_told_in_one_plain_line(threshold: Threshold | None, words: str) -> None:
    assert describe_threshold(threshold) == words
