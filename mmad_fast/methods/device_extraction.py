"""The features of RGB tokens and point groups on a CUDA device: the steps of feature_extraction.py,
with backbones and ops on the device. Needs torch, whose tensors hold the arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine, open_device_graph
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.backbone_parameters import EMBEDDER_PREFIX, BackboneParameters
from mmad_fast.methods.feature_extraction import (
    POINT_GRAPH,
    RGB_GRAPH,
    PointBackends,
    PointGroups,
    check_point_graph,
    check_rgb_graph,
)
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_weights
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.stage_clock import StageClock

Tensor = Any
"""A torch tensor on the device. The ops, declared for NumPy arrays, return the kind they get."""

TORCH_DEVICE = "cuda"
"""Torch's name of the device."""


@dataclass(frozen=True)
class DeviceStream:
    """A CUDA device and the stream on it in which all work of one detector is done, in order.

    Attributes:
        device: Torch's device.
        stream: Its stream; None is for tests on the host.
    """

    device: torch.device
    stream: torch.cuda.Stream | None

    @classmethod
    def new(cls) -> DeviceStream:
        """A new stream on torch's current CUDA device."""
        device = torch.device(TORCH_DEVICE)
        if device.type != "cuda":
            return cls(device, None)
        device = torch.device(TORCH_DEVICE, torch.cuda.current_device())
        return cls(device, torch.cuda.Stream(device))

    @contextmanager
    def current(self) -> Iterator[None]:
        """This device and stream for the tensors and launches of this thread."""
        if self.stream is None:
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def open_graph(self, path: Path, engine: str) -> DeviceEngine:
        """The graph in a file, run by the engine in this stream.

        Raises:
            BackendUnavailableError: the engine cannot use the device.
        """
        return open_device_graph(
            path,
            engine=engine,
            device_index=self.device.index or 0,
            stream=0 if self.stream is None else self.stream.cuda_stream,
        )

    def run(self, engine: DeviceEngine, **inputs: Tensor) -> Tensor:
        """The one output of a graph."""
        outputs = {
            name: torch.empty(shape, dtype=torch.float32, device=self.device)
            for name, shape in engine.output_shapes.items()
        }
        contiguous = {name: tensor.contiguous() for name, tensor in inputs.items()}
        engine.run_bound(
            {name: tensor.data_ptr() for name, tensor in contiguous.items()},
            {name: tensor.data_ptr() for name, tensor in outputs.items()},
        )
        (output,) = outputs.values()
        return output

    def upload(self, array: NDArray) -> Tensor:
        """A copy on the device. Waits for what was launched before: upload first, then launch."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def upload_rows(self, rows: SparseRows) -> SparseRows:
        """The same rows with their arrays on the device."""
        return SparseRows(
            self.upload(rows.offsets),
            self.upload(rows.columns),
            self.upload(rows.values),
            rows.num_columns,
        )


class DeviceRgbExtractor:
    """The frozen RGB backbone on a CUDA device."""

    def __init__(self, engine: DeviceEngine, stream: DeviceStream) -> None:
        """Takes the graph "rgb", which runs in the stream; see feature_extraction.RgbExtractor."""
        self._engine = engine
        self._stream = stream

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        *,
        engine: EngineChoice,
        parameters: BackboneParameters,
        stream: DeviceStream,
    ) -> DeviceRgbExtractor:
        """The RGB backbone in an artifact, run by the engine from the choice's file.

        Raises:
            ArtifactError: the graph does not fit the parameters.
            BackendUnavailableError: the engine cannot use the device.
        """
        graph = stream.open_graph(engine.files[RGB_GRAPH], engine.engine)
        check_rgb_graph(artifact, graph, parameters)
        return cls(graph, stream)

    def tokens(self, image: Tensor, clock: StageClock) -> Tensor:
        """(T, C2) float32 tokens of an image (1, 3, R, R), in the current stream."""
        with clock.stage("rgb_tokens"):
            return self._stream.run(self._engine, image=image)[0]


class DevicePointExtractor:
    """The frozen point backbone and the geometry around it on a CUDA device."""

    def __init__(
        self,
        engine: DeviceEngine,
        embedder: EmbedderWeights,
        parameters: BackboneParameters,
        stream: DeviceStream,
    ) -> None:
        """Takes the graph "points", which runs in the stream, and the embedder that makes its
        tokens; see feature_extraction.PointExtractor."""
        self.backends = PointBackends.resolve(device="cuda")
        self._engine = engine
        self._embedder = embedder
        self._parameters = parameters
        self._stream = stream

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        *,
        engine: EngineChoice,
        parameters: BackboneParameters,
        stream: DeviceStream,
    ) -> DevicePointExtractor:
        """The point backbone in an artifact, run by the engine from the choice's file.

        Raises:
            ArtifactError: the graph does not fit the parameters, or a tensor is missing.
            BackendUnavailableError: an op or the engine cannot use the device.
        """
        graph = stream.open_graph(engine.files[POINT_GRAPH], engine.engine)
        check_point_graph(artifact, graph, parameters)
        embedder = EmbedderWeights.from_tensors(artifact.tensors(), EMBEDDER_PREFIX)
        return cls(graph, embedder, parameters, stream)

    def groups(self, points: Tensor, clock: StageClock) -> PointGroups:
        """The features of the groups of points (N, 3), tensors on the device, in the current
        stream. N is at least `group_size`: see feature_extraction.require_points."""
        parameters, backends = self._parameters, self.backends
        with clock.stage("sampling"):
            center_indices = farthest_point_sampling(
                points,
                parameters.num_groups,
                skip_near_origin=parameters.skip_near_origin,
                backend=backends.sampling,
            )
            centers = points[center_indices]  # (G, 3)
        with clock.stage("grouping"):
            groups = knn_grouping(
                points, center_indices, parameters.group_size, backend=backends.grouping
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
