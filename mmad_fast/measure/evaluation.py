"""Accuracy of a detector on labelled scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.scan_file import GOOD, GOOD_NAMES, ScanFile
from mmad_fast.detector import Detector
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.metrics import AUPRO_LIMITS, AuproMode, aupro, image_auroc, pixel_auroc
from mmad_fast.scan import Unit
from mmad_fast.threshold import CONFIDENCE, Rate, Threshold

MAX_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Accuracy:
    """Metrics of one set of scans; None where they are not defined (one class only, no masks).

    Those of pixels are of the scans whose mask is known, which good scans' always is.

    Attributes:
        num_scans: Scans evaluated.
        i_auroc: Image-level AUROC.
        p_auroc: Pixel-level AUROC.
        aupro: Area under the per-region overlap by false positive rate limit.
    """

    num_scans: int
    i_auroc: float | None
    p_auroc: float | None
    aupro: dict[float, float | None]


@dataclass(frozen=True)
class WrongDecisions:
    """How many of some scans a threshold decides wrongly.

    Attributes:
        count: Scans decided wrongly.
        num_scans: Scans of that label, at least one.
    """

    count: int
    num_scans: int

    @property
    def rate(self) -> Rate:
        """Their share, and its exact interval.

        Source: Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26 (1934).
        """
        from scipy.stats import binomtest

        interval = binomtest(self.count, self.num_scans).proportion_ci(CONFIDENCE, method="exact")
        return Rate(self.count / self.num_scans, float(interval.low), float(interval.high))

    def to_dict(self) -> dict[str, Any]:
        """Count and rate in JSON types."""
        return {"count": self.count, "num_scans": self.num_scans, **asdict(self.rate)}


@dataclass(frozen=True)
class Decisions:
    """What a detector's threshold decides of labelled scans.

    Attributes:
        threshold: What it rests on and promises; None where another than the artifact's is set.
        false_rejects: Good scans called anomalous; None without a good scan.
        misses: Anomalous scans called good; None without one.
    """

    threshold: Threshold | None
    false_rejects: WrongDecisions | None
    misses: WrongDecisions | None

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "threshold": self.threshold and self.threshold.to_dict(),
            "false_rejects": self.false_rejects and self.false_rejects.to_dict(),
            "misses": self.misses and self.misses.to_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over all test scans, and per defect type against the good ones.

    Attributes:
        overall: Over all scans.
        defects: Of each defect type's scans with the good ones.
        decisions: What its threshold decides; None where there is no threshold.
        notes: What could not be had, or of fewer scans only, and why; empty if nothing is missing.
    """

    overall: Accuracy
    defects: dict[str, Accuracy]
    decisions: Decisions | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scored:
    """One evaluated scan; mask (S, S) bool or None where nobody knows."""

    name: str
    defect: str
    score: float
    is_anomalous: bool | None
    aupro_map: NDArray[np.float32]
    pixel_map: NDArray[np.float32]
    mask: NDArray[np.bool_] | None


def evaluate(
    detector: Detector,
    scans: Sequence[ScanFile],
    *,
    aupro_mode: AuproMode = "published",
    unit: Unit = "m",
    missing: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """The detector's accuracy on labelled test scans.

    In "published" mode the maps are normalised per image as the method's published evaluation does
    and AUPRO uses its thresholds; in "exact" mode the maps are those that the detector gives and
    AUPRO is the integral over all thresholds.

    Args:
        detector: The detector.
        scans: Test scans with their defect types and masks.
        aupro_mode: "published" or "exact".
        unit: Unit of the XYZ files.
        missing: Number that stands for no measurement in them; see Scan.from_arrays.
        progress: Called with (done, total) before the first scan and after each.

    Raises:
        MmadFastError: a scan cannot be read or scored; the message names it.
    """
    tell = progress or (lambda done, total: None)
    scored: list[_Scored] = []
    tell(0, len(scans))
    for file in scans:
        scored.append(_score(detector, file, aupro_mode, unit, missing))
        tell(len(scored), len(scans))
    accuracy = partial(
        _accuracy,
        aupro_mode=aupro_mode,
        num_thresholds=detector.family.aupro_thresholds,
    )
    good = [scan for scan in scored if scan.defect == GOOD]
    types = sorted({scan.defect for scan in scored} - {GOOD, ""})
    defects = {
        defect: accuracy(good + [scan for scan in scored if scan.defect == defect])
        for defect in types
    }
    return Evaluation(accuracy(scored), defects, _decisions(detector, scored), _notes(scored))


def _score(
    detector: Detector, file: ScanFile, aupro_mode: AuproMode, unit: Unit, missing: float | None
) -> _Scored:
    try:
        return _score_unnamed(detector, file, aupro_mode, unit, missing)
    except MmadFastError as error:
        if file.name in str(error):
            raise
        raise type(error)(f"{file.name}: {error}") from error
    except Exception as error:
        raise MmadFastError(
            f"{file.name} cannot be scored ({type(error).__name__}: {error}); leave it out, or "
            "report this with the scan"
        ) from error


def _score_unnamed(
    detector: Detector, file: ScanFile, aupro_mode: AuproMode, unit: Unit, missing: float | None
) -> _Scored:
    scan = file.load(unit=unit, missing=missing, with_normals=detector.reads_normals)
    result = detector.infer_scan(scan)
    aupro_map = pixel_map = result.anomaly_map
    if aupro_mode == "published":
        aupro_map, pixel_map = detector.published_evaluation_maps(result.anomaly_map)
    mask = file.load_ground_truth()
    on_grid = None if mask is None else detector.prepare_ground_truth(mask)
    return _Scored(
        file.name,
        file.defect,
        result.image_score,
        result.is_anomalous,
        aupro_map,
        pixel_map,
        on_grid,
    )


def _decisions(detector: Detector, scored: Sequence[_Scored]) -> Decisions | None:
    if detector.threshold is None:
        return None
    record = detector.artifact.manifest.threshold
    good = [bool(scan.is_anomalous) for scan in scored if scan.defect == GOOD]
    missed = [not scan.is_anomalous for scan in scored if scan.defect not in (GOOD, "")]
    return Decisions(
        record if record is not None and record.value == detector.threshold else None,
        *(WrongDecisions(sum(wrong), len(wrong)) if wrong else None for wrong in (good, missed)),
    )


def _accuracy(scored: Sequence[_Scored], *, aupro_mode: AuproMode, num_thresholds: int) -> Accuracy:
    known = [scan for scan in scored if scan.defect != ""]
    labels = [scan.defect != GOOD for scan in known]
    i_auroc = image_auroc([scan.score for scan in known], labels) if known else None
    masked = [scan for scan in scored if scan.mask is not None]
    masks = [scan.mask for scan in masked if scan.mask is not None]
    if not any(mask.any() for mask in masks):
        return Accuracy(len(scored), i_auroc, None, dict.fromkeys(AUPRO_LIMITS))
    return Accuracy(
        len(scored),
        i_auroc,
        pixel_auroc([scan.pixel_map for scan in masked], masks),
        dict(
            aupro(
                [scan.aupro_map for scan in masked],
                masks,
                limits=AUPRO_LIMITS,
                mode=aupro_mode,
                num_thresholds=num_thresholds,
            )
        ),
    )


def _notes(scored: Sequence[_Scored]) -> tuple[str, ...]:
    """What the scans do not give, and why."""
    defects = {scan.defect for scan in scored}
    types = ", ".join(sorted(defects - {GOOD, ""}))
    notes = []
    if defects == {""}:
        notes.append(
            "no accuracy: nobody knows which scans are good; sort them into test/good and "
            "test/<defect>"
        )
    elif not types:
        notes.append("no accuracy: all scans are of good parts; put others into test/<defect>")
    elif GOOD not in defects:
        notes.append(
            f"no I-AUROC: none of the scans is of a good part, all count as anomalous ({types}); "
            f"those of good parts belong into test/good (also read: {', '.join(GOOD_NAMES[1:])})"
        )
    unmasked = [scan.name for scan in scored if scan.mask is None and scan.defect]
    if unmasked:
        names = ", ".join(unmasked[:MAX_NAMES_SHOWN]) + ", ..." * (len(unmasked) > MAX_NAMES_SHOWN)
        num_masked = sum(bool(scan.mask is not None and scan.mask.any()) for scan in scored)
        what = (
            f"P-AUROC and AUPRO are of {len(scored) - len(unmasked)} of {len(scored)} scans"
            if num_masked
            else "no P-AUROC and no AUPRO"
        )
        notes.append(
            f"{what}: no mask for {len(unmasked)} anomalous scans ({names}); masks are read from "
            "gt/ or ground_truth/ beside rgb/, and from <category>/ground_truth/<defect>/"
        )
    return tuple(notes)
