"""Load a detector artifact and run it. Needs no torch."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmad_fast.artifact import Artifact, read_artifact
from mmad_fast.engines.selection import EngineChoice, choose_engine
from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    EmptyScanError,
    InvalidInputError,
    MmadFastError,
)
from mmad_fast.folder_files import ATTEMPTS, ReplacedError, manifest_digest
from mmad_fast.heap import return_freed_memory
from mmad_fast.methods.family import Family, Pipeline, get_family
from mmad_fast.methods.options import MethodOptions
from mmad_fast.missing_values import MissingRecord
from mmad_fast.preprocess import check_resolution, prepare, prepare_ground_truth
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import PreparedScan, Result, Scan, Unit
from mmad_fast.stage_clock import StageClock
from mmad_fast.threshold import checked_threshold

logger = logging.getLogger("mmad_fast")

REFIT = "copy the artifact again or fit the detector again"
MOST = 0.5
GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a golden scan's map, relative to its maximum, that counts as the same
answer: other processors and library versions round differently."""


@dataclass(frozen=True)
class GoldenReplay:
    """A detector's answer to its artifact's golden scan, beside the expected one.

    Attributes:
        expected_score: Image score when the detector was fitted.
        score: Image score now.
        map_difference: Largest difference of the anomaly maps, relative to the expected maximum.
        score_scale: What differences of the score are relative to.
        tolerance: Largest relative difference that counts as the same answer.
        map_step: What is accepted of the map beyond it, see MethodOptions.map_step.
    """

    expected_score: float
    score: float
    map_difference: float
    score_scale: float
    tolerance: float = GOLDEN_TOLERANCE
    map_step: float = 0.0

    @property
    def agrees(self) -> bool:
        """Map and score are within the tolerance."""
        score_difference = abs(self.score - self.expected_score)
        return (
            self.map_difference <= self.tolerance + self.map_step
            and score_difference <= self.tolerance * self.score_scale
        )


class Detector:
    """A fitted detector. `infer` may be called from several threads at once.

    It can be handed to other processes (pickled): there it is loaded again from its artifact, with
    the same engine. If another artifact is at the path by then, that is an ArtifactError.

    Attributes:
        artifact: The artifact it was loaded from.
        engine_choice: What runs its graphs, from which files, and why.
        family: The record of its family.
    """

    def __init__(self, artifact: Artifact, pipeline: Pipeline, engine_choice: EngineChoice) -> None:
        """Use `load`."""
        self.artifact = artifact
        self._path = artifact.path.absolute()
        self.engine_choice = engine_choice
        record = artifact.manifest.threshold
        self.threshold = None if record is None else record.value
        self._pipeline = pipeline
        self._recipe = Recipe.from_dict(artifact.manifest.preprocess)
        self._missing = MissingRecord.from_dict(artifact.manifest.missing_values)
        self.family: Family = get_family(artifact.manifest.family)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is made again elsewhere; copy.deepcopy loads it again, too.

        Raises:
            InvalidInputError: its engines have been wrapped by functions of this process.
        """
        choice = self.engine_choice
        if choice.wrap is not None:
            raise InvalidInputError(
                "the detector's engines are wrapped by functions of this process, so it cannot be "
                "handed to another one; load its artifact there"
            )
        arguments = (choice.engine, choice.device, choice.precision, choice.num_threads)
        digest = self.artifact.files.digest
        return _load_again, (str(self._path), digest, *arguments), {"_threshold": self.threshold}

    @property
    def threshold(self) -> float | None:
        """Decision threshold on the image score: that of the artifact, whose manifest says what it
        rests on (`artifact.manifest.threshold`), or one that was set; None: nothing is decided.

        Raises:
            InvalidInputError: a value is set that is no finite number.
        """
        return self._threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._threshold = checked_threshold(value)

    @property
    def is_exact(self) -> bool:
        """The answer is the published pipeline's, up to rounding; not with switches that
        approximate, nor with graphs of lower precision."""
        return self.options.is_exact and self.engine_choice.precision == "fp32"

    @property
    def reads_normals(self) -> bool:
        """Scans need the picture of their normals (`normals=`, Scan.normals)."""
        return self._recipe.reads_normals

    @property
    def options(self) -> MethodOptions:
        """What it was fitted with."""
        return self._pipeline.options

    @property
    def method(self) -> str:
        """The variant's name, e.g. "cfm-s"."""
        return self.artifact.manifest.method

    @property
    def weight_sources(self) -> dict[str, dict[str, Any]]:
        """Where the weights of each network came from: of its branches, then of what else brings
        weights along."""
        sources = {
            role: source
            for role, source in self.artifact.manifest.weights.items()
            if isinstance(source, dict) and "kind" in source
        }
        branches = [branch.key for branch in self.family.branches if branch.key in sources]
        return {role: sources[role] for role in (*branches, *sources)}

    def infer(
        self,
        rgb: ArrayLike,
        xyz: ArrayLike,
        *,
        unit: Unit = "m",
        missing: float | None = None,
        name: str = "",
        normals: ArrayLike | None = None,
    ) -> Result:
        """The anomaly score and map of one scan.

        Args:
            rgb: (H, W, 3) uint8.
            xyz: (H, W, 3) float32 or float64 in `unit`, registered with rgb; (0, 0, 0), NaN or inf
                means missing.
            unit: "m" or "mm".
            missing: Number that stands for no measurement in xyz, beside those that the fit saw
                and those that are found; see `Scan.from_arrays`.
            name: What to call the scan in messages and results.
            normals: (H, W, 3) uint8: the picture of its surface normals, for a detector that was
                fitted with such pictures; others do not read it.

        Returns:
            The result; nothing in it is NaN.

        Raises:
            InvalidInputError: wrong types, shapes or units, fewer than 32 pixels a side, or no
                normals for a detector that reads them.
            EmptyScanError: too little foreground for this detector.
        """
        scan = Scan.from_arrays(rgb, xyz, unit=unit, missing=missing, name=name, normals=normals)
        return self.infer_scan(scan)

    def infer_scan(self, scan: Scan) -> Result:
        """The anomaly score and map of one scan; as `infer`, from a Scan."""
        clock = StageClock()
        with clock.stage("preprocess"):
            prepared = self.prepare(scan)
        return self.infer_prepared(prepared, clock)

    def prepare(self, scan: Scan) -> PreparedScan:
        """The scan as this detector reads it, without the values that stood for no measurement at
        the fit.

        Logs a warning where most of the scan is such a value, which in no scan of the fit was.

        Raises:
            InvalidInputError: a scan of too few pixels, or without the picture of its normals that
                the detector reads.
        """
        check_resolution(scan)
        _warn_of_missing_values(scan, self._missing)
        scan = scan.without(self._missing.points)
        options = self.options
        return prepare(scan, self._recipe, rgb_size=options.rgb_size, grid_size=options.grid_size)

    def prepare_ground_truth(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(S, S) bool: a native mask (H, W) on the grid of this detector's anomaly map."""
        return prepare_ground_truth(mask, self._recipe, grid_size=self.options.grid_size)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC), (S, S) each, as the published evaluation scales
        an anomaly map of this method."""
        return self._pipeline.published_evaluation_maps(anomaly_map)

    def infer_prepared(self, prepared: PreparedScan, clock: StageClock | None = None) -> Result:
        """The anomaly score and map of a prepared scan (the timed part of the papers' tables)."""
        clock = StageClock() if clock is None else clock
        try:
            scores = self._pipeline.score(prepared, clock)
        except EmptyScanError:
            raise
        except InvalidInputError as error:  # of an op, which cannot know whose numbers they are
            raise InvalidInputError(
                f"scan {prepared.name!r}: {error}; where the scan is sound, the weights are "
                "out of range: run `mmad-fast doctor ARTIFACT`"
            ) from error
        if not math.isfinite(scores.image_score) or not np.isfinite(scores.anomaly_map).all():
            raise MmadFastError(
                f"scan {prepared.name!r}: the detector's answer is not finite; the scan's values "
                "or the artifact's weights are out of range: run `mmad-fast doctor ARTIFACT`, then "
                "check the scan"
            )
        threshold = self.threshold
        is_of_map = self.family.score_is_map_maximum and self.options.score_is_map_maximum
        return Result(
            image_score=scores.image_score,
            anomaly_map=scores.anomaly_map,
            threshold=threshold,
            is_anomalous=None if threshold is None else scores.image_score > threshold,
            native_size=prepared.native_size,
            padding=prepared.padding,
            stage_ms=clock.stage_ms,
            name=prepared.name,
            map_threshold=threshold if is_of_map else None,
        )

    def score_scale(self, image_score: float) -> float:
        """The size of the numbers behind an image score, which its rounding errors grow with: a
        score that an offset was subtracted from may be near 0 though they are not."""
        return max(
            abs(image_score), abs(self.options.score_offset), float(np.finfo(np.float32).tiny)
        )

    def replay_golden(self) -> GoldenReplay:
        """The answer to the artifact's golden scan, beside the one recorded at fitting.

        Raises:
            ArtifactError: the golden scan is unreadable, none, or its map has another size; or
                another artifact has taken the place of this detector's.
        """
        golden = self.artifact.golden()
        try:
            result = self.infer_scan(golden.scan)
        except InvalidInputError as error:
            raise ArtifactError(
                f"{self.artifact.path}: the golden scan cannot be scored ({error}); {REFIT}"
            ) from error
        if result.anomaly_map.shape != golden.expected_map.shape:
            raise ArtifactError(
                f"{self.artifact.path}: the golden map is {golden.expected_map.shape}, the "
                f"detector gives {result.anomaly_map.shape}; fit it again"
            )
        scale = max(float(np.abs(golden.expected_map).max()), float(np.finfo(np.float32).tiny))
        difference = float(np.abs(result.anomaly_map - golden.expected_map).max()) / scale
        return GoldenReplay(
            golden.expected_score,
            result.image_score,
            difference,
            self.score_scale(golden.expected_score),
            map_step=self.options.map_step,
        )


def load(
    path: str | Path,
    *,
    engine: str = "auto",
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int | None = None,
    verify: bool = True,
    trust: str | Path | None = None,
) -> Detector:
    """The detector in an artifact folder, verified and ready.

    All of it is of one artifact, also where another takes its place at the path meanwhile.

    Args:
        path: The artifact's folder, as written by `mmad_fast.fit` or `mmad-fast fit`.
        engine: What runs the graphs: a name in mmad_fast.engines.ENGINES, or "auto": of those that
            can run what the artifact holds, the one measured fastest on this kind of machine, or
            the first in the order of preference. `Detector.engine_choice` says which, and why.
        device: Where the ops run and the arrays lie: "cpu", or "cuda": the current CUDA device
            (needs torch, Triton and an engine for it; `mmad-fast doctor` says what is missing).
        precision: Of the graphs: "fp32", "fp16", "bf16", "int8" or "fp8", as the artifact holds
            them (`mmad-fast export`). None: that of the detector's own graphs, so that nothing is
            approximated unasked.
        num_threads: Threads of the engine; None means mmad_fast.threads.get_num_threads(), which
            the compiled kernels use as well.
        verify: Check the sha256 of every file.
        trust: A PEM file with an ed25519 public key: an artifact that it did not sign
            (`mmad-fast sign`) is refused. Without it whoever wrote the folder is trusted as far as
            SECURITY.md says.

    Raises:
        InvalidInputError: `path` is no path, or an option of the wrong type or range.
        ArtifactError: missing, damaged, newer than this version, or of an unknown family.
        BackendUnavailableError: the engine, device or precision cannot be had here; says why not,
            and the command that exports what is missing.
        MissingDependencyError: `trust` is given and cryptography is not installed.
    """
    artifact = read_artifact(path, verify=verify, trust=trust)
    choice = choose_engine(
        artifact.engine_files(),
        engine=engine,
        device=device,
        precision=precision,
        num_threads=num_threads,
    )
    detector = open_detector(artifact, choice)
    artifact.files.release()
    return detector


def open_detector(artifact: Artifact, choice: EngineChoice) -> Detector:
    """The detector of a verified artifact with an engine that has been chosen; see `load`.

    Raises:
        ArtifactError: a graph, tensor or parameter is missing or damaged.
        BackendUnavailableError: the engine or device cannot be had here.
    """
    try:
        by_device = get_family(artifact.manifest.family).pipelines
    except InvalidInputError as error:
        raise ArtifactError(
            f"{artifact.path}: {error}; upgrade with: pip install --upgrade mmad-fast"
        ) from None
    if choice.device not in by_device:
        raise BackendUnavailableError(
            f"{artifact.path}: a {artifact.manifest.method} detector does not run on device "
            f"{choice.device!r}, but on {', '.join(by_device)}; choose it with device= or --device"
        )
    try:
        pipeline = by_device[choice.device]().from_artifact(artifact, choice)
        detector = Detector(artifact, pipeline, choice)
    except (InvalidInputError, ArtifactError) as error:
        # What is given beside the artifact has been checked: it is the artifact that does not fit.
        if str(error).startswith(str(artifact.path)):
            raise
        # An ArtifactError brings its own advice.
        advice = "" if isinstance(error, ArtifactError) else f"; {REFIT}"
        raise ArtifactError(f"{artifact.path}: {error}{advice}") from error
    return_freed_memory()
    return detector


def _load_again(
    path: str, digest: str, engine: str, device: str, precision: str, num_threads: int | None
) -> Detector:
    """A detector that was pickled, in the process that unpickles it.

    Raises:
        ArtifactError: another artifact is at the path than the one with this digest.
    """
    detector = load(
        path, engine=engine, device=device, precision=precision, num_threads=num_threads
    )
    if detector.artifact.files.digest != digest:
        raise ArtifactError(
            f"{path}: the artifact was replaced since the detector was loaded that has been handed "
            "over here; load it again there, or load the path in each process"
        )
    return detector


def infer(
    detector: Detector | str | Path,
    rgb: ArrayLike,
    xyz: ArrayLike,
    *,
    unit: Unit = "m",
    missing: float | None = None,
    normals: ArrayLike | None = None,
) -> Result:
    """The anomaly score and map of one scan, by a detector or the path of its artifact.

    A path is loaded once and kept until its artifact is replaced. Arguments, result and errors are
    those of `Detector.infer` and `load`.
    """
    if isinstance(detector, (str, os.PathLike)):
        detector = _load_current(Path(detector).absolute())
    if not isinstance(detector, Detector):
        raise InvalidInputError(
            f"detector is {detector!r}; it must be what mmad_fast.load returns, or an artifact's "
            "path"
        )
    return detector.infer(rgb, xyz, unit=unit, missing=missing, normals=normals)


def _warn_of_missing_values(scan: Scan, record: MissingRecord) -> None:
    """Logs what was taken as missing where it is most of a scan, unless it was so at the fit."""
    if scan.missing_share <= MOST or record.largest_share > MOST:
        return
    label = f"scan {scan.name!r}" if scan.name else "the scan"
    found = ", ".join(
        f"{value} at {value.share:.1%}" for value in scan.missing_values if value.share > 0
    )
    logger.warning(
        "%s: taken as missing, of all pixels: %s; that is more than in any scan of the fit: check "
        "the sensor",
        label,
        found,
    )


def _load_current(path: Path) -> Detector:
    """The detector of the artifact that is at the path now, loaded once. The manifest tells whether
    it still is: the time of writing need not change when an artifact is replaced."""
    for _ in range(ATTEMPTS):
        try:
            digest = manifest_digest(path)
        except OSError:
            digest = ""  # loading says why
        with suppress(ReplacedError):
            return _load_once(str(path), digest)
    raise ReplacedError(f"{path}: the artifact is replaced faster than it can be loaded; try again")


@lru_cache(maxsize=4)
def _load_once(path: str, digest: str) -> Detector:
    """`load`, kept per path and manifest.

    Raises:
        ReplacedError: the manifest is another one by now.
    """
    detector = load(path)
    if detector.artifact.files.digest != digest:
        raise ReplacedError(f"{path}: the artifact was replaced")
    return detector
