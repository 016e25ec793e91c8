"""CFM from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with backbones
and ops on the device.

The host makes what depends on the pixel grid alone (which pixels are scored, which points and
tokens each of them mixes), so that it never has to wait for the device in between: it waits once,
for the discrepancies. Needs torch, whose tensors hold the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine, open_device_graph
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.cfm.detector import (
    POINT_GRAPH,
    RGB_GRAPH,
    CfmScores,
    OpBackends,
    check_shapes,
    evaluated_pixels,
    mapping_networks,
    published_evaluation_maps,
    require_points,
    score_pixels,
)
from mmad_fast.methods.cfm.parameters import EMBEDDER_PREFIX, CfmParameters
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.pixel_mapping import MappingNetwork, bilinear_rows, pixel_mapping
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

Tensor = Any
"""A torch tensor on the device. The ops, declared for NumPy arrays, return the kind they get."""

TORCH_DEVICE = "cuda"
"""Torch's name of the device."""


@dataclass(frozen=True)
class DeviceFeatures:
    """The features of one scan on the device; see detector.CfmFeatures.

    Attributes:
        tokens: (T, C2) float32 tensor, row-major on the token grid.
        token_rows: (R x T) of the pixels whose discrepancy is computed; arrays on the device.
        point_features: (G, C3) float32 tensor.
        point_rows: (R x G), likewise.
        pixel_indices: (P,) int64 on the host: the pixels that get a discrepancy.
        owner: (P,) int64: where each of them finds it among the R computed ones; or all of them.
    """

    tokens: Tensor
    token_rows: SparseRows
    point_features: Tensor
    point_rows: SparseRows
    pixel_indices: NDArray[np.int64]
    owner: NDArray[np.int64] | slice


class DeviceCfmPipeline:
    """A fitted CFM detector on a CUDA device. `score` is thread-safe: scans share one stream."""

    def __init__(
        self,
        rgb: DeviceEngine,
        points: DeviceEngine,
        embedder: EmbedderWeights,
        networks: Mapping[str, MappingNetwork],
        parameters: CfmParameters,
        *,
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        """Use `from_artifact`. The engines run in `stream`; None is for tests on the host."""
        self.parameters = parameters
        self.backends = OpBackends.resolve(device="cuda")
        self._rgb = rgb
        self._points = points
        self._embedder = embedder
        self._networks = {name: networks[name] for name in parameters.networks.values()}
        self._device = device
        self._stream = stream

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, *, engine: EngineChoice, num_threads: int | None = None
    ) -> DeviceCfmPipeline:
        """The pipeline in an artifact, on torch's current CUDA device, its graphs run by the engine
        from the files of the choice. `num_threads` has no use here.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine, or an op or the engine cannot use the device.
        """
        OpBackends.resolve(device="cuda")  # says what is missing before torch does
        parameters = CfmParameters.from_dict(artifact.manifest.parameters)
        device = torch.device(TORCH_DEVICE)
        stream = None
        if device.type == "cuda":
            device = torch.device(TORCH_DEVICE, torch.cuda.current_device())
            stream = torch.cuda.Stream(device)
        rgb, points = (
            open_device_graph(
                engine.files[name],
                engine=engine.engine,
                device_index=device.index or 0,
                stream=0 if stream is None else stream.cuda_stream,
            )
            for name in (RGB_GRAPH, POINT_GRAPH)
        )
        check_shapes(artifact, rgb, points, parameters)
        tensors = artifact.tensors()
        embedder = EmbedderWeights.from_tensors(tensors, EMBEDDER_PREFIX)
        networks = mapping_networks(tensors, parameters)
        return cls(rgb, points, embedder, networks, parameters, device=device, stream=stream)

    @property
    def is_exact(self) -> bool:
        """The answer is the published pipeline's, up to rounding."""
        return self.parameters.is_exact

    def score(self, prepared: PreparedScan, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of a prepared scan.

        The device works behind the host: the clock's stages but the last tell when a step was
        handed over, and "scoring" waits for all of them.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        require_points(prepared, self.parameters.group_size)
        with self._in_stream():
            features = self.extract(prepared, clock)
            with clock.stage("mapping"):
                psi = {
                    name: self._discrepancy(features, network)
                    for name, network in self.parameters.networks.items()
                }
            with clock.stage("scoring"):
                psi_pixels = {
                    name: tensor.cpu().numpy()[features.owner] for name, tensor in psi.items()
                }
                return score_pixels(psi_pixels, features.pixel_indices, self.parameters)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC) as the public code scales them per image."""
        return published_evaluation_maps(anomaly_map, self.parameters)

    def extract(self, prepared: PreparedScan, clock: StageClock) -> DeviceFeatures:
        """The features of a prepared scan, with enough points, in the current stream."""
        parameters, backends = self.parameters, self.backends
        with clock.stage("upload"):
            image = self._upload(prepared.rgb[None])  # (1, 3, R, R)
            points = self._upload(prepared.points)  # (N, 3)
        with clock.stage("rgb_tokens"):
            tokens = self._run(self._rgb, image=image)[0]  # (T, C2)
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
            point_features = self._run(
                self._points, tokens=group_tokens[None], centers=centers[None]
            )[0]  # (G, C3)
        with clock.stage("interpolation"):
            weights = inverse_distance_weights(points, centers, backend=backends.interpolation)
            point_rows, pixel_indices = pooled_interpolation_rows(
                weights,
                prepared.pixel_indices,
                num_centers=parameters.num_groups,
                grid_size=prepared.grid_size,
                output_size=prepared.grid_size,
                backend=backends.pooled_rows,
            )
            chosen, owner = evaluated_pixels(pixel_indices, parameters)
            token_rows = bilinear_rows(
                pixel_indices[chosen],
                token_grid=parameters.token_grid,
                output_size=prepared.grid_size,
            )
        return DeviceFeatures(
            tokens,
            self._upload_rows(token_rows),
            point_features,
            self._select_rows(point_rows, chosen),
            pixel_indices,
            owner,
        )

    @contextmanager
    def _in_stream(self) -> Iterator[None]:
        """The device and stream of this detector, for the tensors and launches of this thread."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _upload(self, array: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _upload_rows(self, rows: SparseRows) -> SparseRows:
        return SparseRows(
            self._upload(rows.offsets),
            self._upload(rows.columns),
            self._upload(rows.values),
            rows.num_columns,
        )

    def _select_rows(self, rows: SparseRows, chosen: NDArray[np.int64] | slice) -> SparseRows:
        """The chosen rows of equally long ones, whose arrays are on the device."""
        if isinstance(chosen, slice):
            return rows
        positions = self._upload(chosen)
        entries: tuple[Tensor, Tensor] = (rows.columns, rows.values)
        columns, values = (array.view(rows.num_rows, -1)[positions] for array in entries)
        offsets: Tensor = torch.arange(len(chosen) + 1, device=self._device) * columns.shape[1]
        return SparseRows(offsets, columns.flatten(), values.flatten(), rows.num_columns)

    def _run(self, engine: DeviceEngine, **inputs: Tensor) -> Tensor:
        """The one output of a graph."""
        outputs = {
            name: torch.empty(shape, dtype=torch.float32, device=self._device)
            for name, shape in engine.output_shapes.items()
        }
        contiguous = {name: tensor.contiguous() for name, tensor in inputs.items()}
        engine.run_bound(
            {name: tensor.data_ptr() for name, tensor in contiguous.items()},
            {name: tensor.data_ptr() for name, tensor in outputs.items()},
        )
        (output,) = outputs.values()
        return output

    def _discrepancy(self, features: DeviceFeatures, network: str) -> Tensor:
        """(R,) distance of unit vectors: the target's features and their prediction."""
        sides = {
            "rgb": (features.tokens, features.token_rows),
            "point": (features.point_features, features.point_rows),
        }
        source, target = network.split("_to_")
        psi: Tensor = pixel_mapping(
            *sides[source],
            *sides[target],
            self._networks[network],
            backend=self.backends.mapping,
        )
        return psi
