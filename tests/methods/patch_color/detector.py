"""The run half: a prepared scan in, the difference of each patch's mean colour out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.patch_color.options import PatchColorOptions
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

GRAPH = "patch_means"


@dataclass(frozen=True)
class PatchColors:
    """The mean colours (3, H, W) float32 of a scan's patches."""

    means: NDArray[np.float32]


@dataclass(frozen=True)
class PatchColorScores:
    """The largest difference of each pixel's patch (S, S) float32, and their maximum."""

    anomaly_map: NDArray[np.float32]
    image_score: float


class PatchColorPipeline:
    """A fitted detector. `score` is thread-safe."""

    def __init__(
        self,
        engine: Engine,
        nominal: NDArray[np.float32],
        spread: NDArray[np.float32],
        options: PatchColorOptions,
    ) -> None:
        """Takes the graph image (1, 3, R, R) -> means (1, 3, H, W), and of the nominal scans mean
        and spread (3, H, W)."""
        self._engine = engine
        self._nominal = nominal
        self._spread = spread
        self._options = options

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> PatchColorPipeline:
        """The pipeline in an artifact."""
        tensors = artifact.tensors()
        options = PatchColorOptions.from_manifest(artifact.manifest.parameters)
        return cls(choice.open(GRAPH), tensors["nominal"], tensors["spread"], options)

    @property
    def options(self) -> PatchColorOptions:
        """What the detector was fitted with."""
        return self._options

    def extract(self, prepared: PreparedScan, clock: StageClock) -> PatchColors:
        """The mean colours of a prepared scan."""
        with clock.stage("patch_means"):
            return PatchColors(self._engine.run({"image": prepared.rgb[None]})["means"][0])

    def score(self, prepared: PreparedScan, clock: StageClock) -> PatchColorScores:
        """The anomaly map and image score of a prepared scan."""
        return self.score_features(self.extract(prepared, clock), clock)

    def score_features(self, features: PatchColors, clock: StageClock) -> PatchColorScores:
        """The anomaly map and image score of extracted colours."""
        with clock.stage("scoring"):
            difference = np.abs((features.means - self._nominal) / self._spread).max(axis=0)
            scale = self._options.grid_size // difference.shape[0]
            anomaly_map = np.kron(difference, np.ones((scale, scale), np.float32))
        return PatchColorScores(anomaly_map.astype(np.float32), float(anomaly_map.max()))

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The map itself in both."""
        return anomaly_map, anomaly_map
