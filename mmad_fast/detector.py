"""Load a detector artifact and run it. Needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmad_fast.artifact import MANIFEST_FILE, Artifact, read_artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice, choose_engine
from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    InvalidInputError,
    MmadFastError,
)
from mmad_fast.heap import return_freed_memory
from mmad_fast.methods.variants import FAMILIES_SCORED_BY_MAXIMUM, FAMILY_DETECTORS
from mmad_fast.preprocess import check_resolution, prepare, prepare_ground_truth
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import PreparedScan, Result, Scan, Unit
from mmad_fast.stage_clock import StageClock


class Scores(Protocol):
    """What a family's pipeline says of a prepared scan."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]: ...

    @property
    def image_score(self) -> float: ...


class Pipeline(Protocol):
    """The run half of one method family."""

    @property
    def is_exact(self) -> bool:
        """The answer is the published pipeline's, up to rounding."""

    def score(self, prepared: PreparedScan, clock: StageClock) -> Scores:
        """The anomaly map and image score. Thread-safe."""

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC) as the method's published evaluation scales them."""


@runtime_checkable
class WrappablePipeline(Protocol):
    """A pipeline whose engines take NumPy arrays and can be put into others."""

    def with_engines(self, wrap: Callable[[str, Engine], Engine]) -> Pipeline:
        """The same pipeline, each engine replaced by what `wrap` makes of its graph's name and
        it."""


GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a golden scan's map, relative to its maximum, that counts as the same
answer: other processors and library versions round differently."""
MAP_STEPS: dict[str, float] = {"pil8bit": 2 / 255}
"""What such differences become in maps that are blurred in 8 bits, as M3DM's published code does,
by the parameter `blur`. They move a bank's blurred map by one grey level, not more: 1/255 of the
bank's largest distance before the blur. Differences are relative to the maximum of the answer,
which the blur lowers: peaks of half that height are allowed for."""


@dataclass(frozen=True)
class GoldenReplay:
    """A detector's answer to its artifact's golden scan, beside the expected one.

    Attributes:
        expected_score: Image score when the detector was fitted.
        score: Image score now.
        map_difference: Largest difference of the anomaly maps, relative to the expected maximum.
        score_scale: What differences of the score are relative to.
        tolerance: Largest relative difference that counts as the same answer.
        map_step: What is accepted of the map beyond it, see Detector.map_step.
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

    Attributes:
        artifact: The artifact it was loaded from.
        engine_choice: What runs its graphs, from which files, and why.
        threshold: Decision threshold on the image score, None if none was set.
        map_step: What equal answers' anomaly maps may differ by beyond rounding, relative to their
            maximum, see MAP_STEPS: 0 where they are not rounded to 8 bits.
    """

    def __init__(self, artifact: Artifact, pipeline: Pipeline, engine_choice: EngineChoice) -> None:
        """Use `load`."""
        parameters = artifact.manifest.parameters
        self.artifact = artifact
        self.engine_choice = engine_choice
        self.threshold = _threshold(artifact)
        self._pipeline = pipeline
        self._recipe = Recipe.from_dict(artifact.manifest.preprocess)
        self._rgb_size = int(parameters["rgb_size"])
        self._grid_size = int(parameters["grid_size"])
        self.map_step = MAP_STEPS.get(parameters.get("blur", ""), 0.0)
        self._is_scored_by_maximum = artifact.manifest.family in FAMILIES_SCORED_BY_MAXIMUM

    @property
    def is_exact(self) -> bool:
        """The answer is the published pipeline's, up to rounding; not with switches that
        approximate, nor with graphs of lower precision."""
        return self._pipeline.is_exact and self.engine_choice.precision == "fp32"

    @property
    def method(self) -> str:
        """The variant's name, e.g. "cfm-s"."""
        return self.artifact.manifest.method

    def infer(self, rgb: ArrayLike, xyz: ArrayLike, *, unit: Unit = "m", name: str = "") -> Result:
        """The anomaly score and map of one scan.

        Args:
            rgb: (H, W, 3) uint8.
            xyz: (H, W, 3) float32 or float64 in `unit`, registered with rgb; (0, 0, 0), NaN or inf
                means missing.
            unit: "m" or "mm".
            name: What to call the scan in messages and results.

        Returns:
            The result; nothing in it is NaN.

        Raises:
            InvalidInputError: wrong types, shapes or units, or fewer than 32 pixels a side.
            EmptyScanError: too little foreground for this detector.
        """
        return self.infer_scan(Scan.from_arrays(rgb, xyz, unit=unit, name=name))

    def infer_scan(self, scan: Scan) -> Result:
        """The anomaly score and map of one scan; as `infer`, from a Scan."""
        clock = StageClock()
        with clock.stage("preprocess"):
            prepared = self.prepare(scan)
        return self.infer_prepared(prepared, clock)

    def with_engines(self, wrap: Callable[[str, Engine], Engine]) -> Detector:
        """The same detector, each engine replaced by what `wrap` makes of its graph's name and it.

        Raises:
            InvalidInputError: the detector's engines do not take NumPy arrays.
        """
        if not isinstance(self._pipeline, WrappablePipeline):
            raise InvalidInputError(
                f"the engines of a {type(self._pipeline).__name__} cannot be wrapped; load the "
                "detector with device='cpu'"
            )
        detector = copy(self)
        detector._pipeline = self._pipeline.with_engines(wrap)
        return detector

    def prepare(self, scan: Scan) -> PreparedScan:
        """The scan as this detector reads it.

        Raises:
            InvalidInputError: a scan of too few pixels.
        """
        check_resolution(scan)
        return prepare(scan, self._recipe, rgb_size=self._rgb_size, grid_size=self._grid_size)

    def prepare_ground_truth(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(S, S) bool: a native mask (H, W) on the grid of this detector's anomaly map."""
        return prepare_ground_truth(mask, self._recipe, grid_size=self._grid_size)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC), (S, S) each, as the published evaluation scales
        an anomaly map of this method."""
        return self._pipeline.published_evaluation_maps(anomaly_map)

    def infer_prepared(self, prepared: PreparedScan, clock: StageClock | None = None) -> Result:
        """The anomaly score and map of a prepared scan (the timed part of the papers' tables)."""
        clock = StageClock() if clock is None else clock
        scores = self._pipeline.score(prepared, clock)
        if not math.isfinite(scores.image_score) or not np.isfinite(scores.anomaly_map).all():
            raise MmadFastError(
                f"scan {prepared.name!r}: the detector's answer is not finite; the scan's values "
                "or the artifact's weights are out of range: run `mmad-fast doctor ARTIFACT`, then "
                "check the scan"
            )
        threshold = self.threshold
        return Result(
            image_score=scores.image_score,
            anomaly_map=scores.anomaly_map,
            threshold=threshold,
            is_anomalous=None if threshold is None else scores.image_score > threshold,
            native_size=prepared.native_size,
            padding=prepared.padding,
            stage_ms=clock.stage_ms,
            name=prepared.name,
            map_threshold=threshold if self._is_scored_by_maximum else None,
        )

    def score_scale(self, image_score: float) -> float:
        """The size of the numbers behind an image score, which its rounding errors grow with: a
        score that an offset was subtracted from may be near 0 though they are not."""
        offset = abs(float(self.artifact.manifest.parameters.get("score_offset", 0.0)))
        return max(abs(image_score), offset, float(np.finfo(np.float32).tiny))

    def replay_golden(self) -> GoldenReplay:
        """The answer to the artifact's golden scan, beside the one recorded at fitting.

        Raises:
            ArtifactError: the golden scan is unreadable or its map has another size.
        """
        golden = self.artifact.golden()
        result = self.infer(golden.rgb, golden.xyz, name="golden")
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
            map_step=self.map_step,
        )


def load(
    path: str | Path,
    *,
    engine: str = "auto",
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int | None = None,
    verify: bool = True,
) -> Detector:
    """The detector in an artifact folder, verified and ready.

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

    Raises:
        InvalidInputError: `path` is no path, or an option of the wrong type or range.
        ArtifactError: missing, damaged, newer than this version, or of an unknown family.
        BackendUnavailableError: the engine, device or precision cannot be had here; says why not,
            and the command that exports what is missing.
    """
    artifact = read_artifact(path, verify=verify)
    choice = choose_engine(
        artifact.engine_files(),
        engine=engine,
        device=device,
        precision=precision,
        num_threads=num_threads,
    )
    return open_detector(artifact, choice, device=device, num_threads=num_threads)


def open_detector(
    artifact: Artifact, choice: EngineChoice, *, device: str = "cpu", num_threads: int | None = None
) -> Detector:
    """The detector of a verified artifact with an engine that has been chosen; see `load`.

    Raises:
        ArtifactError: a graph, tensor or parameter is missing or damaged.
        BackendUnavailableError: the engine or device cannot be had here.
    """
    family = artifact.manifest.family
    if family not in FAMILY_DETECTORS:
        known = ", ".join(FAMILY_DETECTORS)
        raise ArtifactError(
            f"{artifact.path}: the artifact is of family {family!r}, this version runs {known}; "
            "upgrade with: pip install --upgrade mmad-fast"
        )
    by_device = FAMILY_DETECTORS[family]
    if device not in by_device:
        raise BackendUnavailableError(
            f"{artifact.path}: a {artifact.manifest.method} detector does not run on device "
            f"{device!r}, but on {', '.join(by_device)}; choose it with device= or --device"
        )
    module, name = by_device[device].split(":")
    family_detector: Any = getattr(import_module(module), name)
    try:
        pipeline = family_detector.from_artifact(artifact, engine=choice, num_threads=num_threads)
        return_freed_memory()
        return Detector(artifact, pipeline, choice)
    except KeyError as error:
        raise ArtifactError(
            f"{artifact.path}: the artifact lacks {error}; it is incomplete or of another version, "
            "fit it again"
        ) from error


def infer(
    detector: Detector | str | Path, rgb: ArrayLike, xyz: ArrayLike, *, unit: Unit = "m"
) -> Result:
    """The anomaly score and map of one scan, by a detector or the path of its artifact.

    A path is loaded once and kept until its artifact is replaced. Arguments, result and errors are
    those of `Detector.infer` and `load`.
    """
    if isinstance(detector, (str, os.PathLike)):
        detector = _load_once(str(Path(detector).absolute()), _time_of_writing(Path(detector)))
    if not isinstance(detector, Detector):
        raise InvalidInputError(
            f"detector is {detector!r}; it must be what mmad_fast.load returns, or an artifact's "
            "path"
        )
    return detector.infer(rgb, xyz, unit=unit)


def _time_of_writing(artifact: Path) -> int:
    """Nanoseconds; 0 where it cannot be had: loading then says why."""
    try:
        return (artifact / MANIFEST_FILE).stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4)
def _load_once(path: str, manifest_stamp: int) -> Detector:
    """`load`, kept per path and time of writing; a replaced artifact is loaded anew."""
    return load(path)


def _threshold(artifact: Artifact) -> float | None:
    record = artifact.manifest.threshold
    return None if record is None else float(record["value"])
