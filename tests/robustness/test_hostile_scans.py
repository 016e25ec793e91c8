"""No scan crashes a detector, blocks it, or gets an answer that is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_arrays
from robustness import hostile_scans
from robustness.attack import (
    ANSWER,
    DIFFERENT_REPEAT,
    NOT_FINITE,
    REFUSAL,
    WRONG_ANSWER,
    WRONG_EXCEPTION,
    faults,
)
from robustness.hostile_scans import HostileScan, draw, judge, judge_rewritten

import mmad_fast
from mmad_fast.errors import EmptyScanError

COUNT = 500


@pytest.mark.own_process
def test_every_scan_is_answered_or_refused() -> None:
    outcomes = list(hostile_scans.run(COUNT, seed=0))
    assert faults(outcomes) == []
    kinds = Counter(one.kind for one in outcomes)
    assert kinds[ANSWER] > COUNT / 4
    assert kinds[REFUSAL] > COUNT / 10
    families = {one.case.split(": ")[1].split(",")[0] for one in outcomes}
    assert families == set(hostile_scans.FAMILIES)


def test_a_number_and_a_seed_name_a_scan() -> None:
    family, scan, _ = draw(3, 7)
    same_family, same, _ = draw(3, 7)
    assert (same_family, same.kind, same.unit) == (family, scan.kind, scan.unit)
    np.testing.assert_array_equal(same.xyz, scan.xyz)
    assert len({draw(seed, case)[1].kind for seed in (3, 4) for case in (7, 8)}) == 4


def test_every_kind_of_nastiness_is_tried() -> None:
    kinds = " ".join(draw(0, case)[1].kind for case in range(1500))
    parts = {
        **hostile_scans.SURFACES,
        **hostile_scans.CONTENTS,
        **hostile_scans.COLORS,
        **hostile_scans.LAYOUTS,
    }
    assert [part for part in parts if hostile_scans._name(part) not in kinds] == []


class FakeDetector:
    """A detector whose answers are changed by a function of the call's number."""

    def __init__(self, detector: mmad_fast.Detector, change: Any) -> None:
        self._detector, self._change, self._calls = detector, change, 0
        self.options, self.family = detector.options, detector.family
        self.threshold, self.method = detector.threshold, detector.method

    def infer(self, rgb: Any, xyz: Any, *, unit: str) -> mmad_fast.Result:
        self._calls += 1
        return self._change(self._detector.infer(rgb, xyz, unit=unit), self._calls, xyz)


def _nan(result: mmad_fast.Result, _calls: int, _xyz: Any) -> mmad_fast.Result:
    return replace(result, anomaly_map=result.anomaly_map * np.float32(np.nan))


def _small_map(result: mmad_fast.Result, _calls: int, _xyz: Any) -> mmad_fast.Result:
    return replace(result, anomaly_map=result.anomaly_map[1:])


def _other_score(result: mmad_fast.Result, _calls: int, _xyz: Any) -> mmad_fast.Result:
    return replace(result, image_score=result.image_score * 0.999)


def _other_decision(result: mmad_fast.Result, _calls: int, _xyz: Any) -> mmad_fast.Result:
    return replace(result, is_anomalous=not result.is_anomalous)


def _drift(result: mmad_fast.Result, calls: int, _xyz: Any) -> mmad_fast.Result:
    shifted = result.anomaly_map + np.float32(1e-6 * calls)
    return replace(result, anomaly_map=shifted, image_score=float(shifted.max()))


def _bare_error(_result: mmad_fast.Result, _calls: int, _xyz: Any) -> mmad_fast.Result:
    raise IndexError("list index out of range")


def _changed_argument(result: mmad_fast.Result, _calls: int, xyz: Any) -> mmad_fast.Result:
    xyz[0, 0, 0] += 1e-3
    return result


def _refused(_result: mmad_fast.Result, _calls: int, _xyz: Any) -> mmad_fast.Result:
    raise EmptyScanError("no foreground")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda result, calls, xyz: result, ANSWER),
        (_refused, REFUSAL),
        (_nan, NOT_FINITE),
        (_small_map, WRONG_ANSWER),
        (_other_score, WRONG_ANSWER),
        (_other_decision, WRONG_ANSWER),
        (_drift, DIFFERENT_REPEAT),
        (_bare_error, WRONG_EXCEPTION),
        (_changed_argument, WRONG_ANSWER),
    ],
)
def test_the_judge_sees_what_is_wrong(tiny_artifact: Path, change: Any, kind: str) -> None:
    detector = mmad_fast.load(tiny_artifact, num_threads=1)
    fake: Any = {threads: FakeDetector(detector, change) for threads in (1, 2)}
    scan = HostileScan(*make_arrays())
    assert judge(fake, scan).kind == kind


def test_an_answer_to_nonsense_is_a_fault(tiny_artifact: Path) -> None:
    detectors = dict.fromkeys((1, 2), mmad_fast.load(tiny_artifact, num_threads=1))
    scan = HostileScan(*make_arrays(), is_nonsense=True)
    assert judge(detectors, scan).kind == WRONG_ANSWER


def test_a_scan_that_is_rewritten_is_judged_but_for_its_bits(tiny_artifact: Path) -> None:
    detector = mmad_fast.load(tiny_artifact, num_threads=1)
    rng = np.random.default_rng(0)
    for change, kinds in ((_drift, {ANSWER, REFUSAL}), (_nan, {NOT_FINITE, REFUSAL})):
        fake: Any = {1: FakeDetector(detector, change)}
        assert judge_rewritten(fake, HostileScan(*make_arrays()), rng).kind in kinds
    fake = {1: FakeDetector(detector, _bare_error)}
    outcome = judge_rewritten(fake, HostileScan(*make_arrays()), rng)
    assert outcome.kind in (WRONG_EXCEPTION, REFUSAL)
