"""The run half of M3DM: prepared scan in, anomaly map and score out. Needs no torch.

Read `PatchExtractor.extract` and `M3dmPipeline.score_features` from top to bottom: that is the data
flow. The published pipeline computes the same densely, see reference.py: here only distinct rows
are computed and searched, and the answers are spread to the patches that share them. README.md has
the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.heap import return_freed_memory
from mmad_fast.methods.branches.branch import HOST, Place, check_graph, require_points
from mmad_fast.methods.branches.point_groups.extractor import (
    PointExtractor,
    PointGroups,
    point_channels,
)
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor, tokens_shape
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures, bank_queries
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH, M3dmOptions
from mmad_fast.methods.memory_bank.search import (
    BankScores,
    SearchBackends,
    normalize_rows,
    open_bank,
    search_bank,
    weigh,
)
from mmad_fast.ops.inverse_distance_interpolation import (
    POOLED_ROWS_OP,
    PooledRows,
    pooled_interpolation_rows,
)
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class M3dmScores:
    """What M3DM says of one scan.

    Attributes:
        anomaly_map: (S, S) float32; weights of the decision layer may make it negative.
        image_score: Not the maximum of the map: it is re-weighted and decided on its own.
    """

    anomaly_map: NDArray[np.float32]
    image_score: float


class PatchFusion:
    """The networks of the unsupervised feature fusion (UFF). `fuse` is thread-safe."""

    def __init__(self, point: Engine, rgb: Engine) -> None:
        """Takes the graphs "uff_point" (rows (1, R, C3) -> fused (1, R, C3)) and "uff_rgb"
        (rows (1, T, C2) -> fused (1, T, C2))."""
        self._point = point
        self._rgb = rgb

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> PatchFusion:
        """The networks in an artifact, run as the choice says.

        Raises:
            ArtifactError: a graph does not fit the features of the backbones.
            BackendUnavailableError: no such engine.
        """
        point, rgb = choice.open(UFF_POINT_GRAPH), choice.open(UFF_RGB_GRAPH)
        height = point.input_shapes.get("rows", (1, 1))[1]  # as many at a time as it likes
        points = {"rows": (1, height, point_channels(artifact))}
        tokens = {"rows": tokens_shape(artifact)}
        for name, graph, rows in ((UFF_POINT_GRAPH, point, points), (UFF_RGB_GRAPH, rgb, tokens)):
            check_graph(artifact, name, graph, inputs=rows, outputs={"fused": rows["rows"]})
        return cls(point, rgb)

    def fuse(self, features: PatchFeatures) -> PatchFeatures:
        """The features with their fused parts."""
        tokens, point_rows = features.tokens, features.point_rows
        assert tokens is not None
        assert point_rows is not None
        fused_tokens = self._rgb.run({"rows": tokens[None]})["fused"][0]  # (T, C2)
        return replace(
            features, fused_points=self._fuse_points(point_rows), fused_tokens=fused_tokens
        )

    def _fuse_points(self, point_rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P + 1, C3): of the rows and of zeros, as many at a time as the graph takes."""
        num_rows, num_channels = point_rows.shape
        fused = np.empty((num_rows + 1, num_channels), np.float32)
        height = self._point.input_shapes["rows"][1]
        for first in range(0, num_rows + 1, height):
            block = np.zeros((1, height, num_channels), np.float32)
            part = point_rows[first : first + height]
            block[0, : len(part)] = part
            target = fused[first : first + height]
            target[:] = self._point.run({"rows": block})["fused"][0, : len(target)]
        return fused


class PatchExtractor:
    """The frozen backbones, the pooling to patches, and the feature fusion; those of them that the
    banks read. `extract` is thread-safe."""

    def __init__(
        self,
        rgb: RgbExtractor | None,
        point: PointExtractor | None,
        options: M3dmOptions,
        fusion: PatchFusion | None = None,
        place: Place = HOST,
    ) -> None:
        """Takes None for what is not read; without `fusion` the fused parts are left out. All of
        them run in the place."""
        self.place = place
        self._rgb = rgb
        self._point = point
        self._fusion = fusion
        self._options = options
        self._pooling_backend = POOLED_ROWS_OP.resolve(device=place.device_kind).name

    def extract(self, prepared: PreparedScan, clock: StageClock) -> PatchFeatures:
        """The features of a prepared scan.

        Raises:
            EmptyScanError: the detector reads points, and there are fewer than one group holds.
        """
        features = PatchFeatures(None, None, np.empty(0, np.int64))
        if self._point is not None:
            require_points(prepared, self._options.group_size)
        # All of it first: on a device an upload waits for what was launched before.
        image, points = self.place.upload_scan(prepared, clock)
        if self._point is not None:
            groups = self._point.groups(points, clock)
            with clock.stage("patch_features"):
                features = self._pool(groups, prepared)
        if self._rgb is not None:
            features = replace(features, tokens=self._rgb.tokens(image, clock))
        if self._fusion is not None:
            with clock.stage("feature_fusion"):
                features = self._fusion.fuse(features)
        return features

    def _pool(self, groups: PointGroups, prepared: PreparedScan) -> PatchFeatures:
        """The point features of the patches: interpolated, averaged 3 x 3 and pooled, in one."""
        patch_grid = self._options.patch_grid
        pooled = pooled_interpolation_rows(
            groups.weights,
            prepared.pixel_indices,
            num_centers=len(groups.features),
            grid_size=prepared.grid_size,
            output_size=patch_grid or prepared.grid_size,
            backend=self._pooling_backend,
        )
        if patch_grid is None:
            return PatchFeatures(
                None, groups.features, np.arange(len(groups.features)), spread=pooled
            )
        return PatchFeatures(None, self._mix(pooled.rows, groups.features), pooled.pixel_indices)

    def _mix(self, rows: SparseRows, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, C3) point rows from the groups' features (G, C3)."""
        return rows.apply(features)


class M3dmPipeline:
    """A fitted M3DM detector. `score` is thread-safe."""

    def __init__(
        self,
        extractor: PatchExtractor,
        banks: Mapping[str, PreparedBank],
        options: M3dmOptions,
    ) -> None:
        """Takes the memory banks by name, normalised; use `from_artifact`."""
        self.extractor = extractor
        self.options = options
        self._banks = {bank: banks[bank] for bank in options.banks}
        self._backends = SearchBackends.resolve(device=extractor.place.device_kind)

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> M3dmPipeline:
        """The pipeline in an artifact, its graphs run as the choice says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine.
        """
        options = M3dmOptions.from_manifest(artifact.manifest.parameters)
        rgb = point = fusion = None
        if options.reads_rgb:
            rgb = RgbExtractor.from_artifact(artifact, choice, options)
        if options.reads_points:
            point = PointExtractor.from_artifact(artifact, choice, options)
        if options.fuses:
            fusion = PatchFusion.from_artifact(artifact, choice)
        extractor = PatchExtractor(rgb, point, options, fusion)
        return_freed_memory()  # what reading the graphs left would add to what the banks need
        banks = read_banks(artifact, options)
        return cls(extractor, {name: bank.prepare() for name, bank in banks.items()}, options)

    def score(self, prepared: PreparedScan, clock: StageClock) -> M3dmScores:
        """The anomaly map and image score of a prepared scan.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        with self.extractor.place.current():
            return self.score_features(self.extractor.extract(prepared, clock), clock)

    def score_features(self, features: PatchFeatures, clock: StageClock) -> M3dmScores:
        """The anomaly map and image score of extracted features."""
        by_bank = self.bank_scores(features, clock)
        with clock.stage("decision"):
            return decide(by_bank, self.options)

    def bank_scores(self, features: PatchFeatures, clock: StageClock) -> dict[str, BankScores]:
        """What each bank says, before lambdas and decision layer: what that layer is fitted on."""
        return {
            bank: self._score_bank(bank, prepared_bank, features, clock)
            for bank, prepared_bank in self._banks.items()
        }

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC): the public code rates the map itself in both."""
        return anomaly_map, anomaly_map

    def _score_bank(
        self, name: str, bank: PreparedBank, features: PatchFeatures, clock: StageClock
    ) -> BankScores:
        stage = f"{name}_bank"
        with clock.stage(stage):
            queries, owner = bank_queries(features, self.options, name)
            rows = normalize_rows(queries, self.options.bank_scales[name])  # (Q, C)
        found = search_bank(rows, owner, bank, self._backends, clock, stage=stage)
        with clock.stage("maps"):
            num_channels, spread = rows.shape[1], spread_of(features, name)
            return weigh(found, self.options, num_channels=num_channels, spread=spread)


def spread_of(features: PatchFeatures, bank: str) -> PooledRows | None:
    """How the pixels of a bank's map mix its distances; None where the patches are a grid."""
    return None if bank == "rgb" else features.spread


def decide(by_bank: Mapping[str, BankScores], options: M3dmOptions) -> M3dmScores:
    """The weighted sums of the banks' scores and of their maps."""
    score = options.score_offset + sum(
        options.score_weights[bank] * scores.score for bank, scores in by_bank.items()
    )
    anomaly_map = np.full((options.grid_size, options.grid_size), options.map_offset, np.float32)
    for bank, scores in by_bank.items():
        anomaly_map += np.float32(options.map_weights[bank]) * scores.anomaly_map
    return M3dmScores(anomaly_map, float(score))


def read_banks(artifact: Artifact, options: M3dmOptions) -> dict[str, PreparedBank]:
    """The memory banks by name, checked, not yet measured; an artifact's tensors stay on disk.

    Raises:
        ArtifactError: a bank is missing, of another type than the options say, or damaged.
    """
    banks = {}
    for bank in options.banks:
        width = (point_channels(artifact) if bank != "rgb" else 0) + (
            tokens_shape(artifact)[2] if bank != "point" else 0
        )
        banks[bank] = open_bank(artifact, bank, num_channels=width, dtype=options.bank_dtype)
    return banks
