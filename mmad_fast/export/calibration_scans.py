"""The scans that int8 and fp8 engines take their ranges from, and what the graphs get from them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, open_detector
from mmad_fast.engines.selection import choose_engine
from mmad_fast.errors import DataError, EmptyScanError, InvalidInputError
from mmad_fast.export.calibration import record_graph_inputs
from mmad_fast.methods.fit_request import Progress
from mmad_fast.scan import Scan, Unit

CALIBRATION_SCANS = 32
"""Of a data set at most these are used, evenly chosen."""
NOMINAL = ("good", "")
"""`ScanFile.defect` of scans without a defect, and of those of a plain folder."""
FOREIGN_SCORE = 1.25
"""Times the threshold: nominal scans of the same part exceed a threshold of few validation scans,
another part's are further away."""
_CHECKED_SCANS = 4


@dataclass(frozen=True)
class Calibration:
    """What the graphs of a detector get from the calibration scans.

    Attributes:
        inputs: Per graph, and per scan, its inputs by name.
        num_scans: Scans that were used: those with foreground.
        notices: What the user should know of the scans.
    """

    inputs: Mapping[str, Sequence[Mapping[str, NDArray]]]
    num_scans: int
    notices: tuple[str, ...]


EMPTY_CALIBRATION = Calibration({}, 0, ())


def calibrate(
    artifact: Artifact,
    calibration: str | Path | Sequence[Scan | ScanFile] | None,
    *,
    category: str | None,
    unit: Unit,
    progress: Progress,
) -> Calibration:
    """What the artifact's own graphs get from the scans.

    Args:
        artifact: A verified artifact.
        calibration: A data set, scans, or None for the golden scan.
        category: Which category of the data set.
        unit: Unit of XYZ files.
        progress: Called with ("calibration", done, total).

    Raises:
        DataError: the data set is missing or unreadable.
        InvalidInputError: no scans, something else than scans, the wrong unit, or none of them has
            foreground.
    """
    notices: list[str] = []
    scans = _scans_of(artifact, calibration, category, notices)
    detector = open_detector(artifact, choose_engine(artifact.engine_files()[:1]))

    def with_progress() -> Iterator[Scan | ScanFile]:
        progress("calibration", 0, len(scans))
        for done, scan in enumerate(scans, start=1):
            yield scan
            progress("calibration", done, len(scans))

    inputs = record_graph_inputs(detector, with_progress(), unit)
    used = min(map(len, inputs.values()))  # a backbone runs once per scan, a fusion more often
    if used < len(scans):
        notices.append(f"{len(scans) - used} of {len(scans)} calibration scans have no foreground")
    if calibration is not None and _are_foreign(detector, scans, unit):
        notices.append(
            "most calibration scans are far beyond the detector's threshold: check that they are "
            "nominal scans of the part it was fitted on (--category)"
        )
    return Calibration(inputs, used, tuple(notices))


def _scans_of(
    artifact: Artifact,
    calibration: str | Path | Sequence[Scan | ScanFile] | None,
    category: str | None,
    notices: list[str],
) -> Sequence[Scan | ScanFile]:
    """The scans whose activations give the ranges.

    Raises:
        DataError: see open_dataset.
        InvalidInputError: an empty list, or something in it that is no scan.
    """
    if calibration is None:
        golden = artifact.golden()
        notices.append(
            "calibrated with the golden scan alone: its ranges may be too narrow for other scans; "
            "name 20 or more nominal scans with calibration (--calibration)"
        )
        return [golden.scan]
    if isinstance(calibration, (str, os.PathLike)):
        return _nominal_scans(Path(calibration), category)
    if not calibration or not all(isinstance(scan, (Scan, ScanFile)) for scan in calibration):
        raise InvalidInputError(
            f"calibration is a list of {len(calibration)} "
            f"{'things' if calibration else 'scans'}; it must hold one mmad_fast.Scan or more, and "
            "nothing else"
        )
    return calibration


def _nominal_scans(data: Path, category: str | None) -> list[ScanFile]:
    """At most CALIBRATION_SCANS scans of a data set, evenly chosen: of the training split, or of
    the only one there is.

    Raises:
        DataError: no such data set or category, or no nominal scan in it.
    """
    dataset = open_dataset(data)
    name = pick_category(dataset, category)
    splits = dataset.splits(name)
    split = "train" if "train" in splits else splits[0]
    scans = [scan for scan in dataset.scans(name, split) if scan.defect in NOMINAL]
    if not scans:
        raise DataError(
            f"{data}: category {name!r} has no nominal scan in its {split} split; name a data set "
            "with a training split, or a plain folder of nominal scans"
        )
    return scans[:: math.ceil(len(scans) / CALIBRATION_SCANS)]


def _are_foreign(detector: Detector, scans: Sequence[Scan | ScanFile], unit: Unit) -> bool:
    """The detector clearly rejects most of the first scans, which should be nominal."""
    if detector.threshold is None:
        return False
    scores = []
    for scan in scans[:_CHECKED_SCANS]:
        if not isinstance(scan, Scan):
            scan = scan.load(unit=unit, with_normals=detector.reads_normals)
        try:
            scores.append(detector.infer_scan(scan).image_score)
        except EmptyScanError:
            continue
    rejected = sum(score > FOREIGN_SCORE * detector.threshold for score in scores)
    return rejected > len(scores) / 2
