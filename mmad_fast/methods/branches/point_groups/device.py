"""The run half of the branch on a CUDA device. Needs torch, whose tensors hold the arrays."""

from __future__ import annotations

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.point_groups.cpu import (
    GRAPH,
    PointBackends,
    PointGroups,
    check_graph,
)
from mmad_fast.methods.branches.point_groups.options import EMBEDDER_PREFIX, PointGroupOptions
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_weights
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.stage_clock import StageClock


class DevicePointExtractor:
    """The frozen point backbone and the geometry around it on a CUDA device."""

    def __init__(
        self,
        engine: DeviceEngine,
        embedder: EmbedderWeights,
        options: PointGroupOptions,
        stream: DeviceStream,
    ) -> None:
        """Takes the graph "points", which runs in the stream, and the embedder that makes its
        tokens; see cpu.PointExtractor."""
        self.backends = PointBackends.resolve(device="cuda")
        self._engine = engine
        self._embedder = embedder
        self._options = options
        self._stream = stream

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        choice: EngineChoice,
        options: PointGroupOptions,
        stream: DeviceStream,
    ) -> DevicePointExtractor:
        """The point backbone in an artifact, run in the stream as the choice says.

        Raises:
            ArtifactError: the graph does not fit the options, or a tensor is missing.
            BackendUnavailableError: an op or the engine cannot use the device.
        """
        graph = stream.open_graph(choice, GRAPH)
        check_graph(artifact, graph, options)
        embedder = EmbedderWeights.from_tensors(artifact.tensors(), EMBEDDER_PREFIX)
        return cls(graph, embedder, options, stream)

    def groups(self, points: Tensor, clock: StageClock) -> PointGroups:
        """The features of the groups of points (N, 3), tensors on the device, in the current
        stream. N is at least `group_size`: see cpu.require_points."""
        options, backends = self._options, self.backends
        with clock.stage("sampling"):
            center_indices = farthest_point_sampling(
                points,
                options.num_groups,
                skip_near_origin=options.skip_near_origin,
                backend=backends.sampling,
            )
            centers = points[center_indices]  # (G, 3)
        with clock.stage("grouping"):
            groups = knn_grouping(
                points, center_indices, options.group_size, backend=backends.grouping
            ).groups
        with clock.stage("point_embedding"):
            group_tokens: Tensor = point_embedding(
                groups, self._embedder, backend=backends.embedding
            )
        with clock.stage("point_features"):
            features = self._stream.run(
                self._engine, tokens=group_tokens[None], centers=centers[None]
            )[0]  # (G, C3)
        with clock.stage("interpolation"):
            weights = inverse_distance_weights(points, centers, backend=backends.interpolation)
        return PointGroups(features, weights)
