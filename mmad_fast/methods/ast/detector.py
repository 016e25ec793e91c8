"""The run half of AST: prepared scan in, anomaly map and score out. Needs no torch.

Read `FeatureExtractor.extract` and `AstPipeline.score_features` from top to bottom: that is the
data flow. The published pipeline computes the same in torch, see reference.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, EmptyScanError
from mmad_fast.methods.ast import scoring
from mmad_fast.methods.ast.options import DEPTH_BLOCK, GRAPH, AstOptions
from mmad_fast.methods.branches.branch import HOST, Place, check_graph
from mmad_fast.methods.branches.cnn_pyramid.extractor import CnnPyramidExtractor
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import DepthPicture, PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class AstFeatures:
    """The features of one scan.

    Attributes:
        features: (C, M, M) float32: RGB features, then the depth pixels of each place.
        weights: (M, M) float32, 0-1: the share of the dilated foreground.
    """

    features: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class AstScores:
    """What AST says of one scan.

    Attributes:
        anomaly_map: (S, S) float32; below 0 only where the bicubic interpolation undershoots.
        image_score: Its maximum, or the mean difference.
    """

    anomaly_map: NDArray[np.float32]
    image_score: float


class FeatureExtractor:
    """The RGB backbone, if any, and the depth beside it. `extract` is thread-safe."""

    def __init__(
        self, rgb: CnnPyramidExtractor | None, options: AstOptions, place: Place = HOST
    ) -> None:
        """Takes the branch, which runs in the place; None for a detector without RGB."""
        self.place = place
        self._rgb = rgb
        self._options = options

    def extract(self, prepared: PreparedScan, clock: StageClock) -> AstFeatures:
        """The features of a prepared scan.

        Raises:
            EmptyScanError: no foreground.
        """
        depth = require_depth(prepared)
        parts: list[Any] = []
        if self._rgb is not None:
            image, _ = self.place.upload_scan(prepared, clock)
            parts.extend(self._rgb.maps(image, clock))  # (304, M, M)
        with clock.stage("depth"):
            if self._options.reads_depth:
                parts.append(unshuffle(depth.values))  # (64, M, M)
            features = self._join(parts)
            weights = scoring.foreground_weights(depth.foreground, side=self._options.map_side)
        return AstFeatures(features, weights)

    def _join(self, parts: list[Any]) -> Any:
        """(C, M, M) of maps with the channels one after the other, where the graphs run."""
        return np.concatenate(parts)


class AstPipeline:
    """A fitted AST detector. `score` is thread-safe."""

    def __init__(self, extractor: FeatureExtractor, networks: Engine, options: AstOptions) -> None:
        """Takes the graph features (1, C, M, M) -> difference (1, M, M); use `from_artifact`."""
        self.extractor = extractor
        self.options = options
        self._networks = networks

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> AstPipeline:
        """The pipeline in an artifact, its graphs run as the choice says.

        Raises:
            ArtifactError: a graph or parameter is missing or damaged.
            BackendUnavailableError: no such engine.
        """
        return cls(*open_parts(artifact, choice, FeatureExtractor, HOST))

    def score(self, prepared: PreparedScan, clock: StageClock) -> AstScores:
        """The anomaly map and image score of a prepared scan.

        Raises:
            EmptyScanError: no foreground.
        """
        with self.extractor.place.current():
            return self.score_features(self.extractor.extract(prepared, clock), clock)

    def score_features(self, features: AstFeatures, clock: StageClock) -> AstScores:
        """The anomaly map and image score of extracted features."""
        with clock.stage("networks"):
            difference = self._difference(features.features)
        with clock.stage("scoring"):
            weighted = features.weights * difference
            # The published evaluation weights the map, but not the mean, once more.
            anomaly_map = scoring.upsample_bicubic(
                features.weights * weighted, size=self.options.grid_size
            )
            is_maximum = self.options.image_score == "max"
            image_score = anomaly_map.max() if is_maximum else weighted.mean(dtype=np.float64)
        return AstScores(anomaly_map, float(image_score))

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC): both as they are."""
        return anomaly_map, anomaly_map

    def _difference(self, features: Any) -> NDArray[np.float32]:
        """(M, M) mean over the channels of the squared difference of both networks, on the host."""
        difference: NDArray[np.float32] = self.extractor.place.run(
            self._networks, features=features[None]
        )[0]
        return difference


def open_parts(
    artifact: Artifact, choice: EngineChoice, extractor: type[FeatureExtractor], place: Place
) -> tuple[FeatureExtractor, Any, AstOptions]:
    """(extractor, graph of the networks, options) of an artifact, in the place.

    Raises:
        ArtifactError: a graph or parameter is missing or damaged.
        BackendUnavailableError: no such engine, or it cannot run there.
    """
    options = AstOptions.from_manifest(artifact.manifest.parameters)
    check_recipe(artifact, options)
    rgb = None
    if options.reads_rgb:
        rgb = CnnPyramidExtractor.from_artifact(artifact, choice, options, place)
    networks = place.open_graph(choice, GRAPH)
    side = options.map_side
    check_graph(
        artifact,
        GRAPH,
        networks,
        inputs={"features": (1, options.channels, side, side)},
        outputs={"difference": (1, side, side)},
    )
    return extractor(rgb, options, place), networks, options


def check_recipe(artifact: Artifact, options: AstOptions) -> None:
    """Raises ArtifactError where an artifact's sizes or recipe are none that this family writes."""
    recipe = Recipe.from_dict(artifact.manifest.preprocess)
    side = options.map_side
    fits = options.grid_size == side * DEPTH_BLOCK and options.channels > 0
    if options.reads_rgb:
        fits = fits and [shape[1:] for shape in options.map_shapes] == [(side, side)]
    if not fits or recipe.depth_plane_m is None:
        raise ArtifactError(
            f"{artifact.path}: the manifest's sizes (image {options.rgb_size}, grid "
            f"{options.grid_size}) or its recipe {recipe.name!r} do not fit the method; fit the "
            "detector again"
        )


def require_depth(prepared: PreparedScan) -> DepthPicture:
    """The depth picture of a scan.

    Raises:
        EmptyScanError: it has no foreground.
    """
    depth = prepared.depth
    assert depth is not None, "the recipe has been checked"
    if not depth.foreground.any():
        label = f"scan {prepared.name!r}" if prepared.name else "the scan"
        raise EmptyScanError(
            f"{label} has no foreground: nothing lies further from the background between the "
            "image's corners than the recipe's depth_plane_m; check that the part is in view (an "
            "empty fixture is no scan), that it is higher than that, and that the unit is right "
            "(unit='mm' for millimetres)"
        )
    return depth


def unshuffle(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(64, M, M): of each place the 8 x 8 depth pixels (S, S), row-major, as channels."""
    side = len(values) // DEPTH_BLOCK
    blocks = values.reshape(side, DEPTH_BLOCK, side, DEPTH_BLOCK)
    return np.ascontiguousarray(blocks.transpose(1, 3, 0, 2)).reshape(-1, side, side)
