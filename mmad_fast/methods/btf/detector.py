"""BTF from prepared scan to anomaly map, without torch. Read `BtfPipeline.score` from top to
bottom: patches, nearest rows, score and map.

The published code computes the same densely, see reference.py. README.md has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.heap import return_freed_memory
from mmad_fast.methods.branches.branch import HOST, Place, require_points
from mmad_fast.methods.branches.cnn_pyramid.extractor import CnnPyramidExtractor
from mmad_fast.methods.branches.fpfh.extractor import MIN_POINTS, NUM_CHANNELS, FpfhExtractor
from mmad_fast.methods.btf.options import BANK, BtfOptions
from mmad_fast.methods.btf.patches import (
    DistinctPatches,
    Patches,
    distinct_patches,
    pool_maps,
    pool_points,
)
from mmad_fast.methods.memory_bank.search import (
    BankScores,
    SearchBackends,
    open_bank,
    search_bank,
    weigh,
)
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class BtfScores:
    """What BTF says of one scan.

    Attributes:
        anomaly_map: (S, S) float32, >= 0.
        image_score: Not the maximum of the map: it is re-weighted, and the map is blurred.
    """

    anomaly_map: NDArray[np.float32]
    image_score: float

    @classmethod
    def of(cls, scores: BankScores) -> BtfScores:
        """Those of the only bank."""
        return cls(scores.anomaly_map, scores.score)


class PatchExtractor:
    """The convolutional network, the histograms, and the pooling to patches; those of them that the
    detector reads. `extract` is thread-safe."""

    def __init__(
        self,
        rgb: CnnPyramidExtractor | None,
        points: FpfhExtractor | None,
        options: BtfOptions,
        place: Place = HOST,
    ) -> None:
        """Takes None for what is not read. All of them run in the place."""
        self.place = place
        self._rgb = rgb
        self._points = points
        self._options = options

    def extract(self, prepared: PreparedScan, clock: StageClock) -> Patches:
        """The patches of a prepared scan.

        Raises:
            EmptyScanError: the detector reads points, and there are fewer than span a plane.
        """
        rgb = points = None
        if self._points is not None:
            require_points(prepared, MIN_POINTS)
        # All of it first: on a device an upload waits for what was launched before.
        image, cloud = self.place.upload_scan(prepared, clock)
        if self._points is not None:
            descriptors = self._points.descriptors(cloud, clock)
            with clock.stage("pooling"):
                points = self._pool_points(descriptors, prepared)
        if self._rgb is not None:
            maps = self._rgb.maps(image, clock)
            with clock.stage("pooling"):
                rgb = self._pool_maps(maps)
        with clock.stage("pooling"):
            distinct = distinct_patches(prepared, self._options)
            return Patches(self._join(rgb, points, distinct), distinct.owner)

    def _pool_points(self, descriptors: NDArray, prepared: PreparedScan) -> NDArray:
        """(L, C3) of descriptors (N, C3) of the scan's points."""
        pixels, size = prepared.pixel_indices, prepared.grid_size
        return pool_points(descriptors, pixels, size, dtype=self._options.patch_dtype)

    def _pool_maps(self, maps: tuple[NDArray, ...]) -> NDArray:
        """(L, C2) of the network's maps."""
        return pool_maps(maps, dtype=self._options.patch_dtype)

    def _join(
        self, rgb: NDArray | None, points: NDArray | None, distinct: DistinctPatches
    ) -> NDArray:
        """(Q, C) the rows of the distinct patches, of features (L, C2) and (L, C3)."""
        if points is None or rgb is None:
            rows = points if rgb is None else rgb
            assert rows is not None
        else:
            rows = np.concatenate([rgb, points], axis=1)
        if not distinct.has_background:
            return rows
        zeros = np.zeros((1, rows.shape[1]), rows.dtype)
        return np.concatenate([rows[distinct.patches], zeros])


class BtfPipeline:
    """A fitted BTF detector. `score` is thread-safe."""

    def __init__(self, extractor: PatchExtractor, bank: PreparedBank, options: BtfOptions) -> None:
        """Takes the memory bank; use `from_artifact`."""
        self.extractor = extractor
        self.options = options
        self._bank = bank
        self._backends = SearchBackends.resolve(device=extractor.place.device_kind)

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> BtfPipeline:
        """The pipeline in an artifact, its graph run as the choice says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine.
        """
        options = BtfOptions.from_manifest(artifact.manifest.parameters)
        rgb = None
        if options.reads_rgb:
            rgb = CnnPyramidExtractor.from_artifact(artifact, choice, options)
        points = FpfhExtractor(options) if options.reads_points else None
        extractor = PatchExtractor(rgb, points, options)
        return_freed_memory()  # what reading the graph left would add to what the bank needs
        return cls(extractor, read_bank(artifact, options).prepare(), options)

    def score(self, prepared: PreparedScan, clock: StageClock) -> BtfScores:
        """The anomaly map and image score of a prepared scan.

        Raises:
            EmptyScanError: the detector reads points, and there are fewer than span a plane.
        """
        with self.extractor.place.current():
            return self.score_features(self.extractor.extract(prepared, clock), clock)

    def score_features(self, features: Patches, clock: StageClock) -> BtfScores:
        """The anomaly map and image score of extracted patches."""
        found = search_bank(
            features.rows, features.owner, self._bank, self._backends, clock, stage="bank"
        )
        with clock.stage("maps"):
            num_channels = features.rows.shape[1]
            return BtfScores.of(weigh(found, self.options, num_channels=num_channels))

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC): the public code rates the map itself in both."""
        return anomaly_map, anomaly_map


def read_bank(artifact: Artifact, options: BtfOptions) -> PreparedBank:
    """The memory bank, checked, not yet measured; an artifact's tensors stay on disk.

    Raises:
        ArtifactError: it is missing, of another type or width than the options say, or damaged.
    """
    num_channels = NUM_CHANNELS if options.reads_points else 0
    if options.reads_rgb:
        num_channels += sum(shape[0] for shape in options.map_shapes)
    return open_bank(artifact, BANK, num_channels=num_channels, dtype=options.bank_dtype)
