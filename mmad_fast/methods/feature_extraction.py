"""From a prepared scan to the features of its RGB tokens and its point groups: what the detectors
of all methods begin with. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine, open_graph
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, EmptyScanError
from mmad_fast.methods.backbone_parameters import EMBEDDER_PREFIX, BackboneParameters
from mmad_fast.ops.farthest_point_sampling import OP as SAMPLING_OP
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import OP as INTERPOLATION_OP
from mmad_fast.ops.inverse_distance_interpolation import (
    InterpolationWeights,
    inverse_distance_weights,
)
from mmad_fast.ops.knn_grouping import OP as GROUPING_OP
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import OP as EMBEDDING_OP
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS as POINT_TOKEN_CHANNELS
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

RGB_GRAPH = "rgb"
POINT_GRAPH = "points"


@dataclass(frozen=True)
class PointGroups:
    """The features of a scan's point groups, and how each of its points mixes them.

    Attributes:
        features: (G, C3) float32.
        weights: Of the N points: the three nearest groups' centres and their weights.
    """

    features: NDArray[np.float32]
    weights: InterpolationWeights


@dataclass(frozen=True)
class PointBackends:
    """The backend of each op by name: chosen when a detector is made, not anew for every scan."""

    sampling: str
    grouping: str
    embedding: str
    interpolation: str

    @classmethod
    def resolve(cls, *, device: str = "cpu") -> PointBackends:
        """The first of each op that can run on the device ("cpu" or "cuda").

        Raises:
            BackendUnavailableError: an op has none.
        """
        return cls(
            sampling=SAMPLING_OP.resolve(device=device).name,
            grouping=GROUPING_OP.resolve(device=device).name,
            embedding=EMBEDDING_OP.resolve(device=device).name,
            interpolation=INTERPOLATION_OP.resolve(device=device).name,
        )


class RgbExtractor:
    """The frozen RGB backbone. `tokens` is thread-safe."""

    def __init__(self, engine: Engine) -> None:
        """Takes the graph "rgb": image (1, 3, R, R) -> tokens (1, T, C2)."""
        self._engine = engine

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        *,
        engine: EngineChoice,
        num_threads: int | None,
        parameters: BackboneParameters,
    ) -> RgbExtractor:
        """The RGB backbone in an artifact, run by the engine from the choice's file.

        Raises:
            ArtifactError: the graph does not fit the parameters.
            BackendUnavailableError: no such engine.
        """
        graph = open_graph(engine.files[RGB_GRAPH], engine=engine.engine, num_threads=num_threads)
        check_rgb_graph(artifact, graph, parameters)
        return cls(graph)

    def with_engines(self, wrap: Callable[[str, Engine], Engine]) -> RgbExtractor:
        """The same extractor, its engine replaced by what `wrap` makes of the graph's name and
        it."""
        return RgbExtractor(wrap(RGB_GRAPH, self._engine))

    def tokens(self, prepared: PreparedScan, clock: StageClock) -> NDArray[np.float32]:
        """(T, C2) float32 RGB tokens of a prepared scan, row-major on the token grid."""
        with clock.stage("rgb_tokens"):
            tokens: NDArray[np.float32] = self._engine.run({"image": prepared.rgb[None]})["tokens"]
        return tokens[0]


class PointExtractor:
    """The frozen point backbone and the geometry around it. `groups` is thread-safe."""

    def __init__(
        self, engine: Engine, embedder: EmbedderWeights, parameters: BackboneParameters
    ) -> None:
        """Takes the graph "points" (tokens (1, G, 384), centers (1, G, 3) -> features
        (1, G, C3)), and the embedder that makes its tokens."""
        self.backends = PointBackends.resolve()
        self._engine = engine
        self._embedder = embedder
        self._parameters = parameters

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        *,
        engine: EngineChoice,
        num_threads: int | None,
        parameters: BackboneParameters,
    ) -> PointExtractor:
        """The point backbone in an artifact, run by the engine from the choice's file.

        Raises:
            ArtifactError: the graph does not fit the parameters, or a tensor is missing.
            BackendUnavailableError: no such engine, or an op cannot run here.
        """
        graph = open_graph(engine.files[POINT_GRAPH], engine=engine.engine, num_threads=num_threads)
        check_point_graph(artifact, graph, parameters)
        embedder = EmbedderWeights.from_tensors(artifact.tensors(), EMBEDDER_PREFIX)
        return cls(graph, embedder, parameters)

    def with_engines(self, wrap: Callable[[str, Engine], Engine]) -> PointExtractor:
        """The same extractor, its engine replaced by what `wrap` makes of the graph's name and
        it."""
        return PointExtractor(wrap(POINT_GRAPH, self._engine), self._embedder, self._parameters)

    def groups(self, prepared: PreparedScan, clock: StageClock) -> PointGroups:
        """The features of a prepared scan's point groups.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        parameters, points, backends = self._parameters, prepared.points, self.backends
        require_points(prepared, parameters.group_size)
        with clock.stage("sampling"):
            index = PointIndex(points)
            center_indices = farthest_point_sampling(
                points,
                parameters.num_groups,
                skip_near_origin=parameters.skip_near_origin,
                index=index,
                backend=backends.sampling,
            )
            centers = points[center_indices]  # (G, 3)
        with clock.stage("grouping"):
            groups = knn_grouping(
                points,
                center_indices,
                parameters.group_size,
                index=index,
                backend=backends.grouping,
            ).groups
        with clock.stage("point_embedding"):
            group_tokens = point_embedding(groups, self._embedder, backend=backends.embedding)
        with clock.stage("point_features"):
            inputs = {"tokens": group_tokens[None], "centers": centers[None]}
            features = self._engine.run(inputs)["features"][0]  # (G, C3)
        with clock.stage("interpolation"):
            weights = inverse_distance_weights(
                points, centers, index=index, backend=backends.interpolation
            )
        return PointGroups(features, weights)


def check_rgb_graph(artifact: Artifact, graph: Engine, parameters: BackboneParameters) -> None:
    """Raises ArtifactError where the graph "rgb" does not fit the manifest's parameters."""
    side = parameters.rgb_size
    check_inputs(artifact, graph, {"image": (1, 3, side, side)})


def check_point_graph(artifact: Artifact, graph: Engine, parameters: BackboneParameters) -> None:
    """Raises ArtifactError where the graph "points" does not fit the manifest's parameters."""
    num_groups = parameters.num_groups
    wanted = {"tokens": (1, num_groups, POINT_TOKEN_CHANNELS), "centers": (1, num_groups, 3)}
    check_inputs(artifact, graph, wanted)


def check_inputs(artifact: Artifact, graph: Engine, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ArtifactError where an input of a graph has another shape than wanted."""
    for name, shape in wanted.items():
        if graph.input_shapes.get(name) != shape:
            raise ArtifactError(
                f"{artifact.path}: graph input {name!r} has shape "
                f"{graph.input_shapes.get(name)}, the manifest's parameters need {shape}; fit the "
                "detector again"
            )


def require_points(prepared: PreparedScan, group_size: int) -> None:
    """Raises EmptyScanError where a scan has fewer foreground points than one group holds."""
    num_points = len(prepared.points)
    if num_points >= group_size:
        return
    label = f"scan {prepared.name!r}" if prepared.name else "the scan"
    raise EmptyScanError(
        f"{label} has {num_points} foreground points on the {prepared.grid_size}x"
        f"{prepared.grid_size} grid, the detector needs at least {group_size}; check that the part "
        "is in view (an empty fixture is no scan), that the unit is right (unit='mm' for "
        "millimetres), and that the background plane is not the part itself"
    )
