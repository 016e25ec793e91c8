"""Evaluating a detector on labelled scans: labels, masks and modes reach the metrics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from mmad_fast.data import ScanFile, open_dataset
from mmad_fast.data.synthetic import write_synthetic
from mmad_fast.detector import Detector, load
from mmad_fast.errors import EmptyScanError, MmadFastError
from mmad_fast.measure.evaluation import WrongDecisions, evaluate
from mmad_fast.measure.metrics import aupro, image_auroc
from mmad_fast.scan import Scan


@pytest.fixture(scope="module")
def detector(tiny_artifact: Path) -> Detector:
    return load(tiny_artifact)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScanFile, ...]:
    root = write_synthetic(
        tmp_path_factory.mktemp("data") / "set",
        categories=("biscuit",),
        num_train=1,
        num_validation=0,
        num_good=2,
        num_per_defect=1,
        size=96,
    )
    return open_dataset(root).scans("biscuit", "test")


def test_metrics_are_those_of_the_detectors_maps(detector, scans) -> None:
    evaluation = evaluate(detector, scans, aupro_mode="exact")
    results = [detector.infer_scan(scan.load()) for scan in scans]
    labels = [scan.defect != "good" for scan in scans]
    masks = [_mask_on_grid(detector, scan) for scan in scans]
    assert evaluation.overall.num_scans == 7
    assert evaluation.overall.i_auroc == image_auroc([r.image_score for r in results], labels)
    expected = aupro([r.anomaly_map for r in results], masks, mode="exact")
    assert evaluation.overall.aupro == expected


def test_defects_are_compared_with_the_good_scans(detector, scans) -> None:
    evaluation = evaluate(detector, scans)
    assert set(evaluation.defects) == {"stain", "dent", "bump", "crack", "mismatch"}
    assert all(accuracy.num_scans == 3 for accuracy in evaluation.defects.values())


def test_published_mode_rescales_each_map(detector, scans) -> None:
    evaluation = evaluate(detector, scans, aupro_mode="published")
    maps = [detector.infer_scan(scan.load()).anomaly_map for scan in scans]
    masks = [_mask_on_grid(detector, scan) for scan in scans]
    per_image = [anomaly_map / anomaly_map[anomaly_map != 0].mean() for anomaly_map in maps]
    expected = aupro(per_image, masks, mode="published")
    assert evaluation.overall.aupro == pytest.approx(expected, rel=1e-5)
    assert evaluation.overall.aupro != aupro(maps, masks, mode="published")


def test_scans_without_labels_have_no_accuracy(detector, scans) -> None:
    unknown = [replace(scan, defect="", ground_truth_path=None) for scan in scans[:2]]
    overall = evaluate(detector, unknown).overall
    assert (overall.i_auroc, overall.p_auroc) == (None, None)
    assert set(overall.aupro.values()) == {None}


def test_good_scans_alone_have_no_accuracy(detector, scans) -> None:
    overall = evaluate(detector, [scan for scan in scans if scan.defect == "good"]).overall
    assert (overall.i_auroc, overall.p_auroc) == (None, None)


def test_without_masks_the_images_are_measured_and_the_rest_is_said(detector, scans) -> None:
    whole = evaluate(detector, scans)
    evaluation = evaluate(detector, [replace(scan, ground_truth_path=None) for scan in scans])
    assert whole.notes == ()
    assert evaluation.overall.i_auroc == whole.overall.i_auroc is not None
    assert evaluation.overall.p_auroc is None
    assert set(evaluation.overall.aupro.values()) == {None}
    (note,) = evaluation.notes
    assert "no P-AUROC and no AUPRO: no mask for 5 anomalous scans (biscuit/test/bump/000, " in note
    assert "ground_truth/" in note


def test_with_some_masks_pixels_are_those_of_the_scans_that_have_one(detector, scans) -> None:
    masked = [scan for scan in scans if scan.defect in ("good", "crack", "dent")]
    some = [scan if scan in masked else replace(scan, ground_truth_path=None) for scan in scans]
    evaluation = evaluate(detector, some)
    assert evaluation.overall.i_auroc == evaluate(detector, scans).overall.i_auroc
    assert evaluation.overall.p_auroc == evaluate(detector, masked).overall.p_auroc is not None
    assert evaluation.overall.aupro == evaluate(detector, masked).overall.aupro
    assert evaluation.defects["crack"].p_auroc is not None
    assert evaluation.defects["bump"].p_auroc is None
    assert "P-AUROC and AUPRO are of 4 of 7 scans: no mask for 3 anom" in evaluation.notes[0]


@pytest.mark.parametrize(
    ("defects", "words"),
    [
        (("crack", "Gutteile"), "no I-AUROC: none of the scans is of a good part.*Gutteile, crack"),
        (("good", "good"), "no accuracy: all scans are of good parts"),
        (("", ""), "no accuracy: nobody knows which scans are good"),
    ],
)
def test_what_one_class_cannot_give_is_said(detector, scans, defects, words: str) -> None:
    labelled = [
        replace(scan, defect=defect) for scan, defect in zip(scans[-2:], defects, strict=True)
    ]
    evaluation = evaluate(detector, labelled)
    assert evaluation.overall.i_auroc is None
    assert re.search(words, evaluation.notes[0])


@pytest.mark.parametrize("error", [EmptyScanError("no foreground"), RuntimeError("engine: fail")])
def test_a_scan_that_cannot_be_scored_is_named(detector, scans, monkeypatch, error) -> None:
    def refuse(self: Detector, scan: object) -> None:
        raise error

    monkeypatch.setattr(Detector, "infer_scan", refuse)
    with pytest.raises(MmadFastError, match=f"biscuit/test/good/000.*{error}") as caught:
        evaluate(detector, scans)
    assert caught.value.__cause__ is error


def test_decisions_are_counted_by_label(tiny_artifact: Path, scans) -> None:
    detector = load(tiny_artifact)
    decisions = evaluate(detector, scans[:1]).decisions
    assert decisions is not None
    assert decisions.threshold == detector.artifact.manifest.threshold
    scores = {scan.name: detector.infer_scan(scan.load()).image_score for scan in scans}
    good = [scan.name for scan in scans if scan.defect == "good"]
    detector.threshold = threshold = max(scores[name] for name in good)
    decisions = evaluate(detector, scans).decisions
    assert decisions is not None
    assert decisions.threshold is None  # its promise is not that of the one that was set
    assert decisions.false_rejects == WrongDecisions(0, 2)  # equal to the threshold is good
    num_missed = sum(score <= threshold for name, score in scores.items() if name not in good)
    assert decisions.misses == WrongDecisions(num_missed, 5)
    detector.threshold = -1.0
    decisions = evaluate(detector, [scan for scan in scans if scan.name in good]).decisions
    assert decisions is not None
    assert decisions.false_rejects == WrongDecisions(2, 2)
    assert decisions.misses is None
    assert decisions.to_dict()["misses"] is None


@pytest.mark.parametrize(
    ("count", "num_scans"), [(0, 40), (3, 40), (40, 40), (1, 1), (0, 1), (17, 60)]
)
def test_a_measured_rate_has_its_exact_interval(count: int, num_scans: int) -> None:
    """Clopper and Pearson: at each end the count's tail has a probability of 2.5 %."""
    rate = WrongDecisions(count, num_scans).rate
    assert rate.low <= rate.value == count / num_scans <= rate.high
    below, above = binom.cdf(count, num_scans, rate.high), binom.sf(count - 1, num_scans, rate.low)
    assert below == pytest.approx(1 if count == num_scans else 0.025)
    assert above == pytest.approx(1 if count == 0 else 0.025)


def test_progress_is_told_up_to_the_last_scan(detector, scans) -> None:
    told: list[tuple[int, int]] = []
    evaluate(detector, scans[:3], progress=lambda *numbers: told.append(numbers))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def _mask_on_grid(detector: Detector, scan: ScanFile) -> NDArray[np.bool_]:
    mask = scan.load_ground_truth()
    assert mask is not None
    return detector.prepare_ground_truth(mask)


def test_missing_values_reach_the_scans(detector, scans) -> None:
    """A number that stands somewhere in the part is missing there when it is named."""
    points = scans[0].load().xyz
    number = float(points[48, 48, 2])
    asked: list[float | None] = []

    class Asked(ScanFile):
        def load(
            self, unit: str = "m", missing: float | None = None, *, with_normals: bool = False
        ) -> Scan:
            asked.append(missing)
            return super().load(unit, missing)

    files = [Asked(**vars(scan)) for scan in scans[:2]]
    evaluate(detector, files, missing=number)
    assert asked == [number, number]
    assert (scans[0].load(missing=number).xyz[48, 48] == 0).all()
