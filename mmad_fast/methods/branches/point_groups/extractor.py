"""The run half of the branch: from points to the features of their groups. Needs no torch on the
CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.gpu.device_arrays import is_device_array
from mmad_fast.methods.branches.branch import HOST, Place, check_graph
from mmad_fast.methods.branches.point_groups.options import EMBEDDER_PREFIX, PointGroupOptions
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
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS, EmbedderWeights, point_embedding
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.stage_clock import StageClock

GRAPH = "points"


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


@dataclass(frozen=True)
class EmbeddedGroups:
    """The groups of a scan's points, each as a token.

    Attributes:
        tokens: (G, 384) float32.
        centers: (G, 3) float32 metres.
        index: Of the points; None on a CUDA device.
    """

    tokens: NDArray[np.float32]
    centers: NDArray[np.float32]
    index: PointIndex | None

    @property
    def graph_inputs(self) -> dict[str, NDArray]:
        """What the graph "points" takes."""
        return {"tokens": self.tokens[None], "centers": self.centers[None]}


def embed_groups(
    points: NDArray[np.float32],
    embedder: EmbedderWeights,
    options: PointGroupOptions,
    backends: PointBackends,
    clock: StageClock,
) -> EmbeddedGroups:
    """The groups of points (N, 3), N at least `group_size`; where the points are."""
    with clock.stage("sampling"):
        index = None if is_device_array(points) else PointIndex(points)
        center_indices = farthest_point_sampling(
            points,
            options.num_groups,
            skip_near_origin=options.skip_near_origin,
            index=index,
            backend=backends.sampling,
        )
        centers = points[center_indices]  # (G, 3)
    with clock.stage("grouping"):
        groups = knn_grouping(
            points, center_indices, options.group_size, index=index, backend=backends.grouping
        ).groups
    with clock.stage("point_embedding"):
        tokens = point_embedding(groups, embedder, backend=backends.embedding)
    return EmbeddedGroups(tokens, centers, index)


class PointExtractor:
    """The frozen point backbone and the geometry around it. `groups` is thread-safe."""

    def __init__(
        self,
        engine: Engine,
        embedder: EmbedderWeights,
        options: PointGroupOptions,
        place: Place = HOST,
    ) -> None:
        """Takes the graph "points" (tokens (1, G, 384), centers (1, G, 3) -> features
        (1, G, C3)), the embedder that makes its tokens, and where both run."""
        self.backends = PointBackends.resolve(device=place.device_kind)
        self._place = place
        self._engine = engine
        self._embedder = embedder
        self._options = options

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        choice: EngineChoice,
        options: PointGroupOptions,
        place: Place = HOST,
    ) -> PointExtractor:
        """The point backbone in an artifact, run as the choice says.

        Raises:
            ArtifactError: the graph does not fit the options, or a tensor is missing.
            BackendUnavailableError: no such engine, or it or an op cannot run there.
        """
        graph = place.open_graph(choice, GRAPH)
        num_groups = options.num_groups
        check_graph(
            artifact,
            GRAPH,
            graph,
            inputs={"tokens": (1, num_groups, TOKEN_CHANNELS), "centers": (1, num_groups, 3)},
            outputs={"features": (1, num_groups, -1)},
        )
        embedder = EmbedderWeights.from_tensors(artifact.tensors(), EMBEDDER_PREFIX)
        return cls(graph, embedder, options, place)

    def groups(self, points: Any, clock: StageClock) -> PointGroups:
        """The features of the groups of points (N, 3), where both run; N is at least `group_size`,
        see branch.require_points."""
        backends = self.backends
        embedded = embed_groups(points, self._embedder, self._options, backends, clock)
        with clock.stage("point_features"):
            features = self._place.run(self._engine, **embedded.graph_inputs)[0]  # (G, C3)
        with clock.stage("interpolation"):
            weights = inverse_distance_weights(
                points, embedded.centers, index=embedded.index, backend=backends.interpolation
            )
        return PointGroups(features, weights)


def point_channels(artifact: Artifact) -> int:
    """C3 of the point features, by an artifact's manifest."""
    return artifact.output_shape(GRAPH, "features")[2]
